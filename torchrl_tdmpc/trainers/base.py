"""What the online and the offline loop have in common: when to evaluate, save and stop."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NoReturn

from torchrl_tdmpc.checkpoints import FolderLock, ReplayLog, save_run
from torchrl_tdmpc.recording import RunRecord
from torchrl_tdmpc.trainers.callbacks import Callbacks
from torchrl_tdmpc.trainers.failures import CollectionError, SkippedUpdates, summary
from torchrl_tdmpc.trainers.interrupt import GracefulInterrupt
from torchrl_tdmpc.trainers.patience import Patience
from torchrl_tdmpc.trainers.schedule import is_due

__all__ = ["Loop"]


class Loop(ABC):
    """A run that can be stopped, is evaluated and saved at intervals, and keeps its folder locked.

    Its trainer sets these attributes, and documents them.
    """

    unit: str  # that intervals count, in a message

    output_dir: Path | None
    eval_interval: int
    eval_episodes: int
    checkpoint_keep: int
    metadata: dict[str, Any]

    callbacks: Callbacks
    record: RunRecord
    skipped_updates: SkippedUpdates
    interrupt: GracefulInterrupt
    patience: Patience
    lock: FolderLock | None
    replay_log: ReplayLog | None
    _is_stopped: bool

    @property
    @abstractmethod
    def components(self) -> dict[str, Any]:
        """What a checkpoint holds beside callbacks, replay and random generators."""

    @property
    @abstractmethod
    def _now(self) -> int:
        """How far the run is, in what its intervals count."""

    @property
    @abstractmethod
    def _progress(self) -> dict[str, int]:
        """The same, as the checkpoint's metadata say it."""

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
            FloatingPointError: too many updates in a row were skipped.
            OSError: the disk is full or fails; the earlier checkpoints are as they were.
        """
        self.skipped_updates.check()
        self.counters.saved = self._now
        if self.output_dir is None:
            return
        with self.record.pause():
            path = save_run(
                self.output_dir / "checkpoints",
                self._now,
                self.components,
                self.callbacks.components,
                self.replay_log,
                metadata={**self._progress, **self.metadata},
                keep_last=self.checkpoint_keep,
            )
        self.callbacks.on_checkpoint(self, path)

    def stop(self) -> None:
        """End the run after what it is doing; it is saved and can be resumed."""
        self._is_stopped = True

    @property
    def is_stopping(self) -> bool:
        """Whether the run was asked to end, by :meth:`stop` or a signal."""
        return self._is_stopped or self.interrupt.requested

    def _is_evaluation_due(self, is_last: bool) -> bool:
        """At each interval and at the end, once."""
        evaluated, now = self._last_evaluation, self._now
        due = is_due(self.eval_interval, evaluated, now) or (is_last and evaluated < now)
        return due and self.eval_episodes > 0 and not self.is_stopping

    @property
    def _last_evaluation(self) -> int:
        """How far the run was at its last evaluation."""
        return self.counters.evaluated

    def _on_evaluation_step(self) -> None:
        self.patience.begin()
        self.interrupt.raise_if_requested()
        self.callbacks.on_evaluation_step(self)

    def _save_or_warn(self) -> None:
        """Write a checkpoint; if that fails, the run goes on with the earlier ones."""
        try:
            self.save()
        except OSError as error:
            warnings.warn(
                f"the checkpoint could not be saved, the earlier ones are kept: {error}",
                stacklevel=2,
            )

    def _refuse_late_metrics(self) -> None:
        """Refuse metrics of a callback that was added after the columns were chosen."""
        if late := set(self.callbacks.metric_names) - set(self.record.metrics):
            raise ValueError(
                f"metric_names {sorted(late)} have no columns, because their callback was added "
                "later; give it to the trainer among its callbacks."
            )

    def _refuse_deleted(self) -> None:
        """Notice that ``output_dir`` is gone."""
        if self.lock is not None:
            self.lock.refuse_deleted()

    def _save_and_raise(self, who: str, error: Exception) -> NoReturn:
        """Save what is left when environments failed, and say so in one sentence.

        Args:
            who: failed, the beginning of the sentence.
            error: what was raised.
        """
        self._save_or_warn()
        saved = ""
        if self.output_dir is not None:
            saved = f"; the run is saved, and resume={self.output_dir} goes on with it"
        raise CollectionError(
            f"{who} after {self.unit} {self._now} ({summary(error)}){saved}."
        ) from error

    def _unlock(self) -> None:
        if self.lock is not None:
            self.lock.release()
