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

    Where the program around it handles SIGUSR2, by which a cluster's scheduler says that a job will
    end soon, that becomes a flag too, and the program gets the signal on leaving.

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
        self._first = None
        if threading.current_thread() is threading.main_thread():
            numbers = [*self.SIGNALS]
            if callable(signal.getsignal(signal.SIGUSR2)):
                numbers.append(signal.SIGUSR2)
            self._previous = {n: signal.signal(n, self._request) for n in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._first == signal.SIGUSR2:
            signal.raise_signal(signal.SIGUSR2)

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
        self._first = number
        self.requested = True
