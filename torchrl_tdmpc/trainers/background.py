"""Evaluations in a process of their own, while training goes on."""

from __future__ import annotations

import copy
import traceback
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import multiprocessing

from torchrl_tdmpc.envs import Task, WorkerError, follow_main_process
from torchrl_tdmpc.planners import TDMPC2Planner
from torchrl_tdmpc.trainers.evaluation import evaluate
from torchrl_tdmpc.trainers.patience import Patience

__all__ = ["BackgroundEvaluator"]

SECONDS_TO_END = 10.0


class BackgroundEvaluator:
    """A process that evaluates a planner as it is at one moment, one evaluation after the other.

    The process begins with the first evaluation, and ends with the one that made it.

    Args:
        env_timeout: see :class:`Patience`; it holds for each step of an evaluation.
    """

    def __init__(self, env_timeout: float | None = 1800.0):
        self.env_timeout = env_timeout
        self._process: multiprocessing.Process | None = None
        self._connection: Connection | None = None
        self._is_busy = False

    def begin(self, planner: TDMPC2Planner, task: Task, **settings: Any) -> None:
        """Begin an evaluation; the one before must have been taken.

        Args:
            planner: is evaluated with the weights that it has now.
            task: what it acts in.
            settings: see :func:`evaluate`.

        Raises:
            WorkerError: the process has ended since the last evaluation.
        """
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(
                target=_serve,
                args=(
                    theirs,
                    self.env_timeout,
                    torch.get_num_threads(),
                    torch.get_float32_matmul_precision(),
                ),
                daemon=True,
            )
            self._process.start()
            theirs.close()
        try:
            self._connection.send((copy.deepcopy(planner), task, settings))
        except ConnectionError as error:
            raise WorkerError("the process of the evaluation ended") from error
        self._is_busy = True

    def is_ready(self, seconds: float = 0.0) -> bool:
        """Whether the evaluation has ended; waits for it for so long."""
        return self._connection.poll(seconds)

    def take(self) -> list[dict[str, Any]]:
        """The rows of the evaluation that has ended; see :func:`evaluate`.

        Raises:
            WorkerError: it failed.
        """
        try:
            rows, error = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise WorkerError("the process of the evaluation ended") from error
        self._is_busy = False
        if error is not None:
            raise WorkerError(error)
        return rows

    def shutdown(self) -> None:
        """End the process: at once if it is evaluating, else it ends by itself."""
        if self._process is None:
            return
        self._connection.close()
        if self._is_busy:
            self._process.kill()
        self._process.join(SECONDS_TO_END)
        self._process.kill()
        self._process.join()
        self._process = None


def _serve(
    connection: Connection, env_timeout: float | None, threads: int, matmul_precision: str
) -> None:
    """Evaluate what comes, until nobody is there any more."""
    follow_main_process()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul_precision)
    while True:
        try:
            planner, task, settings = connection.recv()
        except EOFError:
            return
        try:
            with Patience(env_timeout) as patience, patience.waiting(planner):
                rows = evaluate(planner, task, on_step=patience.begin, **settings)
            answer = rows, None
        except Exception as error:
            answer = None, f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"
        connection.send(answer)
