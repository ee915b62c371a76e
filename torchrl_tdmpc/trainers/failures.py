"""What may go wrong in a run: environments that fail, updates that had to be skipped."""

from __future__ import annotations

from collections.abc import Mapping

from torchrl.envs import EnvBase

from torchrl_tdmpc.envs import WorkerError, failed_environment, has_lost_processes

__all__ = ["CollectionError", "SkippedUpdates", "summary", "who_failed"]


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


def who_failed(env: EnvBase | None, error: Exception) -> tuple[str, Exception]:
    """The beginning of a sentence on an error in environments, and the error as it was there.

    Args:
        env: the environments; None if they are gone.
        error: what was raised.

    Examples:
        >>> who_failed(None, RuntimeError("the motor is hot"))
        ('the environments failed', RuntimeError('the motor is hot'))
    """
    number, error = failed_environment(env, error)
    if number is not None:
        return f"environment {number} failed", error
    if env is not None and has_lost_processes(env):
        return "the processes of the environments ended", error
    return "the environments failed", error


def summary(error: BaseException) -> str:
    r"""What an error is and says, without further lines.

    Examples:
        >>> summary(RuntimeError("the motor is hot.\nIt has to cool down."))
        'RuntimeError: the motor is hot'
    """
    text = str(error) if isinstance(error, WorkerError) else f"{type(error).__name__}: {error}"
    return text.partition("\n")[0].strip().rstrip(".")
