"""The offline loop: learn from stored episodes of several tasks; evaluate and save now and then."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torchrl.record.loggers import Logger

from torchrl_tdmpc.checkpoints import FolderLock, find_checkpoint, resume_run
from torchrl_tdmpc.data import EpisodeFiles, EpisodeStream
from torchrl_tdmpc.envs import TaskSet, seed_generators
from torchrl_tdmpc.objectives import TDMPC2Loss
from torchrl_tdmpc.planners import TDMPC2Planner
from torchrl_tdmpc.recording import CsvFiles, LoggerRows, OfflineProgress, OfflineRecord
from torchrl_tdmpc.trainers.agent import build_networks, describe_agent
from torchrl_tdmpc.trainers.base import Loop
from torchrl_tdmpc.trainers.callbacks import Callbacks
from torchrl_tdmpc.trainers.evaluation import evaluate
from torchrl_tdmpc.trainers.failures import SkippedUpdates, who_failed
from torchrl_tdmpc.trainers.interrupt import GracefulInterrupt, LeftEarly
from torchrl_tdmpc.trainers.loop import EVALUATION_SEED
from torchrl_tdmpc.trainers.patience import Patience
from torchrl_tdmpc.trainers.schedule import is_due
from torchrl_tdmpc.trainers.update import TDMPC2Update

__all__ = ["OfflineCounters", "OfflineTrainer"]


@dataclass
class OfflineCounters:
    """How far a run is, in updates; see :class:`~torchrl_tdmpc.trainers.Counters`.

    Attributes:
        updates: updates done.
        recorded: updates at the last row of ``train.csv``.
        evaluated: updates at the last evaluation.
        saved: updates at the last checkpoint.
    """

    updates: int = 0
    recorded: int = 0
    evaluated: int = 0
    saved: int = 0

    def state_dict(self) -> dict[str, int]:
        """The counts."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take the counts of another run."""
        vars(self).update(state)


