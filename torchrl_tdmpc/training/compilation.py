"""Where ``torch.compile`` is applied."""

from __future__ import annotations

import torch
import torch._inductor.config

from torchrl_tdmpc.objectives import TDMPC2Loss
from torchrl_tdmpc.planners import TDMPC2Planner

__all__ = ["compile_hot_paths"]


def compile_hot_paths(planner: TDMPC2Planner, loss: TDMPC2Loss) -> None:
    """Compile what a run spends its time in: the value of imagined trajectories and both losses.

    The first calls take about a minute on a laptop, and so does the first call for another number
    of environments. Random draws stay those of eager mode, which are also faster on a CPU.

    Args:
        planner: compiled in place.
        loss: compiled in place.
    """
    torch._inductor.config.fallback_random = True
    planner.trajectory_value = torch.compile(planner.trajectory_value, dynamic=False)
    loss.model_loss = torch.compile(loss.model_loss, dynamic=False)
    loss.actor_loss = torch.compile(loss.actor_loss, dynamic=False)
