"""What the losses share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from torch import Tensor, nn
from torchrl.objectives import LossModule

from torchrl_tdmpc.modules.params import NetworkParams

LARGEST_COEFFICIENT = 1e6  # of a loss; more leaves nothing of the others

__all__ = [
    "LARGEST_COEFFICIENT",
    "FunctionalLoss",
    "next_key",
    "refuse_batch",
    "rho_weights",
    "termination_statistics",
]


class FunctionalLoss(LossModule):
    """A LossModule whose networks compute with the weights it lists, after a copy too.

    Its coefficients are buffers: assigning a number changes what the next call computes, compiled
    or not, and nothing is compiled anew. They are settings, not state: no state dict has them.

    Attributes:
        coefficient_limits: the largest value of each coefficient; the smallest is 0.
    """

    coefficient_limits: ClassVar[Mapping[str, float]] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.coefficient_limits:
            number = self._refuse_coefficient(name, value)
            if name not in self._buffers:
                device = next((p.device for p in self.parameters()), None)
                self.register_buffer(name, torch.tensor(0.0, device=device), persistent=False)
            self._buffers[name].fill_(number)
        else:
            super().__setattr__(name, value)

    def convert_to_functional(self, module: nn.Module, module_name: str, **kwargs) -> None:
        """As every LossModule, but with parameters that can be put in by their names."""
        super().convert_to_functional(module, module_name, **kwargs)
        for name in (f"{module_name}_params", f"target_{module_name}_params"):
            if name in self._modules:
                setattr(self, name, NetworkParams(self._modules[name]))

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter and its name; with the argument that ``functional_call`` gives."""
        return nn.Module.named_parameters(self, prefix, recurse, remove_duplicate)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A copied TensorDictParams holds clones: take the copied networks' own weights instead
        for name in self._has_update_associated:
            params = TensorDict.from_module(getattr(self, name), as_module=True)
            setattr(self, f"{name}_params", NetworkParams(params))

    def _refuse_coefficient(self, name: str, value: float | Tensor) -> float:
        """The number that a coefficient is to have; refused if it is none or out of its range."""
        largest = self.coefficient_limits[name]
        is_scalar = value.numel() == 1 if isinstance(value, Tensor) else _is_number(value)
        number = float(value) if is_scalar else math.nan
        if not 0 <= number <= largest:  # NaN is not either
            raise ValueError(
                f"{name} is {value}; it must be at least 0 and at most {largest:,.0f}."
            )
        return number

    def _weights_of(self, name: str) -> AbstractContextManager:
        """A context in which a network computes with the weights that the loss lists.

        Those are the network's own, unless someone put others in their place.
        """
        network, params = getattr(self, name), getattr(self, f"{name}_params")
        own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        if all(own.get(_dotted(key)) is weight for key, weight in params.items(True, True)):
            return nullcontext()
        # A copy, because this context unlocks what it puts in, and parameters may be locked
        others = TensorDict(dict(params.items(True, True)))
        return others.to_module(network, preserve_module_state=False)

    def _refuse_masks(self, data: TensorDictBase) -> None:
        """Refuse a loss mask that was asked for and is not there, or is not boolean."""
        is_named = self.loss_mask_key not in (None, "auto")
        for key in self._loss_mask_keys():
            mask = data.get(key, None)
            if mask is None and is_named:
                raise KeyError(f"loss_mask_key is {key!r}, but the data have no such entry.")
            if mask is not None and mask.dtype != torch.bool:
                raise ValueError(
                    f"the loss mask {key!r} has type {mask.dtype}; it must be torch.bool, True for "
                    "the steps that count."
                )


def next_key(key: NestedKey) -> NestedKey:
    """The key below ``"next"``.

    Examples:
        >>> next_key("reward"), next_key(("agent", "reward"))
        (('next', 'reward'), ('next', 'agent', 'reward'))
    """
    return unravel_key(("next", key))


def rho_weights(rho: float | Tensor, term: Tensor) -> Tensor:
    """Weights rho ** t for the steps of a term ``[B, T]``.

    Examples:
        >>> rho_weights(0.5, torch.zeros(7, 3))
        tensor([1.0000, 0.5000, 0.2500])
    """
    return rho ** torch.arange(term.shape[1], dtype=term.dtype, device=term.device)


@torch.no_grad()
def termination_statistics(logit: Tensor, terminated: Tensor) -> dict[str, Tensor]:
    """Share of terminations, and the F1 score of their prediction, for ``[B, 1]`` steps."""
    predicted, actual = logit > 0, terminated > 0.5  # a probability above one half
    hits = (predicted & actual).sum()
    # F1 = 2 hits / (predicted + actual); 0 where nothing terminated and nothing was predicted to
    f1 = 2 * hits.to(terminated.dtype) / (predicted.sum() + actual.sum()).clamp(min=1)
    return {"termination_rate": terminated.mean(), "termination_f1": f1}


def refuse_batch(batch: TensorDictBase, keys: Any, action_dim: int) -> None:
    """Refuse a batch that is not ``[B, H]`` transitions of actions ``[A]`` and rewards ``[1]``.

    Args:
        batch: what a loss reads.
        keys: names of its entries.
        action_dim: size of the action, A.

    Raises:
        ValueError: an entry of another shape.
    """
    action = batch[keys.action]
    if action.ndim != 3:
        raise ValueError(
            f"{keys.action!r} has shape {list(action.shape)}; a batch is slices [B, H] of "
            "consecutive transitions, such as data.reshape(-1, H)."
        )
    if action.shape[-1] != action_dim:
        raise ValueError(
            f"{keys.action!r} has {action.shape[-1]} dimensions; the Q-functions read actions of "
            f"{action_dim}."
        )
    for key in map(next_key, (keys.reward, keys.terminated)):
        if batch[key].shape != (*action.shape[:2], 1):
            raise ValueError(
                f"{key!r} has shape {list(batch[key].shape)}; beside actions "
                f"{list(action.shape)} it must be {[*action.shape[:2], 1]}."
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _dotted(key: NestedKey) -> str:
    return key if isinstance(key, str) else ".".join(key)
