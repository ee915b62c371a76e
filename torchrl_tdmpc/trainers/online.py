"""The trainer: a run on one task, whose parts are made where they are not given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torchrl.collectors import BaseCollector, Collector
from torchrl.objectives import LossModule
from torchrl.record.loggers import Logger

from torchrl_tdmpc.checkpoints import (
    ActorsState,
    CollectorState,
    FolderLock,
    ReplayLog,
    find_checkpoint,
)
from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.envs import Task, resolve_num_envs, seed_generators, unknown
from torchrl_tdmpc.objectives import TDMPC2Loss
from torchrl_tdmpc.planners import TDMPC2Planner
from torchrl_tdmpc.recording import RunRecord, default_callbacks, say_waiting
from torchrl_tdmpc.trainers import schedule
from torchrl_tdmpc.trainers.actors import SendWeights
from torchrl_tdmpc.trainers.agent import Networks, build_networks, describe_agent
from torchrl_tdmpc.trainers.background import BackgroundEvaluator
from torchrl_tdmpc.trainers.callbacks import Callbacks
from torchrl_tdmpc.trainers.counters import Counters
from torchrl_tdmpc.trainers.failures import (
    SkippedUpdates,
)
from torchrl_tdmpc.trainers.interrupt import GracefulInterrupt
from torchrl_tdmpc.trainers.loop import OnlineLoop
from torchrl_tdmpc.trainers.parts import (
    make_loss,
    make_planner,
    refuse_conflicts,
    start_collector,
)
from torchrl_tdmpc.trainers.patience import Patience
from torchrl_tdmpc.trainers.replay import build_replay
from torchrl_tdmpc.trainers.update import TDMPC2Update, count_parameters

__all__ = ["EVAL_MODES", "OnlineTrainer"]

EVAL_MODES = ("inline", "background")


class OnlineTrainer(OnlineLoop):
    """Trains one agent on one task, as published unless told otherwise.

    Every part may be given; those that are not are made with the published settings, on ``device``.
    With parts of your own, seed torch before you make them: the trainer seeds it only where it
    makes the networks.

    Args:
        task: what to train on.

    Keyword Args:
        output_dir: where the run writes its checkpoints and files; None writes nothing.
        steps: agent steps of the run, summed over environments.
        seed_steps: random agent steps before the first update; None takes
            :func:`~torchrl_tdmpc.trainers.seed_steps`. In a task of a model of several, which
            learned before, they are the model's own, with exploration.
        utd: updates for each agent step (update-to-data ratio), 1 as published; a fraction saves
            time where many environments step together. It holds for the steps of the random warm-up
            too, whose updates are done at its end.
        num_envs: environments that are stepped together; None takes 1, or as many as a batch of the
            task has.
        workers: see :func:`~torchrl_tdmpc.envs.make_env`.
        env_timeout: seconds after which environments that give no answer (to a start, a reset, a
            step) end the run; None waits for ever. See :class:`~torchrl_tdmpc.trainers.Patience`.
        model: settings of :func:`~torchrl_tdmpc.trainers.build_networks`; 1M parameters when not
            given. They also go into the checkpoints, from which
            :func:`~torchrl_tdmpc.trainers.load_agent` builds the networks again.
        networks: world model, policy prior and Q ensemble.
        loss: the objective of these networks, in place of ``networks``.
        auxiliary: further losses; see :class:`TDMPC2Update`.
        update: how ``loss`` and ``auxiliary`` are minimised, in place of both.
        planner: what acts; it must share its networks with the loss.
        replay: what is remembered; its batches must go to ``device``.
        collector: what steps the environments, in place of ``workers``. It runs
            the planner, one agent step in each environment at a time, with
            :class:`~torchrl.envs.RewardSum` and :class:`~torchrl.envs.StepCounter`.
            :class:`Actors`, or those of ``ray_actors``, step the environments while the learner
            updates.
        logger: one of TorchRL's loggers, which gets every row.
        callbacks: see :class:`~torchrl_tdmpc.trainers.Callbacks`; they are called after the run's
            own.
        eval_interval: agent steps from one evaluation to the next.
        eval_episodes: episodes of an evaluation; 0 switches evaluation off.
        eval_num_envs: see :func:`~torchrl_tdmpc.trainers.evaluate`.
        eval_mode: ``"inline"`` evaluates before training goes on; ``"background"`` in a process of
            its own, with the weights of that moment, while it goes on. The rows are the same.
        checkpoint_interval: agent steps from one checkpoint to the next.
        checkpoint_keep: newest checkpoints that are kept.
        max_skipped_updates: updates in a row that may be skipped because of a loss or gradient that
            is not finite; one more ends the run.
        seed: of the networks, the environments and the evaluations.
        device: where the networks are, and the replay if it fits beside them.
        resume: None begins a new run; ``"auto"`` goes on with that in ``output_dir`` if there is
            one; a path goes on with that checkpoint.
        config: what else the checkpoints record: plain nested dictionaries.

    Raises:
        FileExistsError: ``output_dir`` holds a run already, or another process writes to it.
        FileNotFoundError: there is nothing to resume.
        ValueError: a part or a number that does not fit, or a part that another one holds already.

    Attributes:
        counters: how far the run is.
        num_truncated_episodes: episodes that a resume had to end, because their environments could
            not be put where they were.
        is_stopping: whether the run ends after what it is doing.

    Examples:
        >>> import tempfile
        >>> from torchrl_tdmpc.envs import load_task
        >>> task = load_task("dmcontrol", "cartpole-balance", episode_length=10)
        >>> model = {"size": 1, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = OnlineTrainer(
        ...         task, output_dir=folder, model=model, steps=12, seed_steps=10, eval_episodes=0
        ...     )
        ...     trainer.train()
        >>> trainer.counters.agent_steps, trainer.counters.updates
        (12, 12)
    """

    def __init__(
        self,
        task: Task,
        *,
        output_dir: str | Path | None = None,
        steps: int = 50_000,
        seed_steps: int | None = None,
        utd: float = 1.0,
        num_envs: int | None = None,
        workers: str = "serial",
        env_timeout: float | None = 1800.0,
        model: Mapping[str, Any] | None = None,
        networks: Networks | None = None,
        loss: TDMPC2Loss | None = None,
        auxiliary: Sequence[LossModule] = (),
        update: TDMPC2Update | None = None,
        planner: TDMPC2Planner | None = None,
        replay: EpisodeReplay | None = None,
        collector: BaseCollector | None = None,
        logger: Logger | None = None,
        callbacks: Iterable[Any] = (),
        eval_interval: int = 5_000,
        eval_episodes: int = 3,
        eval_num_envs: int | None = None,
        eval_mode: Literal["inline", "background"] = "inline",
        checkpoint_interval: int = 5_000,
        checkpoint_keep: int = 2,
        max_skipped_updates: int = 100,
        seed: int = 1,
        device: torch.device | str = "cpu",
        resume: str | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        refuse_conflicts(networks=networks, loss=loss, auxiliary=tuple(auxiliary), update=update)
        self.task = task
        self.output_dir = None if output_dir is None else Path(output_dir).expanduser()
        num_envs = resolve_num_envs(task, num_envs)
        resolve_num_envs(task, eval_num_envs, "eval_num_envs")
        self.steps, self.num_envs = steps, num_envs
        if seed_steps is None:
            seed_steps = schedule.seed_steps(task.episode_length, num_envs)
        self.seed_steps = seed_steps
        self.eval_interval, self.eval_episodes = eval_interval, eval_episodes
        self.eval_num_envs = eval_num_envs
        if eval_mode not in EVAL_MODES:
            raise unknown("eval_mode", eval_mode, EVAL_MODES)
        in_background = eval_mode == "background"
        self.evaluator = BackgroundEvaluator(env_timeout) if in_background else None
        self._evaluating = None
        self.checkpoint_interval, self.checkpoint_keep = checkpoint_interval, checkpoint_keep
        self.seed, self.device = seed, torch.device(device)
        if resume is not None and output_dir is None:
            raise ValueError(
                f"resume is {str(resume)!r}, but output_dir is None; a run is resumed in the "
                "folder that it wrote to."
            )
        self.resume = None if resume is None else find_checkpoint(resume, self.output_dir)

        # What learns, acts and remembers, and what steps the environments
        if networks is None and loss is None and update is None:
            seed_generators(seed)
            model = model or {}
            networks = build_networks(task, model)
        if update is None:
            update = TDMPC2Update(loss or make_loss(task, networks, self.device), auxiliary)
        self.update = update
        self.planner = planner or make_planner(update.loss)
        self.replay = replay or build_replay(
            task,
            horizon=self.planner.horizon,
            steps=steps,
            num_envs=num_envs,
            networks_device=self.device,
        )
        self.patience = Patience(env_timeout, say_waiting)
        if collector is None:
            collector = start_collector(
                task,
                self.planner,
                num_envs=num_envs,
                workers=workers,
                env_timeout=env_timeout,
                random_steps=seed_steps if task.model_tasks is None else 0,
                seed=seed,
                device=self.device,
            )
        self.collector = collector

        # How far the run is, and what a checkpoint tells of it
        self.counters = Counters(utd=utd)
        self.skipped_updates = SkippedUpdates(max_skipped_updates)
        self.interrupt = GracefulInterrupt()
        self.num_truncated_episodes = 0
        self.metadata = {
            "agent": describe_agent(task, self.planner, model),
            "config": dict(config or {}),
        }
        self._is_stopped = False
        self._collected: Iterator[TensorDictBase] | None = None
        has_actors = not isinstance(collector, Collector)
        self._collector_state = (ActorsState if has_actors else CollectorState)(collector)

        # What is written, from here on by nobody else
        self.lock = None if self.output_dir is None else FolderLock(self.output_dir)
        try:
            if resume == "auto":
                self.resume = find_checkpoint(resume, self.output_dir)
            callbacks = list(callbacks)
            if has_actors:
                callbacks.insert(0, SendWeights(self.collector, self.planner))
            self.record = self._make_record(Callbacks(callbacks).metric_names)
            own = default_callbacks(
                self.output_dir,
                self.record,
                title=self._title,
                task=self.task.name,
                is_resumed=self.resume is not None,
                logger=logger,
            )
            self.callbacks = Callbacks([*own, *callbacks])
        except BaseException:
            self._unlock()
            raise
        self.replay_log = None
        if self.output_dir is not None:
            self.replay_log = ReplayLog(self.replay, self.output_dir / "checkpoints/replay")

    def _make_record(self, further_metrics: list[str]) -> RunRecord:
        update = self.update
        return RunRecord(
            [*update.metric_names, "nan_values", *further_metrics],
            extra=list(self.task.extra_names),
            seed=self.seed,
            device=self.device,
            bins={
                "reward": update.loss.world_model.two_hot,
                "td_target": update.loss.q_ensemble.two_hot,
            },
        )

    @property
    def _title(self) -> str:
        millions = sum(count_parameters(self.update).values()) / 2e6  # the total is among them
        return f"{self.task.name}, {millions:.1f}M parameters, seed {self.seed}"
