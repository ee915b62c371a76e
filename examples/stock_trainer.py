"""TD-MPC2 in TorchRL's own Trainer: ``python examples/stock_trainer.py --seed 1``.

The parts are those of ``OnlineTrainer``; the loop is TorchRL's. It does one update for each agent
step once the random warm-up is over. What the loop of this package does beside that (exact resume,
evaluation, CSV files) is left out.
"""

from __future__ import annotations

import argparse

import torch
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import Compose, RewardSum, StepCounter, TransformedEnv
from torchrl.trainers import Trainer

from torchrl_tdmpc import TDMPC2Loss, TDMPC2Planner, TDMPC2Update, evaluate
from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.envs import Task, load_task, make_env
from torchrl_tdmpc.trainers import UpdateStepper, build_networks, discount_heuristic

# Small, so that a run takes minutes on a CPU
MODEL = {"enc_dim": 64, "mlp_dim": 128, "latent_dim": 64}
PLANNER = {"num_samples": 128, "num_elites": 16, "num_pi_trajs": 8, "iterations": 4}


def make_parts(task: Task, *, steps: int) -> tuple[TDMPC2Update, TDMPC2Planner, EpisodeReplay]:
    """What learns, what acts and what is remembered, of new networks."""
    discount = discount_heuristic(task.episode_length, task.discount_cap)
    loss = TDMPC2Loss(*build_networks(task, MODEL), discount=discount, rho=task.rho)
    networks = loss.world_model, loss.policy_prior, loss.q_ensemble
    planner = TDMPC2Planner(*networks, discount=discount, **PLANNER)
    replay = EpisodeReplay(capacity=steps, horizon=3, batch_size=128, episodic=task.episodic)
    return TDMPC2Update(loss), planner, replay


def make_trainer(
    task: Task,
    update: TDMPC2Update,
    planner: TDMPC2Planner,
    replay: EpisodeReplay,
    *,
    steps: int,
    seed_steps: int,
    seed: int,
) -> Trainer:
    """TorchRL's trainer around these parts."""
    collector = Collector(
        TransformedEnv(make_env(task, seed=seed), Compose(RewardSum(), StepCounter())),
        planner,
        frames_per_batch=1,
        total_frames=steps,
        init_random_frames=seed_steps,
        auto_register_policy_transforms=True,
    )
    trainer = Trainer(
        collector=collector,
        total_frames=steps,
        frame_skip=1,
        optim_steps_per_batch=1,
        loss_module=update.loss,
        optimization_stepper=UpdateStepper(update),
        progress_bar=False,
    )

    def remember(batch: TensorDictBase) -> TensorDictBase:
        replay.extend(batch)
        return batch

    trainer.register_op("batch_process", remember)
    trainer.register_op("process_optim_batch", lambda batch: replay.sample())
    return trainer


def main() -> None:
    """Train, then evaluate without exploring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", default="Pendulum-v1", help="an id of Gymnasium")
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--seed-steps", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    task = load_task("gym", arguments.task)
    torch.manual_seed(arguments.seed)
    update, planner, replay = make_parts(task, steps=arguments.steps)
    settings = {name: getattr(arguments, name) for name in ("steps", "seed_steps", "seed")}
    make_trainer(task, update, planner, replay, **settings).train()
    returns = [row["return"] for row in evaluate(planner, task, episodes=10, seed=arguments.seed)]
    mean = sum(returns) / len(returns)
    print(
        f"{task.name}, seed {arguments.seed}: mean return {mean:.1f} over {len(returns)} episodes"
    )


if __name__ == "__main__":
    main()
