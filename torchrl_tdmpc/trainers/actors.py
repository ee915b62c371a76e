"""Actors: environments and a copy of the planner, in processes of their own beside the learner."""

from __future__ import annotations

import copy
import functools
import os
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import MultiAsyncCollector
from torchrl.envs import Compose, RewardSum, StepCounter, TransformedEnv
from torchrl.weight_update import SharedMemWeightSyncScheme

from torchrl_tdmpc.envs import (
    Task,
    env_memory,
    env_seeds,
    make_env,
    make_in_worker,
    shared_messages,
)
from torchrl_tdmpc.planners import TDMPC2Planner
from torchrl_tdmpc.recording import say_waiting
from torchrl_tdmpc.torchrl_series import num_frames, set_num_frames
from torchrl_tdmpc.trainers.failures import CollectionError, summary, who_failed
from torchrl_tdmpc.trainers.patience import Patience
from torchrl_tdmpc.trainers.schedule import is_due

__all__ = ["Actors", "SendWeights"]

UPDATES_KEY = "weights_updates"


class StampedPolicy(TensorDictModuleBase):
    """A planner that also writes how many updates its weights have had.

    Args:
        planner: what acts.
        updates_key: where the number is written, ``[*envs]``.

    Examples:
        >>> from torchrl_tdmpc.modules import MODEL_SIZES, make_networks
        >>> planner = TDMPC2Planner(*make_networks((3,), 2, MODEL_SIZES[1]), discount=0.99)
        >>> data = TensorDict(
        ...     observation=torch.randn(4, 3), _previous_mean=torch.zeros(4, 3, 2), batch_size=4
        ... )
        >>> StampedPolicy(planner)(data)["weights_updates"]
        tensor([0, 0, 0, 0])
    """

    def __init__(self, planner: TDMPC2Planner, updates_key: NestedKey = UPDATES_KEY):
        super().__init__()
        self.planner = planner
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.in_keys = planner.in_keys
        self.out_keys = [*planner.out_keys, updates_key]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Plan, and write the number."""
        stamp = self.updates.to(tensordict.device).expand(tensordict.batch_size).clone()
        return self.planner(tensordict).set(self.out_keys[-1], stamp)

    def take_weights(self, planner: TDMPC2Planner, updates: int) -> None:
        """Copy the weights of another planner, which have had so many updates."""
        weights = TensorDict.from_module(self.planner).data
        weights.update_(TensorDict.from_module(planner).data)
        self.updates.fill_(updates)


class Actors(MultiAsyncCollector):
    """A collector whose environments are stepped while the learner updates.

    Each process, an *actor*, owns some of the environments and plans for them together. It takes
    one agent step in each of them, hands these over, and takes the next while the learner updates.
    Then it waits until the learner has taken them. A learner without steps waits too. Nothing is
    dropped, so the trainer's ``utd`` holds for every step that arrived; at most ``num_envs`` others
    are under way.

    All actors share one copy of the planner's weights. The trainer sends the learner's to it every
    ``sync_interval`` updates; a loop of your own calls :meth:`send`. An actor reads them while it
    plans: a plan may see a part of the old weights and a part of the new ones.

    The threads that torch uses are divided among actors and learner.

    Args:
        task: what the environments pose.
        planner: what acts; the actors get a copy.
        num_envs: environments of all actors together.
        num_actors: processes; each has ``num_envs / num_actors`` environments.
        sync_interval: updates from one sending of weights to the next.
        random_steps: first agent steps that are random, summed over environments. Those that are
            under way when they are over are random too.
        seed: of the environments and of the draws of each planner.
        device: where the planners are.
        env_timeout: see :class:`~torchrl_tdmpc.trainers.Patience`; it holds for the start.

    Raises:
        CollectionError: an environment failed, or gave no answer in time.
        ValueError: environments that cannot be divided among the actors, or that remember
            something across episodes.

    Attributes:
        told: the error that each actor ended with; see :func:`~torchrl_tdmpc.envs.shared_messages`.
        ready: 1 for each actor that has made its environments.
    """

    def __init__(
        self,
        task: Task,
        planner: TDMPC2Planner,
        *,
        num_envs: int,
        num_actors: int = 1,
        sync_interval: int = 10,
        random_steps: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        env_timeout: float | None = 1800.0,
    ):
        envs_each = refuse_actors(task, num_envs, num_actors, sync_interval)
        self.sync_interval = sync_interval
        threads = torch.get_num_threads()
        threads_each = max(1, threads // (num_actors + 1))
        self.told, self.ready = shared_messages(num_actors)
        self._threads = threads
        self._is_shut_down = False
        self._scheme = SharedMemWeightSyncScheme()

        def on_wait(seconds: float) -> None:
            say_waiting(seconds, f"{int(self.ready.sum())} of {num_actors} actors have made theirs")

        make = functools.partial(make_actor_env, task, envs_each, device)
        try:
            with Patience(env_timeout, on_wait) as patience, patience.waiting():
                super().__init__(
                    num_actors * [functools.partial(make_in_worker, os.getpid(), make=make)],
                    StampedPolicy(copy.deepcopy(planner)),
                    create_env_kwargs=[
                        {"seed": env_seed, "told": told, "ready": ready}
                        for env_seed, told, ready in zip(
                            env_seeds(seed, num_actors), self.told, self.ready, strict=True
                        )
                    ],
                    frames_per_batch=envs_each,
                    init_random_frames=random_steps,
                    auto_register_policy_transforms=True,
                    weight_sync_schemes={"policy": self._scheme},
                    num_threads=max(1, threads - num_actors * threads_each),
                    num_sub_threads=threads_each,
                )
        except Exception as error:
            who, error = who_failed(self, error)
            raise CollectionError(f"{who} at the start ({summary(error)}).") from error

    @property
    def _queue_len(self) -> int:
        """One place for each actor: with fewer, TorchRL drops steps that wait for a second."""
        return self.num_workers

    @property
    def num_frames(self) -> int:
        """Agent steps that arrived."""
        return num_frames(self)

    def go_on(self, frames: int, seed: int) -> None:
        """Go on after as many agent steps, with new episodes."""
        set_num_frames(self, frames)
        self.set_seed(seed)

    def send(self, planner: TDMPC2Planner, updates: int) -> None:
        """Bring the weights that the actors share up to date.

        Args:
            planner: has the weights.
            updates: how many updates they have had.
        """
        self.policy.take_weights(planner, updates)

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """End the processes, and give the learner all threads back; once."""
        if self._is_shut_down:  # called again when the object is freed
            return
        self._is_shut_down = True
        self._scheme.shutdown()  # else it does so when Python ends, which is too late
        try:
            super().shutdown(*args, **kwargs)
        finally:
            torch.set_num_threads(self._threads)


class SendWeights:
    """Callback that sends the learner's weights to :class:`Actors` at their interval.

    It adds a metric: ``policy_lag``, how many updates the weights that chose an action were behind
    the learner's when the step arrived.

    Args:
        actors: get the weights.
        planner: the learner's.
    """

    metric_names = ("policy_lag",)

    def __init__(self, actors: Actors, planner: TDMPC2Planner):
        self.actors, self.planner = actors, planner
        self._sent = 0
        self._lag = torch.zeros(())

    def on_begin(self, trainer: Any) -> None:
        """Send the weights that the run begins or goes on with."""
        self._send(trainer.counters.updates)

    def on_collect(self, trainer: Any, data: TensorDictBase) -> None:
        """Note how old the weights were."""
        self._lag = trainer.counters.updates - data[UPDATES_KEY].float().mean()

    def on_update(self, trainer: Any, metrics: TensorDictBase) -> None:
        """Send the weights if it is time."""
        metrics.set("policy_lag", self._lag)
        if is_due(self.actors.sync_interval, self._sent, trainer.counters.updates):
            self._send(trainer.counters.updates)

    def _send(self, updates: int) -> None:
        self.actors.send(self.planner, updates)
        self._sent = updates


def refuse_actors(task: Task, num_envs: int, num_actors: int, sync_interval: int) -> int:
    """Name what keeps the environments of a task from being divided among actors.

    Returns:
        The number of environments of each actor.

    Raises:
        ValueError: something does.
    """
    if sync_interval < 1:
        raise ValueError(f"sync_interval is {sync_interval}; it must be at least 1.")
    if not 1 <= num_actors <= num_envs or num_envs % num_actors:
        raise ValueError(
            f"num_actors is {num_actors}, but there are {num_envs} environments; it must divide "
            "their number."
        )
    if task.num_envs is not None and num_actors > 1:
        raise ValueError(
            f"num_actors is {num_actors}, but the environments of task {task.name!r} are one batch "
            "by nature; choose 1."
        )
    env = make_env(task)
    try:
        if env_memory(env) is not None:
            raise ValueError(
                f"the environments of task {task.name!r} remember something across episodes, "
                "which actors do not tell the evaluation; choose a collector in this process."
            )
    finally:
        env.close()
    return num_envs // num_actors


def make_actor_env(
    task: Task, num_envs: int, device: torch.device | str, seed: int
) -> TransformedEnv:
    """The environments of one actor."""
    env = make_env(task, num_envs=num_envs, seed=seed, device=device)
    return TransformedEnv(env, Compose(RewardSum(), StepCounter()))
