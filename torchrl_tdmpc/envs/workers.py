"""Environments in one process or in many: how they end, and which one an error came from."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import traceback
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor
from torchrl.collectors import BaseCollector
from torchrl.envs import EnvBase, ParallelEnv, SerialEnv, TransformedEnv

from torchrl_tdmpc.envs.seeds import seed_generators
from torchrl_tdmpc.torchrl_series import worker_processes

__all__ = [
    "ProcessEnv",
    "WorkerError",
    "failed_environment",
    "follow_main_process",
    "kill_workers",
    "make_in_worker",
    "serial_env",
    "shared_messages",
]

MESSAGE_BYTES = 16_384  # of an error with its traceback
CALLS = ("reset", "step", "_step", "step_and_maybe_reset")  # below which a user's code runs


class WorkerError(RuntimeError):
    """What an environment in another process raised: one line, and that process's traceback."""


class KeepsThreads:
    """Leaves torch's threads as they are when environments are closed.

    TorchRL gives back those that its processes took, which these have not taken.
    """

    def close(self, **settings: Any) -> None:
        """Close the environments."""
        threads = torch.get_num_threads()
        try:
            super().close(**settings)
        finally:
            torch.set_num_threads(threads)


class OneAfterAnother(KeepsThreads, SerialEnv):
    """Environments that step one after the other in this process."""


class ProcessEnv(KeepsThreads, ParallelEnv):
    """Environments that step in processes of their own.

    On top of TorchRL's, a signal to this process's group (a terminal's Ctrl-C) does not reach them,
    because this process decides when they end; they end when it ends, however it does; and an
    error in one of them can be told here, by :func:`failed_environment`.

    Args:
        makes: makes each environment from its seed; all of the same specs.
        seeds: one for each environment.
        device: where observations and rewards appear.

    Attributes:
        ready: uint8 ``[N]``, 1 for each environment that was made.
    """

    def __init__(
        self,
        *,
        makes: Sequence[Callable[[int], EnvBase]],
        seeds: Sequence[int],
        device: torch.device | str,
    ):
        told, ready = shared_messages(len(seeds))
        super().__init__(
            len(seeds),
            # One for all, so that the specs are read once
            functools.partial(make_in_worker, os.getpid()),
            create_env_kwargs=[
                {"make": make, "seed": seed, "told": told[i], "ready": ready[i]}
                for i, (make, seed) in enumerate(zip(makes, seeds, strict=True))
            ],
            device=device,
            # As many threads here as before: the workers leave them to the agent
            num_threads=torch.get_num_threads(),
        )
        self.told, self.ready = told, ready

    def _start_workers(self) -> None:
        try:
            super()._start_workers()
        except BaseException:  # an interrupt too: nobody else knows of those that began
            _kill(self._workers)
            raise
        # Python waits for its children when it ends: no child may wait for Python then
        weakref.finalize(self, _kill, self._workers)


def serial_env(
    makes: Sequence[Callable[[int], EnvBase]], seeds: Sequence[int], device: torch.device | str
) -> SerialEnv:
    """Environments that step one after the other in this process; see :class:`ProcessEnv`."""
    ready = torch.zeros(len(seeds), dtype=torch.uint8)
    settings = [
        {"make": make, "seed": seed, "index": i, "ready": ready[i]}
        for i, (make, seed) in enumerate(zip(makes, seeds, strict=True))
    ]
    env = OneAfterAnother(
        len(seeds), _make_here, create_env_kwargs=settings, device=device, shared_memory=False
    )
    env.ready = ready
    return env


def shared_messages(num_workers: int) -> tuple[Tensor, Tensor]:
    """What processes of environments tell this one, in memory that all of them share.

    Returns:
        uint8 ``[N, bytes]``, the error that each one ended with; and uint8 ``[N]``, 1 for each one
        that has made its environments.
    """
    told = torch.zeros(num_workers, MESSAGE_BYTES, dtype=torch.uint8).share_memory_()
    return told, torch.zeros(num_workers, dtype=torch.uint8).share_memory_()


def failed_environment(
    env: EnvBase | BaseCollector | None, error: Exception
) -> tuple[int | None, Exception]:
    """Which environment an error came from, and the error as it was there.

    Args:
        env: from :func:`make_env`, transformed or not, or actors; None if it is gone.
        error: what was raised here.

    Returns:
        The number of the environment or actor, None if nobody knows; a :class:`WorkerError` if it
        was raised in another process, otherwise ``error`` itself.
    """
    base = _base(env)
    # Not by getattr, which a batch of environments would pass on to each of them
    for number, told in enumerate(() if base is None else vars(base).get("told", ())):
        if told[0]:
            text = bytes(told.tolist()).partition(b"\0")[0].decode(errors="replace")
            return number, WorkerError(text)
    return getattr(error, "environment", None), error


def kill_workers(env: EnvBase | BaseCollector) -> None:
    """End processes of environments at once, whatever they are doing; none in this process.

    Args:
        env: from :func:`make_env`, transformed or not, or actors. It is of no further use.
    """
    _kill(worker_processes(_base(env)))


def _base(env: Any) -> Any:
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return env


def _kill(workers: Sequence[BaseProcess]) -> None:
    for action in (BaseProcess.kill, functools.partial(BaseProcess.join, timeout=5)):
        for worker in workers:
            try:
                action(worker)
            except ValueError:  # TorchRL closed it
                continue


def _make_here(make: Callable[[int], EnvBase], seed: int, index: int, ready: Tensor) -> EnvBase:
    """One environment whose errors carry its number."""

    def tell(error: Exception) -> None:
        error.environment = getattr(error, "environment", index)

    return _make_telling(make, seed, ready, tell)


def make_in_worker(
    main: int, *, make: Callable[[int], EnvBase], seed: int, told: Tensor, ready: Tensor
) -> EnvBase:
    """Environments in a process that was started for them; in the main one, those for the specs.

    The process ends with the main one, and no signal to the main one's group reaches it.

    Args:
        main: number of the main process.
        make: makes what is stepped as one, from a seed.
        seed: of it, and of the global generators of its process.
        told: gets its error; see :func:`shared_messages`.
        ready: likewise.
    """
    if os.getpid() == main:
        return make(seed)
    follow_main_process()
    seed_generators(seed)  # the global ones of this process are the environment's alone

    def tell(error: Exception) -> None:
        text = f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"
        message = bytearray(text.encode(errors="replace")[: MESSAGE_BYTES - 1])
        told[: len(message)] = torch.frombuffer(message, dtype=torch.uint8)
        raise SystemExit(1) from None  # without a traceback of its own on the terminal

    return _make_telling(make, seed, ready, tell)


def follow_main_process() -> None:
    """Let this process end with the main one, and with it alone: its group's signals stay away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _make_telling(
    make: Callable[[int], EnvBase], seed: int, ready: Tensor, tell: Callable[[Exception], None]
) -> EnvBase:
    env = _telling(make, tell)(seed)
    for name in CALLS:
        vars(env)[name] = _telling(getattr(env, name), tell)
    ready.fill_(1)
    return env


def _telling(function: Callable[..., Any], tell: Callable[[Exception], None]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            tell(error)
            raise

    return call
