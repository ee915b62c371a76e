"""A part of what a checkpoint holds: one network of a loss, or one layer of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torchrl.checkpoint import CheckpointError
from torchrl.objectives import LossModule

__all__ = ["PartOfLoss"]


class PartOfLoss:
    """What is loaded of a loss when a part is named: that network's weights, and nothing else.

    Args:
        loss: the loss that has the network.
        part: the network, as an attribute of the loss: ``world_model.encoder``, ``policy_prior``.

    Raises:
        ValueError: the loss has no weights of that name.
    """

    def __init__(self, loss: LossModule, part: str):
        self.loss, self.part = loss, part
        network, *rest = part.split(".")
        self.prefix = ".".join([f"{network}_params", *rest, ""])
        if not self._weights_of(loss.state_dict()):
            raise ValueError(
                f"part is {part!r}, but the loss has no such weights; a part is a network and what "
                "lies below it, such as world_model.encoder."
            )

    def state_dict(self) -> dict[str, Tensor]:
        """The part's weights."""
        return self._weights_of(self.loss.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the part's weights from the state of a whole loss.

        Raises:
            CheckpointError: they have other names or shapes.
        """
        given, own = self._weights_of(state), self.state_dict()
        for name in sorted({*given, *own}):
            theirs, ours = (list(w[name].shape) if name in w else None for w in (given, own))
            if theirs != ours:
                raise CheckpointError(
                    f"{self.part} does not fit: {name} has shape {theirs} in the checkpoint and "
                    f"{ours} here."
                )
        self.loss.load_state_dict({**self.loss.state_dict(), **given})

    def _weights_of(self, state: Mapping[str, Any]) -> dict[str, Tensor]:
        return {name: weight for name, weight in state.items() if name.startswith(self.prefix)}
