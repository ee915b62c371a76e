"""The running scale that keeps the policy loss independent of the size of returns."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

__all__ = ["RunningPercentileScale"]


class RunningPercentileScale(nn.Module):
    """Exponential average of the distance between the 5th and 95th percentile of values.

    The distance is at least 1, so that small values are not blown up (section 3.1, arXiv
    2310.16828). It starts at 1.

    Args:
        tau: Polyak coefficient of the average.

    Raises:
        ValueError: a weight outside [0, 1].

    Attributes:
        ranks: processes that each have a part of the values; None where this one has them all.

    Examples:
        >>> scale = RunningPercentileScale(tau=0.5)
        >>> scale.update(torch.linspace(0, 10, 101))
        >>> scale.value, scale(torch.tensor([10.0]))
        (tensor([5.]), tensor([2.]))
    """

    def __init__(self, tau: float = 0.01):
        super().__init__()
        if not 0 <= tau <= 1:
            raise ValueError(f"value_scale_tau is {tau}; it must be in [0, 1].")
        self.tau = tau
        self.ranks: distributed.ProcessGroup | None = None
        self.register_buffer("value", torch.ones(1))

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Move the scale towards the spread of ``values`` (any shape), if that is finite."""
        if self.ranks is not None:
            values = _of_all(values, self.ranks)
        percentiles = torch.linspace(0.05, 0.95, 2, dtype=values.dtype, device=values.device)
        low, high = values.flatten().quantile(percentiles).to(self.value.dtype)
        spread = (high - low).clamp(min=1)
        self.value.lerp_(torch.where(spread.isfinite(), spread, self.value), self.tau)

    def forward(self, values: Tensor) -> Tensor:
        """``values`` divided by the scale."""
        return values / self.value.clone()  # the buffer may move on before a backward pass


@torch.compiler.disable  # the parts of a compiled loss end at a collective
def _of_all(values: Tensor, ranks: distributed.ProcessGroup) -> Tensor:
    """The values of every process, which are as many in each."""
    parts = [torch.empty_like(values) for _ in range(distributed.get_world_size(ranks))]
    distributed.all_gather(parts, values.contiguous(), group=ranks)
    return torch.cat(parts)
