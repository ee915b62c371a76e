"""Auxiliary value heads: linear maps from the latent to one return distribution per discount."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from torchrl_tdmpc.modules.params import NetworkParams

__all__ = ["AuxiliaryValueHeads"]


class AuxiliaryValueHeads(TensorDictModuleBase):
    """K linear heads that map a latent to K categorical distributions of returns.

    ``joint`` heads are one linear layer to ``K * num_bins`` outputs, ``separate`` ones K layers;
    both compute the same functions. All weights start at zero, so that every head starts with the
    uniform distribution, and no random number is drawn.

    Args:
        latent_dim: size of the latent, L.
        num_heads: number of auxiliary discounts, K.
        num_bins: number of bins of each distribution.
        layout: ``"joint"`` or ``"separate"``.
        latent_key: where the latent is read by ``forward``.
        logits_key: where the logits ``[..., K, num_bins]`` are written by ``forward``.

    Raises:
        ValueError: an unknown layout, or no head.

    Examples:
        >>> joint = AuxiliaryValueHeads(latent_dim=16, num_heads=2, num_bins=101)
        >>> joint.logits(torch.randn(5, 16)).shape
        torch.Size([5, 2, 101])
        >>> separate = AuxiliaryValueHeads(16, 2, 101, layout="separate")
        >>> separate.copy_from(joint)
    """

    def __init__(
        self,
        latent_dim: int,
        num_heads: int,
        num_bins: int,
        layout: Literal["joint", "separate"] = "joint",
        *,
        latent_key: NestedKey = "latent",
        logits_key: NestedKey = "value_logits",
    ):
        super().__init__()
        if layout not in ("joint", "separate"):
            raise ValueError(f"head is {layout!r}; the choices are 'joint' and 'separate'.")
        if num_heads < 1:
            raise ValueError(f"num_heads is {num_heads}; it must be at least 1.")
        self.latent_dim = latent_dim
        self.num_heads = num_heads
        self.num_bins = num_bins
        self.layout = layout
        self.in_keys = [latent_key]
        self.out_keys = [logits_key]
        if layout == "joint":
            params = _zero_layer(latent_dim, num_heads * num_bins)
        else:
            params = {str(head): _zero_layer(latent_dim, num_bins) for head in range(num_heads)}
        self.params = NetworkParams.of(params)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Zero all weights again."""
        self.params.zero_()

    def _reset_parameters(self, module: nn.Module) -> bool:
        self.reset_parameters()  # tensordict looks at submodules only
        return True

    def logits(self, latent: Tensor, *, params: TensorDictBase | None = None) -> Tensor:
        """Return distributions of every head.

        Args:
            latent: ``[..., L]``.
            params: weights to use in place of the module's own, as
                ``TensorDict.from_module(heads)`` lays them out.

        Returns:
            Logits ``[..., K, num_bins]``.
        """
        params = self.params if params is None else params["params"]
        if self.layout == "joint":
            logits = F.linear(latent, params["weight"], params["bias"])
            return logits.unflatten(-1, (self.num_heads, self.num_bins))
        layers = (params[str(head)] for head in range(self.num_heads))
        return torch.stack([F.linear(latent, p["weight"], p["bias"]) for p in layers], -2)

    @torch.no_grad()
    def copy_from(self, other: AuxiliaryValueHeads) -> None:
        """Take over the weights of other heads, whatever their layout.

        Raises:
            ValueError: another number of heads or bins, or another size of latent.
        """
        for name in ("weight", "bias"):
            source, target = other._stacked(name), self._stacked(name)
            if source.shape != target.shape:
                raise ValueError(
                    f"heads whose {name} is {list(source.shape)} do not fit heads whose {name} is "
                    f"{list(target.shape)} (heads, bins, latent)."
                )
            if self.layout == "joint":
                self.params[name].copy_(source.flatten(0, 1))
            else:
                for head, weight in enumerate(source):
                    self.params[str(head), name].copy_(weight)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the logits of all heads."""
        return tensordict.set(self.out_keys[0], self.logits(tensordict.get(self.in_keys[0])))

    def _stacked(self, name: str) -> Tensor:
        """The weights ``[K, num_bins, L]``, or the biases ``[K, num_bins]``."""
        if self.layout == "joint":
            return self.params[name].unflatten(0, (self.num_heads, self.num_bins))
        return torch.stack([self.params[str(head), name] for head in range(self.num_heads)])


def _zero_layer(fan_in: int, fan_out: int) -> TensorDict:
    return TensorDict(weight=torch.zeros(fan_out, fan_in), bias=torch.zeros(fan_out))
