"""How far a run is, for the person who started it."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from tensordict import TensorDictBase

__all__ = ["Progress", "say_waiting"]

SECONDS_BETWEEN_LINES = 60.0  # where the output is no terminal


class Progress:
    """Callback that shows a progress bar on a terminal, and one line a minute anywhere else.

    It needs tqdm, which the extra ``cli`` brings.
    """

    def __init__(self):
        self._is_terminal = sys.stderr.isatty()
        self._bar = None
        self._evaluation = None
        self._last_line = time.monotonic()
        self._start: tuple[float, int] | None = None  # when, and at how many agent steps
        self._latest: dict[str, str] = {}

    def on_begin(self, trainer: Any) -> None:
        """Show how far the run is that begins or goes on."""
        self._start = time.monotonic(), trainer.counters.agent_steps
        self._bar = self._tqdm(
            total=trainer.steps,
            initial=trainer.counters.agent_steps,
            unit=" agent steps",
            dynamic_ncols=True,
        )

    def on_collect(self, trainer: Any, data: TensorDictBase) -> None:
        """Count the agent steps."""
        self._bar.update(data.numel())
        self._line(trainer)

    def on_update(self, trainer: Any, metrics: TensorDictBase) -> None:
        """Count down the updates that the random warm-up left to do."""
        owed = trainer.counters.updates_due
        if owed > math.ceil(trainer.counters.utd * trainer.num_envs):
            self._bar.set_description(f"{owed:,} updates for the random warm-up")
            self._line(trainer, f", {owed:,} updates for the random warm-up to do")
        else:
            self._bar.set_description("", refresh=False)

    def on_episode(self, trainer: Any, row: Mapping[str, Any]) -> None:
        """Show the return and the losses."""
        losses = {k: f"{v:.3g}" for k, v in row.items() if k.startswith("loss_")}
        self._latest = {"return": f"{row['return']:.1f}", **losses}
        self._bar.set_postfix(self._latest)

    def on_evaluation_begin(self, trainer: Any, env: Any) -> None:
        """Show how far the evaluation is."""
        self._evaluation = self._tqdm(
            total=trainer.task.episode_length, desc="evaluation", leave=False
        )

    def on_evaluation_step(self, trainer: Any) -> None:
        """Count a step of the evaluation."""
        self._evaluation.update()

    def on_evaluation(self, trainer: Any, row: Mapping[str, Any]) -> None:
        """Write the mean return."""
        if self._evaluation is not None:  # as it is where the evaluation is in another process
            self._evaluation.close()
        self._bar.write(
            f"step {row['step']}: evaluation return {row['reward']:.1f} +- {row['reward_std']:.1f}",
            file=sys.stdout,
        )

    def on_end(self, trainer: Any) -> None:
        """Leave the bar where it is."""
        for bar in (self._evaluation, self._bar):
            if bar is not None:
                bar.close()

    def _tqdm(self, **settings: Any) -> Any:
        from tqdm import tqdm

        return tqdm(**settings, disable=not self._is_terminal)

    def _line(self, trainer: Any, what: str = "") -> None:
        """Where there is no terminal: at most a line a minute."""
        now = time.monotonic()
        if self._is_terminal or now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        start, first = self._start
        done = trainer.counters.agent_steps
        rate = (done - first) / (now - start)
        shown = "".join(f", {name} {value}" for name, value in self._latest.items())
        print(
            f"{done:,} of {trainer.steps:,} agent steps ({rate:.1f} a second){what}{shown}",
            flush=True,
        )


def say_waiting(seconds: float, so_far: str = "") -> None:
    """Say that a run waits for its environments.

    Args:
        seconds: waited so far.
        so_far: how far they are, if that is known.

    Examples:
        >>> say_waiting(60.0, "3 of 8 are ready")
        waiting for the environments for 60 seconds (3 of 8 are ready)
    """
    ready = f" ({so_far})" if so_far else ""
    print(f"waiting for the environments for {seconds:g} seconds{ready}", flush=True)
