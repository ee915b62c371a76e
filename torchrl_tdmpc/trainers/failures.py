"""What may go wrong in a run: environments that fail, updates that had to be skipped."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CollectionError", "SkippedUpdates"]


class CollectionError(RuntimeError):
    """No further step could be collected."""


class SkippedUpdates:
    """Counts updates in a row that were skipped because a loss or gradient was not finite.

    Args:
        limit: skipped updates in a row that end a run, at least 1.

    Raises:
        ValueError: if ``limit`` is less than 1.

    Examples:
        >>> skipped_updates = SkippedUpdates(limit=2)
        >>> for skipped in (False, True, False, True):
        ...     skipped_updates.add(skipped)
        >>> skipped_updates.add(True)
        Traceback (most recent call last):
            ...
        FloatingPointError: 2 updates in a row were skipped because a loss or a gradient was not...
    """

    def __init__(self, limit: int):
        if limit < 1:
            raise ValueError(f"max_skipped_updates is {limit}; it must be at least 1.")
        self.limit = limit
        self._in_a_row = 0

    def add(self, skipped: bool) -> None:
        """Count an update.

        Args:
            skipped: whether it was skipped.

        Raises:
            FloatingPointError: if ``limit`` updates in a row were skipped.
        """
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        if self._in_a_row >= self.limit:
            raise FloatingPointError(
                f"{self._in_a_row} updates in a row were skipped because a loss or a gradient was "
                f"not finite (max_skipped_updates is {self.limit})."
            )

    def state_dict(self) -> dict[str, int]:
        """The count."""
        return {"in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on counting from there."""
        self._in_a_row = state["in_a_row"]
