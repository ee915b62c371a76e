"""A look at what auxiliary value heads predict, taken at evaluations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.durable import naming_file
from torchrl_tdmpc.objectives import MultiGammaValueLoss, TDMPC2Loss
from torchrl_tdmpc.planners import TDMPC2Planner
from torchrl_tdmpc.recording.csv_files import truncate_to

__all__ = ["ValueHeadSnapshots", "take_snapshot"]

STANDARD_EXAMPLES = 4
STANDARD = ("probability", "prediction", "target")
DEBUG = (
    *("prediction", "target", "absolute_error", "cross_entropy", "bootstrap"),
    *("lower_bin", "upper_share", "top_bins", "top_probabilities"),
)


class ValueHeadSnapshots:
    """Callback that writes a snapshot of the heads to ``multi_gamma.jsonl`` at each evaluation.

    Args:
        output_dir: The run's folder.
        multi_gamma_loss: The heads' loss.
        seed: Of every draw.
        num_examples: See :func:`take_snapshot`.
    """

    def __init__(
        self,
        output_dir: str | Path,
        multi_gamma_loss: MultiGammaValueLoss,
        *,
        seed: int,
        num_examples: int | None = None,
    ):
        self.path = Path(output_dir) / "multi_gamma.jsonl"
        self.multi_gamma_loss = multi_gamma_loss
        self.seed = seed
        self.num_examples = num_examples

    def on_evaluation(self, trainer: Any, row: Mapping[str, Any]) -> None:
        """Write a snapshot, once there is something to learn from."""
        if not trainer.replay.num_transitions:
            return
        snapshot = take_snapshot(
            trainer.update.loss,
            self.multi_gamma_loss,
            trainer.planner,
            trainer.replay,
            seed=self.seed,
            num_examples=self.num_examples,
        )
        with naming_file(self.path), self.path.open("a", encoding="utf-8") as file:
            step = trainer.counters.agent_steps * trainer.task.action_repeat
            file.write(json.dumps({"step": step, **snapshot}) + "\n")

    def state_dict(self) -> dict[str, int]:
        """How far the file reaches."""
        return {"size": self.path.stat().st_size if self.path.exists() else 0}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Cut off the snapshots that were written after :meth:`state_dict`.

        Raises:
            ValueError: If the file is shorter than it was then.
        """
        truncate_to(self.path, state["size"])


@torch.no_grad()
def take_snapshot(
    loss: TDMPC2Loss,
    multi_gamma_loss: MultiGammaValueLoss,
    planner: TDMPC2Planner,
    replay: EpisodeReplay,
    *,
    seed: int,
    num_examples: int | None = None,
) -> dict[str, Any]:
    """Examine the heads on a few slices of the replay buffer.

    Torch's generators are forked: training goes on as if nothing had been looked at.

    Args:
        loss: makes the rollouts.
        multi_gamma_loss: the heads' loss.
        planner: plans from the slices' first states (debug only).
        replay: where slices are drawn from.
        seed: of every draw.
        num_examples: None takes the standard snapshot: at z_0 of 4 slices, each head's
            distribution, decoded prediction and target. A number takes the debug snapshot of so
            many slices: at every step target, prediction, error, cross-entropy, bootstrap, the
            target's two bins and the two most likely ones; and mean and standard deviation of the
            planner's elite values at the first state.

    Returns:
        Plain lists and numbers: ``gammas`` of the heads, and ``examples``.
    """
    devices = {replay.device, next(loss.parameters()).device}
    devices = [device for device in devices if device.type == "cuda"]
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        batch = replay.sample()[: num_examples or STANDARD_EXAMPLES]
        rollout = loss.model_loss(batch)["rollout"]
        examination = multi_gamma_loss.examine(rollout)
        if num_examples is None:
            examples = examination.select(*STANDARD)[:, 0]
        else:
            latent = rollout[loss.tensor_keys.latent][:, 0]
            mean = latent.new_zeros(len(latent), planner.horizon, planner.action_dim)
            elites = planner.plan(latent, mean, explore=False).elite_value
            examples = TensorDict(
                **examination.select(*DEBUG),
                elite_value_mean=elites.mean(1),
                elite_value_std=elites.std(1, correction=0),
                batch_size=len(batch),
            )
    return {
        "gammas": list(multi_gamma_loss.gammas[1:]),
        "examples": [
            {name: value.tolist() for name, value in example.items()} for example in examples
        ],
    }
