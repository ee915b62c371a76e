"""Updates that had to be skipped: counted, and too many in a row."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["SkippedUpdates"]


class SkippedUpdates:
    """Watches for updates that were skipped because a loss or gradient was not finite.

    The count stays on the device of the updates; it is looked at once in ``limit`` updates, so that
    updates need not wait for it. A run of ``limit`` skipped updates is found at most ``limit``
    updates after its end.

    Args:
        limit: skipped updates in a row that end a run, at least 1.

    Raises:
        ValueError: if ``limit`` is less than 1.

    Examples:
        >>> import torch
        >>> skipped_updates = SkippedUpdates(limit=2)
        >>> for skipped in (0.0, 1.0, 0.0, 1.0, 1.0):
        ...     skipped_updates.add(torch.tensor(skipped))
        >>> skipped_updates.add(torch.tensor(0.0))
        Traceback (most recent call last):
            ...
        FloatingPointError: 2 updates in a row were skipped because a loss or a gradient was not...
    """

    def __init__(self, limit: int):
        if limit < 1:
            raise ValueError(f"train.max_skipped_updates is {limit}; it must be at least 1.")
        self.limit = limit
        self._updates = 0
        self._in_a_row = self._longest = torch.zeros(())

    def add(self, skipped: Tensor) -> None:
        """Count an update.

        Args:
            skipped: 1 if it was skipped, otherwise 0; a scalar.

        Raises:
            FloatingPointError: if at least ``limit`` updates in a row were skipped.
        """
        self._in_a_row = (self._in_a_row.to(skipped.device) + 1) * skipped
        self._longest = torch.maximum(self._longest.to(skipped.device), self._in_a_row)
        self._updates += 1
        if self._updates % self.limit == 0 and self._longest >= self.limit:
            raise FloatingPointError(
                f"{int(self._longest)} updates in a row were skipped because a loss or a gradient "
                f"was not finite (train.max_skipped_updates is {self.limit})."
            )

    def state_dict(self) -> dict[str, int | Tensor]:
        """The counts."""
        return {"updates": self._updates, "in_a_row": self._in_a_row, "longest": self._longest}

    def load_state_dict(self, state: Mapping[str, int | Tensor]) -> None:
        """Go on counting from there."""
        self._updates = state["updates"]
        self._in_a_row, self._longest = state["in_a_row"], state["longest"]
