"""What auxiliary value heads know of episodes that they never learned from.

``python benchmarks/value_heads_held_out.py checkpoint=RUN`` takes the output directory of a run
with ``multi_gamma.enabled``. It collects new episodes, half of them random and half of the trained
agent exploring, and compares each head on their slices with constants:

* cross-entropy, with that of the replay buffer's marginal two-hot distribution, and with that of
  the held-out slices' own, the best constant there is;
* mean absolute error of the decoded value, with that of the held-out targets' median, the best
  constant there is.
"""

from __future__ import annotations

import logging
import sys
import tempfile

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_tdmpc.checkpoints import ReplayLog, load_checkpoint
from torchrl_tdmpc.cli.evaluate import checkpoints, read_arguments, read_config
from torchrl_tdmpc.cli.parts import make_trainer
from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.envs import Task, make_env
from torchrl_tdmpc.objectives import MultiGammaValueLoss
from torchrl_tdmpc.trainers import OnlineTrainer

EPISODES = 10
BATCHES = 20
HELD_OUT_SEED = 3_000_000  # added to the run's: neither training nor evaluation has met them


def main(arguments: list[str]) -> None:
    """Print a table."""
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    path, settings = read_arguments(arguments)
    config, task, name = read_config(path, settings)
    if not config.multi_gamma.enabled:
        raise SystemExit(f"error: multi_gamma.enabled is false in {path}; it must be true.")
    with tempfile.TemporaryDirectory() as folder:  # the trainer's own files are not wanted
        config.output_dir = folder
        trainer = make_trainer(config, task)
    components = {
        "loss": trainer.update.loss,
        "multi_gamma": heads_of(trainer),
        "replay": ReplayLog(trainer.replay, checkpoints(path) / "replay"),
    }
    load_checkpoint(checkpoints(path), components, map_location=config.device)
    torch.manual_seed(config.seed + HELD_OUT_SEED)
    held_out = collect(trainer, task, config.seed + HELD_OUT_SEED, config.planner.horizon)
    table = compare(trainer, examine(trainer, held_out), examine(trainer, trainer.replay))
    print(f"{task.name}, {name}, {EPISODES} held-out episodes, {len(table)} heads")
    print("| discount | cross-entropy | replay's marginal | own marginal | error | best constant |")
    print("|---|---|---|---|---|---|")
    for label, row in table.items():
        print(f"| {label} | " + " | ".join(f"{value:.3f}" for value in row) + " |")


def heads_of(trainer: OnlineTrainer) -> MultiGammaValueLoss:
    """The loss of the auxiliary value heads."""
    return trainer.update.auxiliary[0]


def collect(trainer: OnlineTrainer, task: Task, seed: int, horizon: int) -> EpisodeReplay:
    """New episodes, the first half of them random."""
    device = trainer.replay.device
    held_out = EpisodeReplay(
        capacity=EPISODES * (task.episode_length + 1),
        horizon=horizon,
        batch_size=256,
        device=device,
    )
    for number, policy in enumerate((None, trainer.planner)):
        env = make_env(task, num_envs=EPISODES // 2, seed=seed + number, device=device)
        env = TransformedEnv(env, trainer.planner.make_tensordict_primer())
        with set_exploration_type(ExplorationType.RANDOM):
            held_out.extend(env.rollout(task.episode_length, policy))
        env.close()
    return held_out


@torch.no_grad()
def examine(trainer: OnlineTrainer, replay: EpisodeReplay) -> TensorDict:
    """Targets, predictions, cross-entropies and two-hot codes ``[n, K, ...]`` of random slices."""
    heads, pieces = heads_of(trainer), []
    for _ in range(BATCHES):
        rollout = trainer.update.loss.model_loss(replay.sample())["rollout"]
        piece = heads.examine(rollout).select("target", "prediction", "cross_entropy")
        piece["code"] = heads.two_hot.encode(piece["target"].unsqueeze(-1))
        pieces.append(piece.flatten())
    return torch.cat(pieces)


def compare(
    trainer: OnlineTrainer, held_out: TensorDict, replay: TensorDict
) -> dict[str, list[float]]:
    """For each head: its cross-entropy and the constants', its error and the best constant's."""

    def cross_entropy(marginal: Tensor) -> Tensor:
        return -(held_out["code"] * marginal.clamp(min=1e-12).log()).sum(-1).mean(0)

    target = held_out["target"]
    columns = (
        held_out["cross_entropy"].mean(0),
        cross_entropy(replay["code"].mean(0)),
        cross_entropy(held_out["code"].mean(0)),
        (held_out["prediction"] - target).abs().mean(0),
        (target - target.median(0).values).abs().mean(0),
    )
    rows = torch.stack(columns, -1).tolist()
    return dict(zip(heads_of(trainer).labels, rows, strict=True))


if __name__ == "__main__":
    main(sys.argv[1:])
