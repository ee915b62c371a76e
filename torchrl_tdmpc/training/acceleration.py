"""The one place where compilation and precision are chosen."""

from __future__ import annotations

from typing import Literal

import torch

from torchrl_tdmpc.objectives import MultiGammaValueLoss, TDMPC2Loss
from torchrl_tdmpc.planners import TDMPC2Planner

__all__ = ["accelerate"]

# What torch calls the precision of float32 matrix products
MATMUL_PRECISIONS = {"float32": "highest", "bfloat16": "medium"}


def accelerate(
    planner: TDMPC2Planner,
    loss: TDMPC2Loss,
    multi_gamma_loss: MultiGammaValueLoss | None = None,
    *,
    compile: bool = False,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Make planning and updating faster, in place.

    Copy a planner or a loss before, not after: compiled methods of a copy would still be those of
    the original, and compute with its weights.

    Args:
        planner: the planner of the run.
        loss: the loss of the run.
        multi_gamma_loss: the loss of its auxiliary heads, if it has any.
        compile: whether the values of imagined trajectories and the losses go through
            ``torch.compile``. The first calls take about a minute, the first call for another
            number of environments some seconds. Random draws stay those of eager mode.
        precision: of matrix products, for the whole process. ``"bfloat16"`` rounds their factors,
            where the hardware is faster for it; weights, sums and everything else stay float32.

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in MATMUL_PRECISIONS:
        choices = ", ".join(MATMUL_PRECISIONS)
        raise ValueError(f"precision is {precision!r}; the choices are {choices}.")
    torch.set_float32_matmul_precision(MATMUL_PRECISIONS[precision])
    if compile:
        torch._inductor.config.fallback_random = True
        planner.trajectory_value = torch.compile(planner.trajectory_value, dynamic=False)
        loss.model_loss = torch.compile(loss.model_loss, dynamic=False)
        loss.actor_loss = torch.compile(loss.actor_loss, dynamic=False)
        if multi_gamma_loss is not None:
            multi_gamma_loss.forward = torch.compile(multi_gamma_loss.forward, dynamic=False)
