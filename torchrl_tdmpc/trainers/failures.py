"""What may go wrong in a run: environments that fail, updates that had to be skipped."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchrl.collectors import BaseCollector
from torchrl.envs import EnvBase

from torchrl_tdmpc.envs import WorkerError, failed_environment, has_lost_processes

__all__ = ["CollectionError", "SkippedUpdates", "summary", "who_failed"]


class CollectionError(RuntimeError):
    """No further step could be collected."""


class SkippedUpdates:
    """Counts updates in a row that were skipped because a loss or gradient was not finite.

    The count stays on the device of the updates until :meth:`check` reads it.

    Args:
        limit: skipped updates in a row that end a run, at least 1.

    Raises:
        ValueError: if ``limit`` is less than 1.

    Examples:
        >>> skipped_updates = SkippedUpdates(limit=2)
        >>> for skipped in (0.0, 1.0, 0.0, 1.0, 1.0):
        ...     skipped_updates.add(torch.tensor(skipped))
        >>> skipped_updates.check()
        Traceback (most recent call last):
            ...
        FloatingPointError: 2 updates in a row were skipped because a loss or a gradient was not...
    """

    def __init__(self, limit: int):
        if limit < 1:
            raise ValueError(f"max_skipped_updates is {limit}; it must be at least 1.")
        self.limit = limit
        self._in_a_row = self._most = torch.zeros(())

    def add(self, skipped: Tensor) -> None:
        """Count an update: 1 if it was skipped, else 0."""
        self._in_a_row = (self._in_a_row + 1) * skipped
        self._most = torch.maximum(self._most, self._in_a_row)

    def check(self) -> None:
        """Read the count, which waits for the device if updates are under way there.

        Raises:
            FloatingPointError: if ``limit`` updates in a row were skipped since the run began.
        """
        if (most := int(self._most)) >= self.limit:
            raise FloatingPointError(
                f"{most} updates in a row were skipped because a loss or a gradient was "
                f"not finite (max_skipped_updates is {self.limit})."
            )

    def state_dict(self) -> dict[str, int]:
        """The count."""
        return {"in_a_row": int(self._in_a_row)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on counting from there."""
        self._in_a_row = torch.tensor(float(state["in_a_row"]))


def who_failed(env: EnvBase | BaseCollector | None, error: Exception) -> tuple[str, Exception]:
    """The beginning of a sentence on an error in environments, and the error as it was there.

    Args:
        env: the environments, or the actors that have them; None if they are gone.
        error: what was raised.

    Examples:
        >>> who_failed(None, RuntimeError("the motor is hot"))
        ('the environments failed', RuntimeError('the motor is hot'))
    """
    number, error = failed_environment(env, error)
    if number is not None:
        worker = "actor" if isinstance(env, BaseCollector) else "environment"
        return f"{worker} {number} failed", error
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
