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

from torchrl_tdmpc import LatentEnv, TDMPC2Loss, TDMPC2Planner, TDMPC2Update, evaluate
from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.envs import Task, load_task, make_env
from torchrl_tdmpc.trainers import UpdateStepper, build_networks, discount_heuristic

MODEL = {"enc_dim": 64, "mlp_dim": 128, "latent_dim": 64}  # small: minutes on a CPU


def make_trainer(
    task: Task, *, steps: int, seed_steps: int, seed: int
) -> tuple[Trainer, TDMPC2Planner]:
    """A trainer of TorchRL, and the planner that it trains."""
    torch.manual_seed(seed)
    networks = build_networks(task, MODEL)
    discount = discount_heuristic(task.episode_length, task.discount_cap)
    update = TDMPC2Update(TDMPC2Loss(*networks, discount=discount, rho=task.rho))
    world_model, policy_prior, q_ensemble = networks
    planner = TDMPC2Planner(
        LatentEnv(world_model, task.action_dim), policy_prior, q_ensemble, discount=discount
    )
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
    replay = EpisodeReplay(capacity=steps, horizon=3, batch_size=256, episodic=task.episodic)

    def remember(batch: TensorDictBase) -> TensorDictBase:
        replay.extend(batch)
        return batch

    trainer.register_op("batch_process", remember)
    trainer.register_op("process_optim_batch", lambda batch: replay.sample())
    return trainer, planner


def main() -> None:
    """Train, then evaluate without exploring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", default="Pendulum-v1", help="an id of Gymnasium")
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--seed-steps", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    task = load_task("gym", arguments.task)
    trainer, planner = make_trainer(
        task, steps=arguments.steps, seed_steps=arguments.seed_steps, seed=arguments.seed
    )
    trainer.train()
    returns, _ = evaluate(planner, task, episodes=10, seed=arguments.seed)
    mean = sum(returns) / len(returns)
    print(
        f"{task.name}, seed {arguments.seed}: mean return {mean:.1f} over {len(returns)} episodes"
    )


if __name__ == "__main__":
    main()
