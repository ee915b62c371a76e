"""What the losses share."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDict, unravel_key
from torch import Tensor
from torchrl.objectives import LossModule

__all__ = ["FunctionalLoss", "next_key", "rho_weights"]


class FunctionalLoss(LossModule):
    """A LossModule whose networks compute with the weights it lists, after a copy too."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A copied TensorDictParams holds clones: take the copied networks' own weights instead
        for name in self._has_update_associated:
            params = TensorDict.from_module(getattr(self, name), as_module=True)
            setattr(self, f"{name}_params", params)


def next_key(key: NestedKey) -> NestedKey:
    """The key below ``"next"``.

    Examples:
        >>> next_key("reward"), next_key(("agent", "reward"))
        (('next', 'reward'), ('next', 'agent', 'reward'))
    """
    return unravel_key(("next", key))


def rho_weights(rho: float, term: Tensor) -> Tensor:
    """Weights rho ** t for the steps of a term ``[B, T]``.

    Examples:
        >>> rho_weights(0.5, torch.zeros(7, 3))
        tensor([1.0000, 0.5000, 0.2500])
    """
    return rho ** torch.arange(term.shape[1], dtype=term.dtype, device=term.device)
