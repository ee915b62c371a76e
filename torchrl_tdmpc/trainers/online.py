"""The online loop: act, remember, learn; evaluate and save now and then."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import Compose, RewardSum, StepCounter, TransformedEnv
from torchrl.objectives import LossModule
from torchrl.record.loggers import Logger

from torchrl_tdmpc.checkpoints import (
    CollectorState,
    FolderLock,
    ReplayLog,
    find_checkpoint,
    resume_run,
    save_run,
)
from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.envs import Task, kill_workers, make_env, seed_generators
from torchrl_tdmpc.objectives import TDMPC2Loss
from torchrl_tdmpc.planners import TDMPC2Planner
from torchrl_tdmpc.recording import CsvFiles, LoggerRows, Progress, ReturnsPlot, RunRecord
from torchrl_tdmpc.trainers import schedule
from torchrl_tdmpc.trainers.agent import Networks, build_networks, describe_agent
from torchrl_tdmpc.trainers.callbacks import Callbacks
from torchrl_tdmpc.trainers.counters import Counters
from torchrl_tdmpc.trainers.evaluation import evaluate
from torchrl_tdmpc.trainers.failures import (
    CollectionError,
    SkippedUpdates,
    summary,
    who_failed,
)
from torchrl_tdmpc.trainers.interrupt import GracefulInterrupt, LeftEarly
from torchrl_tdmpc.trainers.patience import Patience
from torchrl_tdmpc.trainers.replay import build_replay
from torchrl_tdmpc.trainers.schedule import discount_heuristic
from torchrl_tdmpc.trainers.update import TDMPC2Update, count_parameters

__all__ = ["EVALUATION_SEED", "OnlineTrainer"]

EVALUATION_SEED = 1_000_000  # added to the run's: evaluation never meets training's initial states


class OnlineTrainer:
    """Trains one agent on one task, as published: one update for each agent step.

    Every part may be given; those that are not are made with the published settings, on ``device``.
    With parts of your own, seed torch before you make them: the trainer seeds it only where it
    makes the networks.

    Args:
        task: what to train on.

    Keyword Args:
        output_dir: where the run writes its checkpoints and files; None writes nothing.
        steps: agent steps of the run, summed over environments.
        seed_steps: random agent steps before the first update; None takes
            :func:`~torchrl_tdmpc.trainers.seed_steps`.
        num_envs: environments that are stepped together.
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
        collector: what steps the environments, in place of ``num_envs`` and ``workers``. It runs
            the planner, one agent step in each environment at a time, with
            :class:`~torchrl.envs.RewardSum` and :class:`~torchrl.envs.StepCounter`.
        logger: one of TorchRL's loggers, which gets every row.
        callbacks: see :class:`~torchrl_tdmpc.trainers.Callbacks`; they are called after the run's
            own.
        eval_interval: agent steps from one evaluation to the next.
        eval_episodes: episodes of an evaluation; 0 switches evaluation off.
        eval_num_envs: see :func:`~torchrl_tdmpc.trainers.evaluate`.
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
        ValueError: a part or a number that does not fit.

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
        num_envs: int = 1,
        workers: str = "serial",
        env_timeout: float | None = 1800.0,
        model: Mapping[str, Any] | None = None,
        networks: Networks | None = None,
        loss: TDMPC2Loss | None = None,
        auxiliary: Sequence[LossModule] = (),
        update: TDMPC2Update | None = None,
        planner: TDMPC2Planner | None = None,
        replay: EpisodeReplay | None = None,
        collector: Collector | None = None,
        logger: Logger | None = None,
        callbacks: Iterable[Any] = (),
        eval_interval: int = 5_000,
        eval_episodes: int = 3,
        eval_num_envs: int | None = None,
        checkpoint_interval: int = 5_000,
        checkpoint_keep: int = 2,
        max_skipped_updates: int = 100,
        seed: int = 1,
        device: torch.device | str = "cpu",
        resume: str | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        self.task = task
        self.output_dir = None if output_dir is None else Path(output_dir).expanduser()
        self.steps = steps
        if seed_steps is None:
            seed_steps = schedule.seed_steps(task.episode_length, num_envs)
        self.seed_steps = seed_steps
        self.num_envs = num_envs
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

        if networks is None and loss is None and update is None:
            seed_generators(seed)
            model = model or {}
            networks = build_networks(task, model)
        if update is None:
            update = TDMPC2Update(loss or _make_loss(task, networks, self.device), auxiliary)
        self.update = update
        self.planner = planner or _make_planner(task, update.loss)
        self.replay = replay or build_replay(
            task,
            horizon=self.planner.horizon,
            steps=steps,
            num_envs=num_envs,
            networks_device=self.device,
        )
        self.patience = Patience(env_timeout, self._say_that_it_waits)
        self.collector = collector or self._make_collector(workers)
        self.metadata = {
            "agent": describe_agent(task, self.planner, model),
            "config": dict(config or {}),
        }

        self.counters = Counters()
        self.skipped_updates = SkippedUpdates(max_skipped_updates)
        self.interrupt = GracefulInterrupt()
        self.num_truncated_episodes = 0
        self._is_stopped = False
        self._collected: Iterator[TensorDictBase] | None = None
        self._collector_state = CollectorState(self.collector)
        self.lock = None if self.output_dir is None else FolderLock(self.output_dir)
        try:
            if resume == "auto":  # nobody else writes from here on
                self.resume = find_checkpoint(resume, self.output_dir)
            callbacks = list(callbacks)
            metrics = [*update.metric_names, "nan_values", *Callbacks(callbacks).metric_names]
            model, q_ensemble = update.loss.world_model, update.loss.q_ensemble
            self.record = RunRecord(
                metrics,
                extra=list(task.extra_names),
                seed=seed,
                device=self.device,
                bins={"reward": model.two_hot, "td_target": q_ensemble.two_hot},
            )
            self.callbacks = Callbacks([*self._own_callbacks(logger), *callbacks])
        except BaseException:
            self._unlock()
            raise
        self.replay_log = None
        if self.output_dir is not None:
            self.replay_log = ReplayLog(self.replay, self.output_dir / "checkpoints/replay")

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
        if late := set(self.callbacks.metric_names) - set(self.record.metrics):
            raise ValueError(
                f"metric_names {sorted(late)} have no columns, because their callback was added "
                "later; give it to the trainer among its callbacks."
            )
        with self.interrupt, self.patience, self._ending():
            self._resume()
            self.callbacks.on_begin(self)
            counters = self.counters
            while True:
                self.learn()
                is_last = counters.agent_steps >= self.steps
                if self._is_evaluation_due(is_last):
                    self.evaluate()
                if is_last or self.is_stopping:
                    break
                if _is_due(self.checkpoint_interval, counters.saved, counters.agent_steps):
                    self._save_or_warn()
                self.collect()
            self.save()

    def learn(self) -> None:
        """Do as many updates as agent steps; those of the warm-up are made up for at its end."""
        counters = self.counters
        is_warm_up = counters.agent_steps < self.seed_steps
        for _ in range(0 if is_warm_up else counters.agent_steps - counters.updates):
            if self.is_stopping:
                break
            metrics = self.update(self.replay.sample()).set("nan_values", counters.nan_values)
            self.skipped_updates.add(bool(metrics["skipped_updates"]))
            counters.updates += 1
            self.callbacks.on_update(self, metrics)
            self.record.update(metrics)

    def collect(self) -> None:
        """Take one agent step in each environment, and remember it."""
        if self.lock is not None:
            self.lock.refuse_deleted()
        try:
            with self.patience.waiting():
                self._collected = self._collected or iter(self.collector)
                data = next(self._collected)
        except Exception as error:
            self._end_collection(error)
        self.replay.extend(data)
        self.counters.agent_steps += data.numel()
        self.counters.nan_values = data["nan_values"].float().mean()
        self.callbacks.on_collect(self, data)
        ended = data["next"][data["next", "done"].squeeze(-1)]
        rows = self.record.episodes(
            step=self._environment_steps,
            agent_steps=self.counters.agent_steps,
            returns=ended["episode_reward"].flatten().tolist(),
            lengths=ended["step_count"].flatten().tolist(),
            extra={
                name: ended[key].flatten().tolist() for name, key in self.task.extra_names.items()
            },
        )
        for row in rows:
            self.callbacks.on_episode(self, row)

    def evaluate(self) -> None:
        """Evaluate without exploring, unless the run is asked to end meanwhile."""
        try:
            with self.record.pause(), self.patience.waiting():
                memories = self._collector_state.memory
                rows = evaluate(
                    self.planner,
                    self.task,
                    episodes=self.eval_episodes,
                    num_envs=self.eval_num_envs,
                    seed=self.seed + EVALUATION_SEED,
                    device=self.device,
                    memory=memories and memories[0],
                    on_begin=lambda env: self.callbacks.on_evaluation_begin(self, env),
                    on_step=self._on_evaluation_step,
                )
        except LeftEarly:
            return
        except Exception as error:
            self._end_evaluation(error)
        self.counters.evaluated = self.counters.agent_steps
        row = self.record.evaluation(
            step=self._environment_steps,
            agent_steps=self.counters.agent_steps,
            returns=[row["return"] for row in rows],
            lengths=[row["length"] for row in rows],
            extra={name: [row[name] for row in rows] for name in self.task.extra_names},
        )
        with self.record.pause():
            self.callbacks.on_evaluation(self, row)

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the disk is full or fails; the earlier checkpoints are as they were.
        """
        self.counters.saved = self.counters.agent_steps
        if self.output_dir is None:
            return
        with self.record.pause():
            path = save_run(
                self.output_dir / "checkpoints",
                self.counters.agent_steps,
                self.components,
                self.callbacks.components,
                self.replay_log,
                metadata={
                    "agent_steps": self.counters.agent_steps,
                    "environment_steps": self._environment_steps,
                    **self.metadata,
                },
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
    def _environment_steps(self) -> int:
        return self.counters.agent_steps * self.task.action_repeat

    def _is_evaluation_due(self, is_last: bool) -> bool:
        """At each interval and at the end, once."""
        evaluated, now = self.counters.evaluated, self.counters.agent_steps
        due = _is_due(self.eval_interval, evaluated, now) or (is_last and evaluated < now)
        return due and self.eval_episodes > 0 and not self.is_stopping

    def _on_evaluation_step(self) -> None:
        self.patience.begin()
        self.interrupt.raise_if_requested()
        self.callbacks.on_evaluation_step(self)

    def _make_collector(self, workers: str) -> Collector:
        env = make_env(
            self.task, num_envs=self.num_envs, seed=self.seed, device=self.device, workers=workers
        )
        self._starting = env
        try:
            with self.patience as patience, patience.waiting():
                return Collector(
                    TransformedEnv(env, Compose(RewardSum(), StepCounter())),
                    self.planner,
                    frames_per_batch=self.num_envs,
                    init_random_frames=self.seed_steps,
                    auto_register_policy_transforms=True,
                )
        except Exception as error:
            who, error = who_failed(env, error)
            kill_workers(env)
            raise CollectionError(f"{who} at the start ({summary(error)}).") from error
        finally:
            self._starting = None

    def _say_that_it_waits(self, seconds: float) -> None:
        ready = ""
        if self._starting is not None:
            ready = f" ({int(self._starting.ready.sum())} of {self.num_envs} are ready)"
        print(f"waiting for the environments for {seconds:g} seconds{ready}", flush=True)

    def _own_callbacks(self, logger: Logger | None) -> Iterator[Any]:
        """Progress; with ``output_dir`` CSV files and their plot; with a logger its rows.

        Progress and plot need tqdm and matplotlib, which the extra ``cli`` brings.
        """
        if importlib.util.find_spec("tqdm") is not None:
            yield Progress()
        if self.output_dir is not None:
            is_resumed = self.resume is not None
            columns = self.record.train_columns, self.record.eval_columns
            yield CsvFiles(self.output_dir, *columns, resume=is_resumed)
            if importlib.util.find_spec("matplotlib") is not None:
                yield ReturnsPlot(self.output_dir, title=self._title)
        if logger is not None:
            yield LoggerRows(logger)

    @property
    def _title(self) -> str:
        millions = sum(count_parameters(self.update).values()) / 2e6  # the total is among them
        return f"{self.task.name}, {millions:.1f}M parameters, seed {self.seed}"

    def _resume(self) -> None:
        """Put everything where the checkpoint says, if there is one."""
        if self.resume is None:
            return
        resume_run(self.resume, self.components, self.callbacks.components, self.replay_log)
        if self._collector_state.restarted:
            self.num_truncated_episodes = self.replay.truncate()

    def _save_or_warn(self) -> None:
        """Write a checkpoint; if that fails, the run goes on with the earlier ones."""
        try:
            self.save()
        except OSError as error:
            warnings.warn(
                f"the checkpoint could not be saved, the earlier ones are kept: {error}",
                stacklevel=2,
            )

    def _end_collection(self, error: Exception) -> NoReturn:
        """Save what is left when an environment failed, and say so in one sentence."""
        env = self._collector_state.env
        who, error = who_failed(env, error)
        kill_workers(env)  # what they would answer now is of no use
        self._collector_state.failed = True
        self._save_or_warn()
        raise CollectionError(f"{who} {self._when(error)}") from error

    def _end_evaluation(self, error: Exception) -> NoReturn:
        """Save the run when an evaluation failed, of which training itself knows nothing."""
        self._save_or_warn()
        who, error = who_failed(None, error)
        raise CollectionError(f"in the evaluation, {who} {self._when(error)}") from error

    def _when(self, error: Exception) -> str:
        saved = ""
        if self.output_dir is not None:
            saved = f"; the run is saved, and resume={self.output_dir} goes on with it"
        return f"after agent step {self.counters.agent_steps} ({summary(error)}){saved}."

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
            self._unlock()

    def _unlock(self) -> None:
        if self.lock is not None:
            self.lock.release()


def _is_due(interval: int, before: int, now: int) -> bool:
    """Whether a multiple of ``interval`` was reached after ``before`` and by ``now``."""
    return now // interval > before // interval


def _make_loss(task: Task, networks: Networks, device: torch.device) -> TDMPC2Loss:
    networks = [network.to(device) for network in networks]
    discount = discount_heuristic(task.episode_length, task.discount_cap)
    return TDMPC2Loss(*networks, discount=discount, rho=task.rho).to(device)


def _make_planner(task: Task, loss: TDMPC2Loss) -> TDMPC2Planner:
    networks = loss.world_model, loss.policy_prior, loss.q_ensemble
    return TDMPC2Planner(*networks, discount=loss.discount)
