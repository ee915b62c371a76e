"""The online loop: act, remember, learn; evaluate and save now and then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.collectors import BaseCollector
from torchrl.envs import EnvBase

from torchrl_tdmpc.checkpoints import ActorsState, CollectorState, resume_run
from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.envs import Task, WorkerError, kill_workers
from torchrl_tdmpc.planners import TDMPC2Planner
from torchrl_tdmpc.trainers.background import BackgroundEvaluator
from torchrl_tdmpc.trainers.base import Loop
from torchrl_tdmpc.trainers.counters import Counters
from torchrl_tdmpc.trainers.evaluation import evaluate
from torchrl_tdmpc.trainers.failures import SkippedUpdates, who_failed
from torchrl_tdmpc.trainers.interrupt import LeftEarly
from torchrl_tdmpc.trainers.schedule import is_due
from torchrl_tdmpc.trainers.update import TDMPC2Update

__all__ = ["EVALUATION_SEED", "OnlineLoop"]

IN_EVALUATION = "in the evaluation, "  # begins a sentence
EVALUATION_SEED = 1_000_000  # added to the run's: evaluation never meets training's initial states


class OnlineLoop(Loop):
    """How a run goes, once its parts are there: updates for each agent step, 1 as published.

    :class:`~torchrl_tdmpc.OnlineTrainer` sets these attributes, and documents them.
    """

    unit = "agent step"

    task: Task
    steps: int
    seed_steps: int
    eval_num_envs: int | None
    checkpoint_interval: int
    seed: int
    device: torch.device
    resume: Path | None

    update: TDMPC2Update
    planner: TDMPC2Planner
    replay: EpisodeReplay
    collector: BaseCollector

    counters: Counters
    skipped_updates: SkippedUpdates
    num_truncated_episodes: int
    evaluator: BackgroundEvaluator | None
    _evaluating: int | None
    _collected: Iterator[TensorDictBase] | None
    _collector_state: CollectorState | ActorsState

    def train(self) -> None:
        """Run until ``steps`` agent steps, :meth:`stop` or an interrupt; then save.

        Raises:
            FloatingPointError: too many updates in a row were skipped.
            ReplayError: what the environments sent cannot be learned from.
            CollectionError: an environment failed, gave no answer or its process died, in training
                or in an evaluation; what there was is saved.
            OSError: the last checkpoint could not be written.
            ValueError: a callback with metrics was added after the columns were chosen.
        """
        self._refuse_late_metrics()
        with self.interrupt, self.patience, self._ending():
            self._resume()
            self.callbacks.on_begin(self)
            counters = self.counters
            while True:
                self.learn()
                self._take_evaluation()
                is_last = counters.agent_steps >= self.steps
                if self._is_evaluation_due(is_last):
                    self.evaluate()
                if is_last or self.is_stopping:
                    break
                if is_due(self.checkpoint_interval, counters.saved, counters.agent_steps):
                    self._save_or_warn()
                self.collect()
            self._take_evaluation(wait=True)
            self.save()

    def learn(self) -> None:
        """Do the updates that are due; those of the warm-up are made up for at its end."""
        counters = self.counters
        is_warm_up = counters.agent_steps < self.seed_steps
        for _ in range(0 if is_warm_up else counters.updates_due):
            if self.is_stopping:
                break
            metrics = self.update(self.replay.sample()).set("nan_values", counters.nan_values)
            self.skipped_updates.add(metrics["skipped_updates"])
            counters.updates += 1
            self.callbacks.on_update(self, metrics)
            self.record.update(metrics)

    def collect(self) -> None:
        """Take one agent step in each environment, and remember it.

        The environments need the actions, so here the host waits for the device, once. What is read
        of the device afterwards is there already.
        """
        self._refuse_deleted()
        try:
            with self.patience.waiting(self.planner):
                self._collected = self._collected or iter(self.collector)
                data = next(self._collected)
        except Exception as error:
            self._fail(error, self._collector_state.env)
        self.skipped_updates.check()
        self.replay.extend(data)
        self.counters.agent_steps += data.numel()
        self.counters.nan_values = data["nan_values"].float().mean()
        self.callbacks.on_collect(self, data)
        done = data["next", "done"].squeeze(-1).cpu()
        if done.any():
            self._record_episodes(data["next"], done)

    def evaluate(self) -> None:
        """Evaluate without exploring, unless the run is asked to end meanwhile.

        In the background the evaluation only begins here; one that has not ended is waited for.
        """
        self._take_evaluation(wait=True)
        if self.is_stopping:
            return
        memories = self._collector_state.memory
        settings = {
            "episodes": self.eval_episodes,
            "num_envs": self.eval_num_envs,
            "seed": self.seed + EVALUATION_SEED,
            "device": self.device,
            "memory": memories and memories[0],
        }
        if self.evaluator is not None:
            try:
                self.evaluator.begin(self.planner, self.task, **settings)
            except WorkerError as error:
                self._fail(error, where=IN_EVALUATION)
            self._evaluating = self.counters.agent_steps
            return
        try:
            with self.record.pause(), self.patience.waiting(self.planner):
                rows = evaluate(
                    self.planner,
                    self.task,
                    **settings,
                    on_begin=lambda env: self.callbacks.on_evaluation_begin(self, env),
                    on_step=self._on_evaluation_step,
                )
        except LeftEarly:
            return
        except Exception as error:
            self._fail(error, where=IN_EVALUATION)
        self._record_evaluation(rows, self.counters.agent_steps)

    @property
    def components(self) -> dict[str, Any]:
        """What a checkpoint holds beside callbacks, replay and random generators."""
        return {
            **self.update.components,
            "collector": self._collector_state,
            "counters": self.counters,
            "skipped_updates": self.skipped_updates,
            "record": self.record,
        }

    # ------------------------------------------------------------------ helpers

    @property
    def _now(self) -> int:
        return self.counters.agent_steps

    @property
    def _progress(self) -> dict[str, int]:
        return {"agent_steps": self._now, "environment_steps": self._environment_steps}

    @property
    def _environment_steps(self) -> int:
        return self.counters.agent_steps * self.task.action_repeat

    def _record_episodes(self, steps: TensorDictBase, done: Tensor) -> None:
        """A row for each episode that ended in ``steps`` ``[num_envs, 1]``."""
        extra = self.task.extra_names
        ended = steps.select("episode_reward", "step_count", *extra.values()).cpu()[done]
        rows = self.record.episodes(
            step=self._environment_steps,
            agent_steps=self.counters.agent_steps,
            returns=ended["episode_reward"].flatten().tolist(),
            lengths=ended["step_count"].flatten().tolist(),
            extra={name: ended[key].flatten().tolist() for name, key in extra.items()},
        )
        for row in rows:
            self.callbacks.on_episode(self, row)

    def _take_evaluation(self, *, wait: bool = False) -> None:
        """Record the evaluation in the background if it has ended, or wait until it has.

        A run that is asked to end does not wait. The evaluation is begun again when it is resumed.
        """
        if self._evaluating is None:
            return
        while not self.evaluator.is_ready(seconds=0.1 if wait else 0.0):
            if not wait or self.is_stopping:
                return
        agent_steps, self._evaluating = self._evaluating, None
        try:
            rows = self.evaluator.take()
        except WorkerError as error:
            self._fail(error, where=IN_EVALUATION)
        self._record_evaluation(rows, agent_steps)

    def _record_evaluation(self, rows: list[dict[str, Any]], agent_steps: int) -> None:
        """A row for the evaluation of the networks as they were after so many agent steps."""
        self.counters.evaluated = agent_steps
        row = self.record.evaluation(
            step=agent_steps * self.task.action_repeat,
            agent_steps=agent_steps,
            returns=[row["return"] for row in rows],
            lengths=[row["length"] for row in rows],
            extra={name: [row[name] for row in rows] for name in self.task.extra_names},
        )
        with self.record.pause():
            self.callbacks.on_evaluation(self, row)

    @property
    def _last_evaluation(self) -> int:
        """Agent steps at the last evaluation that has begun."""
        return self.counters.evaluated if self._evaluating is None else self._evaluating

    def _resume(self) -> None:
        """Put everything where the checkpoint says, if there is one."""
        if self.resume is None:
            return
        resume_run(self.resume, self.components, self.callbacks.components, self.replay_log)
        if self._collector_state.restarted:
            self.num_truncated_episodes = self.replay.truncate()

    def _fail(
        self, error: Exception, env: EnvBase | BaseCollector | None = None, where: str = ""
    ) -> NoReturn:
        """Save what is left when environments failed, and say so in one sentence.

        Args:
            error: what was raised.
            env: the run's environments, if they are the ones that failed.
            where: begins the sentence.
        """
        who, error = who_failed(env, error)
        if env is not None:
            kill_workers(env)  # what they would answer now is of no use
            self._collector_state.failed = True
        self._save_and_raise(f"{where}{who}", error)

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """However the run ends: callbacks hear of it, and the environments are closed."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):  # asked twice: no step is waited for
                kill_workers(self._collector_state.env)
            with suppress(Exception):  # what ended the run is what is told
                self.callbacks.on_end(self)
            raise
        else:
            self.callbacks.on_end(self)
            self.collector.shutdown()
        finally:
            self.collector.shutdown(raise_on_error=False)
            if self.evaluator is not None:
                self.evaluator.shutdown()
            self._unlock()
