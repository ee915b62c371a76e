"""Ending a run between two agent steps, instead of somewhere inside an update."""

from __future__ import annotations

import signal
import threading
from types import FrameType

__all__ = ["GracefulInterrupt", "LeftEarly"]


class LeftEarly(KeyboardInterrupt):
    """Work was left because the run was asked to end, by the first signal; not by the second."""


class GracefulInterrupt:
    """Turns the first SIGINT (Ctrl-C) or SIGTERM into a flag; the second one interrupts at once.

    A context manager; handlers are restored on leaving. In another thread than the main one Python
    gives no way to handle signals: there it does nothing, and the program around it decides.

    Attributes:
        requested: whether the run was asked to end.

    Examples:
        >>> import signal
        >>> with GracefulInterrupt() as interrupt:
        ...     signal.raise_signal(signal.SIGINT)
        >>> interrupt.requested
        True
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.requested = False

    def __enter__(self) -> GracefulInterrupt:
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._request) for n in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def raise_if_requested(self) -> None:
        """Leave long work, such as an evaluation, that has no result worth keeping.

        Raises:
            LeftEarly: the run was asked to end.
        """
        if self.requested:
            raise LeftEarly

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
