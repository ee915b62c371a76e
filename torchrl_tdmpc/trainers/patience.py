"""Waiting for environments: something is said meanwhile, and it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from torch import nn

__all__ = ["NoAnswerError", "Patience"]

SECONDS_BETWEEN_CALLS = 60.0
SECONDS_TO_REPEAT = 1.0


class NoAnswerError(RuntimeError):
    """An environment gave no answer in time; no TimeoutError, which TorchRL's collectors catch."""


class Patience:
    """Interrupts what waits for an environment that gives no answer.

    A context manager; inside it, :meth:`waiting` surrounds each call that may hang. It needs the
    system's alarm signal: in another thread than the main one, where the system has none, or where
    somebody else uses it, nothing is interrupted and nothing is said.

    Args:
        seconds: how long an answer may take; None waits for ever.
        on_wait: called with the seconds waited so far, each minute.

    Raises:
        ValueError: ``seconds`` is not positive.

    Examples:
        >>> import time
        >>> with Patience(0.01) as patience, patience.waiting():
        ...     time.sleep(10)
        Traceback (most recent call last):
        torchrl_tdmpc.trainers.patience.NoAnswerError: no answer within the env_timeout of 0.01...
    """

    def __init__(
        self, seconds: float | None, on_wait: Callable[[float], None] = lambda waited: None
    ):
        if seconds is not None and not 0 < seconds <= 1e9:
            raise ValueError(f"env_timeout is {seconds}; it must be positive and at most 1e9.")
        self.seconds = seconds
        self.on_wait = on_wait
        self._waited = 0.0
        self._previous = None
        self._is_active = False

    def __enter__(self) -> Patience:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and hasattr(signal, "setitimer"):
            self._is_active = signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
        if self._is_active:
            signal.signal(signal.SIGALRM, self._ring)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_active:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            self._is_active = False

    @contextmanager
    def waiting(self, policy: nn.Module | None = None) -> Iterator[None]:
        """Surround a call that may hang.

        Args:
            policy: acts within the call. Its own time does not count: a first plan compiles, which
                takes minutes on a busy machine.

        Raises:
            NoAnswerError: it took longer than ``seconds``.
        """
        hooks = []
        if policy is not None:
            hooks.append(policy.register_forward_pre_hook(lambda *_: self.end()))
            hooks.append(policy.register_forward_hook(lambda *_: self.begin()))
        self.begin()
        try:
            yield
        finally:
            self.end()
            for hook in hooks:
                hook.remove()

    def begin(self) -> None:
        """Begin to wait, or begin again because there was an answer."""
        self._waited = 0.0
        if self._is_active:
            signal.setitimer(signal.ITIMER_REAL, self._next)

    def end(self) -> None:
        """Wait no longer."""
        if self._is_active:
            signal.setitimer(signal.ITIMER_REAL, 0)

    @property
    def _next(self) -> float:
        """Seconds until something is said or the patience ends."""
        if self.seconds is None:
            return SECONDS_BETWEEN_CALLS
        return min(SECONDS_BETWEEN_CALLS, self.seconds - self._waited)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        self._waited += self._next
        if self.seconds is not None and self._waited >= self.seconds:
            # Again soon: Python drops an error that comes while it frees an object
            signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_REPEAT)
            raise NoAnswerError(f"no answer within the env_timeout of {self.seconds:g} seconds")
        self.on_wait(self._waited)
        signal.setitimer(signal.ITIMER_REAL, self._next)