class OfflineTrainer(Loop):
    """Trains one model of several tasks on stored episodes.

    Parts that are not given are made with the published settings, on ``device``, as in
    :class:`~torchrl_tdmpc.OnlineTrainer`.

    Args:
        tasks: what the model is for; it is evaluated on all of them together.
        data: the episodes: a folder, or a stream whose batches go to ``device``.

    Keyword Args:
        output_dir: where the run writes its checkpoints and files; None writes nothing.
        steps: updates of the run.
        batch_size: slices in a batch, where ``data`` is a folder.
        model: settings of :func:`~torchrl_tdmpc.trainers.build_networks`.
        update: loss and optimisers, in place of ``model``.
        planner: what acts in evaluations; it must share its networks with the update's loss.
        logger: one of TorchRL's loggers, which gets every row.
        callbacks: see :class:`~torchrl_tdmpc.trainers.Callbacks`; called after the run's own.
        row_interval: updates that a row of ``train.csv`` averages.
        eval_interval: updates from one evaluation to the next.
        eval_episodes: episodes of each task in an evaluation; 0 switches evaluation off.
        eval_num_envs: see :func:`~torchrl_tdmpc.trainers.evaluate`.
        env_timeout: seconds without an answer of the environments that end the run.
        checkpoint_interval: updates from one checkpoint to the next.
        checkpoint_keep: newest checkpoints that are kept.
        max_skipped_updates: see :class:`~torchrl_tdmpc.OnlineTrainer`.
        seed: of the networks, the draws and the evaluations.
        device: where the networks are.
        resume: see :class:`~torchrl_tdmpc.OnlineTrainer`.
        config: what else the checkpoints record: plain nested dictionaries.

    Raises:
        DatasetError: the data do not fit the tasks.
        FileExistsError: ``output_dir`` holds a run already, or another process writes to it.
        FileNotFoundError: there is nothing to resume, or no data set.
        ValueError: a part or a number that does not fit.

    Attributes:
        counters: how far the run is.
        is_stopping: whether the run ends after what it is doing.
    """

    unit = "update"

    def __init__(
        self,
        tasks: TaskSet,
        data: str | Path | EpisodeStream,
        *,
        output_dir: str | Path | None = None,
        steps: int = 100_000,
        batch_size: int = 256,
        model: Mapping[str, Any] | None = None,
        update: TDMPC2Update | None = None,
        planner: TDMPC2Planner | None = None,
        logger: Logger | None = None,
        callbacks: Iterable[Any] = (),
        row_interval: int = 500,
        eval_interval: int = 10_000,
        eval_episodes: int = 3,
        eval_num_envs: int | None = None,
        env_timeout: float | None = 1800.0,
        checkpoint_interval: int = 10_000,
        checkpoint_keep: int = 2,
        max_skipped_updates: int = 100,
        seed: int = 1,
        device: torch.device | str = "cpu",
        resume: str | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        self.task = tasks
        self.output_dir = None if output_dir is None else Path(output_dir).expanduser()
        self.steps = steps
        self.row_interval = row_interval
        self.eval_interval, self.eval_episodes = eval_interval, eval_episodes
        self.eval_num_envs = eval_num_envs
        self.checkpoint_interval, self.checkpoint_keep = checkpoint_interval, checkpoint_keep
        self.seed = seed
        self.device = torch.device(device)
        if resume is not None and output_dir is None:
            raise ValueError(
                f"resume is {str(resume)!r}, but output_dir is None; a run is resumed in the "
                "folder that it wrote to."
            )
        self.resume = None if resume is None else find_checkpoint(resume, self.output_dir)

        if update is None:
            seed_generators(seed)
            model = model or {}
            networks = [network.to(self.device) for network in build_networks(tasks, model)]
            update = TDMPC2Update(TDMPC2Loss(*networks).to(self.device))
        loss = update.loss
        context = loss.world_model.task_context
        num_tasks = 1 if context is None else len(context.embedding)
        if context is None or num_tasks != len(tasks.names):
            raise ValueError(
                f"the update's world model is of {num_tasks} tasks"
                f"{' and has no task_context' if context is None else ''}; it must have one for "
                f"each of {', '.join(tasks.names)}."
            )
        self.update = update
        self.planner = planner or TDMPC2Planner(
            loss.world_model, loss.policy_prior, loss.q_ensemble
        )
        if not isinstance(data, EpisodeStream):
            data = EpisodeStream(
                EpisodeFiles(data),
                tasks.names,
                observation_dims=tasks.observation_dims,
                action_dims=tasks.action_dims,
                horizon=self.planner.horizon,
                batch_size=batch_size,
                seed=seed,
                device=self.device,
            )
        self.data = data
        self.metadata = {
            "agent": describe_agent(tasks, self.planner, model),
            "config": dict(config or {}),
        }

        self.counters = OfflineCounters()
        self.skipped_updates = SkippedUpdates(max_skipped_updates)
        self.interrupt = GracefulInterrupt()
        self.patience = Patience(env_timeout)
        self._is_stopped = False
        self.replay_log = None  # the episodes are files already
        self.lock = None if self.output_dir is None else FolderLock(self.output_dir)
        try:
            if resume == "auto":  # nobody else writes from here on
                self.resume = find_checkpoint(resume, self.output_dir)
            callbacks = list(callbacks)
            self.record = OfflineRecord(
                tasks.tasks,
                [*update.metric_names, *Callbacks(callbacks).metric_names],
                extra=[*tasks.extra_names],
                seed=seed,
                device=self.device,
                bins={"reward": loss.world_model.two_hot, "td_target": loss.q_ensemble.two_hot},
            )
            self.callbacks = Callbacks([*self._own_callbacks(logger), *callbacks])
        except BaseException:
            self._unlock()
            raise

    def train(self) -> None:
        """Run until ``steps`` updates, :meth:`stop` or an interrupt; then save.

        Raises:
            CollectionError: an environment failed in an evaluation; what there was is saved.
            FloatingPointError: too many updates in a row were skipped.
            OSError: the last checkpoint could not be written.
            ValueError: a callback with metrics was added after the columns were chosen.
        """
        self._refuse_late_metrics()
        with self.interrupt, self.patience, self._ending():
            if self.resume is not None:
                resume_run(self.resume, self.components, self.callbacks.components, None)
            self.callbacks.on_begin(self)
            counters = self.counters
            while True:
                is_last = counters.updates >= self.steps
                self._write_row(is_last)
                if self._is_evaluation_due(is_last):
                    self.evaluate()
                if is_last or self.is_stopping:
                    break
                if is_due(self.checkpoint_interval, counters.saved, counters.updates):
                    self._save_or_warn()
                self.learn()
            self.save()

    def learn(self) -> None:
        """Do one update."""
        self._refuse_deleted()
        metrics = self.update(self.data.sample())
        self.skipped_updates.add(metrics["skipped_updates"])
        self.counters.updates += 1
        self.callbacks.on_update(self, metrics)
        self.record.update(metrics)

    def evaluate(self) -> None:
        """Evaluate every task without exploring, unless the run is asked to end meanwhile."""
        try:
            with self.record.pause(), self.patience.waiting(self.planner):
                rows = evaluate(
                    self.planner,
                    self.task,
                    episodes=self.eval_episodes,
                    num_envs=self.eval_num_envs,
                    seed=self.seed + EVALUATION_SEED,
                    device=self.device,
                    on_begin=lambda env: self.callbacks.on_evaluation_begin(self, env),
                    on_step=self._on_evaluation_step,
                )
        except LeftEarly:
            return
        except Exception as error:
            who, error = who_failed(None, error)
            self._save_and_raise(f"in the evaluation, {who}", error)
        self.counters.evaluated = self.counters.updates
        rows = self.record.tasks_evaluated(self.counters.updates, rows)
        with self.record.pause():
            for row in rows:
                self.callbacks.on_evaluation(self, row)

    @property
    def components(self) -> dict[str, Any]:
        """What a checkpoint holds beside callbacks and random generators."""
        return {
            **self.update.components,
            "data": self.data,
            "counters": self.counters,
            "skipped_updates": self.skipped_updates,
            "record": self.record,
        }

    # ------------------------------------------------------------------ helpers

    @property
    def _now(self) -> int:
        return self.counters.updates

    @property
    def _progress(self) -> dict[str, int]:
        return {"updates": self._now}

    def _write_row(self, is_last: bool) -> None:
        """At each interval and at the end, once."""
        recorded, now = self.counters.recorded, self.counters.updates
        if is_due(self.row_interval, recorded, now) or (is_last and recorded < now):
            self.counters.recorded = now
            self.callbacks.on_updates(self, self.record.updates(now))
            self.skipped_updates.check()

    def _own_callbacks(self, logger: Logger | None) -> Iterator[Any]:
        """Progress (with tqdm), with ``output_dir`` CSV files, with a logger its rows."""
        if importlib.util.find_spec("tqdm") is not None:
            yield OfflineProgress()
        if self.output_dir is not None:
            columns = self.record.train_columns, self.record.eval_columns
            yield CsvFiles(self.output_dir, *columns, resume=self.resume is not None)
        if logger is not None:
            yield LoggerRows(logger)

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """However the run ends, callbacks hear of it."""
        try:
            yield
        except BaseException:
            with suppress(Exception):  # what ended the run is what is told
                self.callbacks.on_end(self)
            raise
        else:
            self.callbacks.on_end(self)
        finally:
            self._unlock()
