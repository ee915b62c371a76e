"""What a run on stored episodes of several tasks records: rows, and how far it is."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from torchrl_tdmpc.envs import Task
from torchrl_tdmpc.envs.padding import SUCCESS
from torchrl_tdmpc.recording.progress import SECONDS_BETWEEN_LINES
from torchrl_tdmpc.recording.rows import COST_COLUMNS, EVAL_COLUMNS, RunRecord

__all__ = ["ALL_TASKS", "OfflineProgress", "OfflineRecord", "normalised_score"]

ALL_TASKS = "all"  # in the column of the task, where a row has the mean score


def normalised_score(task: Task, returns: Sequence[float], success: Sequence[float] = ()) -> float:
    """The published score, from 0 to 100: a tenth of the mean return, or the share of successes.

    Args:
        task: what was evaluated. On DMControl returns count, elsewhere successes.
        returns: of the episodes.
        success: 1 for each episode that was one; none where the task does not tell.

    Returns:
        The score; NaN for a task for which none was published.

    Examples:
        >>> from torchrl_tdmpc.envs import load_task
        >>> normalised_score(load_task("dmcontrol", "cup-catch"), [900.0, 800.0])
        85.0
    """
    if task.backend == "dmcontrol":
        return statistics.fmean(returns) / 10
    return 100 * statistics.fmean(success) if len(success) else math.nan


class OfflineRecord(RunRecord):
    """Makes the rows of a run without a training environment; its ``step`` counts updates.

    Args:
        tasks: what is evaluated.
        metrics: see :class:`RunRecord`.
        settings: the others of :class:`RunRecord`.
    """

    def __init__(self, tasks: Sequence[Task], metrics: Sequence[str], **settings: Any):
        super().__init__(metrics, **settings)
        self.tasks = list(tasks)
        self.train_columns = ("step", *self.metrics, *COST_COLUMNS)
        further = [name for name in EVAL_COLUMNS if name not in ("step", "agent_steps")]
        self.eval_columns = ("step", "task", "score", *further, *self.extra)

    def updates(self, step: int) -> dict[str, Any]:
        """The row of the updates since the last one."""
        averages = self._take_averages()
        self._warn_of_clipping(averages)
        ms_per_step = self._take_ms_per_step(step)
        return {"step": step, **averages, "ms_per_step": ms_per_step, **self._costs()}

    def tasks_evaluated(self, step: int, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A row for each task from a row for each episode, and a last one with the mean score.

        Args:
            step: updates so far.
            rows: what :func:`~torchrl_tdmpc.trainers.evaluate` returned.
        """
        found = []
        for task in self.tasks:
            mine = [row for row in rows if row["task"] == task.name]
            returns = [row["return"] for row in mine]
            success = [row[SUCCESS] for row in mine if task.success_key is not None]
            row = self.evaluation(
                step=step,
                agent_steps=0,
                returns=returns,
                lengths=[row["length"] for row in mine],
                extra={name: [row[name] for row in mine] for name in self.extra},
            )
            del row["agent_steps"]
            score = normalised_score(task, returns, success)
            found.append({"task": task.name, "score": score, **row})
        scores = [row["score"] for row in found if not math.isnan(row["score"])]
        mean = statistics.fmean(scores) if scores else math.nan
        last = {"step": step, "task": ALL_TASKS, "score": mean, "episodes": len(rows)}
        return [*found, {**last, "seed": self.seed, "seconds": self._seconds()}]


class OfflineProgress:
    """Callback that shows a bar of the updates on a terminal, and one line a minute elsewhere.

    It needs tqdm, which the extra ``cli`` brings.
    """

    def __init__(self):
        self._is_terminal = sys.stderr.isatty()
        self._bar = None
        self._last_line = time.monotonic()

    def on_begin(self, trainer: Any) -> None:
        """Show how far the run is that begins or goes on."""
        from tqdm import tqdm

        self._bar = tqdm(
            total=trainer.steps,
            initial=trainer.counters.updates,
            unit=" updates",
            dynamic_ncols=True,
            disable=not self._is_terminal,
        )

    def on_update(self, trainer: Any, metrics: Any) -> None:
        """Count an update."""
        self._bar.update()

    def on_updates(self, trainer: Any, row: Mapping[str, Any]) -> None:
        """Show the losses."""
        losses = {k: f"{v:.3g}" for k, v in row.items() if k.startswith("loss_")}
        self._bar.set_postfix(losses)
        now = time.monotonic()
        if not self._is_terminal and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            shown = "".join(f", {name} {value}" for name, value in losses.items())
            print(f"{row['step']:,} of {trainer.steps:,} updates{shown}", flush=True)

    def on_evaluation(self, trainer: Any, row: Mapping[str, Any]) -> None:
        """Write a task's mean return and score."""
        told = f"score {row['score']:.1f}"
        if row["task"] != ALL_TASKS:
            told = f"evaluation return {row['reward']:.1f} +- {row['reward_std']:.1f}, {told}"
        self._bar.write(f"update {row['step']}, {row['task']}: {told}", file=sys.stdout)

    def on_end(self, trainer: Any) -> None:
        """Leave the bar where it is."""
        if self._bar is not None:
            self._bar.close()
