"""Scalars as distributions: symlog, then two neighbouring bins that share the mass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchrl_tdmpc.modules.layers import at_least_float32

__all__ = ["SymlogTwoHot", "symexp", "symlog"]

LARGEST_BIN = 80  # in symlog space: 5.5e34


def symlog(x: Tensor) -> Tensor:
    """``sign(x) log(1 + |x|)`` (arXiv 2301.04104)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """``sign(x) (exp(|x|) - 1)``, the inverse of :func:`symlog`."""
    return x.sign() * x.abs().expm1()


@dataclass(frozen=True)
class SymlogTwoHot:
    """Two-hot coding of scalars on even bins in symlog space (section 3.1, arXiv 2310.16828).

    It has no tensors of its own: it works in the dtype and on the device of what it is given.

    Args:
        num_bins: number of bins.
        vmin: lowest bin, in symlog space.
        vmax: highest bin, in symlog space. Scalars beyond the support are coded as its end.

    Raises:
        ValueError: fewer than two bins or more than 100,000, an empty support, or one whose ends
            float32 cannot hold outside symlog space.

    Examples:
        >>> two_hot = SymlogTwoHot(num_bins=5, vmin=-2, vmax=2)
        >>> two_hot.encode(symexp(torch.tensor([[1.25]])))
        tensor([[0.0000, 0.0000, 0.0000, 0.7500, 0.2500]])
    """

    num_bins: int = 101
    vmin: float = -10.0
    vmax: float = 10.0

    def __post_init__(self):
        if not 2 <= self.num_bins <= 100_000:
            raise ValueError(
                f"num_bins is {self.num_bins}; it must be at least 2 and at most 100,000."
            )
        for name in ("vmin", "vmax"):
            if not abs(getattr(self, name)) <= LARGEST_BIN:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must be in [-{LARGEST_BIN}, "
                    f"{LARGEST_BIN}], beyond which float32 ends."
                )
        if not self.vmin < self.vmax:
            raise ValueError(f"vmin is {self.vmin} and vmax is {self.vmax}; vmin must be smaller.")

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest scalar that are coded exactly."""
        low, high = symexp(torch.tensor([self.vmin, self.vmax], dtype=torch.float64)).tolist()
        return low, high

    def lower_bin(self, scalar: Tensor) -> tuple[Tensor, Tensor]:
        """Where a scalar falls on the support.

        Args:
            scalar: ``[..., 1]``.

        Returns:
            The lower of the two bins that share its mass (int64, ``[..., 1]``), and the share of
            the upper one (``[..., 1]``).
        """
        bin_size = (self.vmax - self.vmin) / (self.num_bins - 1)
        position = (symlog(scalar).clamp(self.vmin, self.vmax) - self.vmin) / bin_size
        # NaN has no bin: it is given one here, and stays in the share
        lower = position.nan_to_num(0).floor().clamp(0, self.num_bins - 2)
        return lower.long(), position - lower

    def share_beyond(self, scalar: Tensor) -> Tensor:
        """The share of scalars (any shape) that lie beyond the support and are coded as its end."""
        x = symlog(scalar)
        return ((x < self.vmin) | (x > self.vmax)).to(x.dtype).mean()

    def encode(self, scalar: Tensor) -> Tensor:
        """Two-hot distribution ``[..., num_bins]`` of scalars ``[..., 1]``."""
        lower, upper_share = self.lower_bin(scalar)
        code = scalar.new_zeros(*scalar.shape[:-1], self.num_bins)
        code.scatter_(-1, lower, 1 - upper_share)
        return code.scatter_(-1, lower + 1, upper_share)

    def decode(self, logits: Tensor) -> Tensor:
        """Scalars ``[..., 1]`` of logits ``[..., num_bins]``: symexp of the expected bin."""
        logits = at_least_float32(logits)
        bins = torch.linspace(
            self.vmin, self.vmax, self.num_bins, dtype=logits.dtype, device=logits.device
        )
        return symexp((logits.softmax(-1) * bins).sum(-1, keepdim=True))

    def cross_entropy(self, logits: Tensor, scalar: Tensor) -> Tensor:
        """Cross-entropy ``[..., 1]`` between the code of ``scalar`` and ``softmax(logits)``.

        Args:
            logits: ``[..., num_bins]``.
            scalar: ``[..., 1]``, broadcastable to the leading dimensions of ``logits``.
        """
        logits = at_least_float32(logits)
        lower, upper_share = self.lower_bin(scalar)
        lower = lower.expand(*logits.shape[:-1], 1)
        # -sum_i code_i log softmax(logits)_i, where only two entries of the code are not zero
        expected_logit = torch.lerp(
            logits.gather(-1, lower), logits.gather(-1, lower + 1), upper_share
        )
        return logits.logsumexp(-1, keepdim=True) - expected_logit
