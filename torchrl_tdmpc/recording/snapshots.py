"""A look at what auxiliary value heads predict, taken at evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.objectives import MultiGammaValueLoss, TDMPC2Loss
from torchrl_tdmpc.planners import TDMPC2Planner

__all__ = ["append_snapshot", "take_snapshot"]

STANDARD_EXAMPLES = 4
STANDARD = ("probability", "prediction", "target")
DEBUG = (
    *("prediction", "target", "absolute_error", "cross_entropy", "bootstrap"),
    *("lower_bin", "upper_share", "top_bins", "top_probabilities"),
)


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


def append_snapshot(output_dir: str | Path, step: int, snapshot: dict[str, Any]) -> None:
    """Add a snapshot, and the environment step it was taken at, to ``multi_gamma.jsonl``."""
    with (Path(output_dir) / "multi_gamma.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **snapshot}) + "\n")
