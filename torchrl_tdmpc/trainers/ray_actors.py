"""Actors on the machines of a Ray cluster."""

from __future__ import annotations

import copy
import functools
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.collectors.distributed import RayCollector
from torchrl.envs import EnvBase

from torchrl_tdmpc.envs import Task, WorkerError, env_seeds, seed_generators
from torchrl_tdmpc.planners import TDMPC2Planner
from torchrl_tdmpc.torchrl_series import set_num_frames
from torchrl_tdmpc.trainers.actors import StampedPolicy, make_actor_env, refuse_actors
from torchrl_tdmpc.trainers.failures import CollectionError

__all__ = ["RayActors"]

IDS_EACH = 2**40  # trajectory ids that each actor has for itself
ENDLESS = 10**15  # agent steps; a RayCollector needs a number


class RemoteCollector(Collector):
    """The collector of one actor; its trajectory ids are nobody else's."""

    def iterator(self) -> Iterator[TensorDictBase]:
        """Collect, and number trajectories apart from those of other actors."""
        for data in super().iterator():
            ids = data["collector", "traj_ids"] + self.worker_idx * IDS_EACH
            yield data.set(("collector", "traj_ids"), ids)

    def __bool__(self) -> bool:
        """True: Ray asks when it tells an error, and a collector without end has no length."""
        return True

    def go_on(self, frames: int, seed: int) -> None:
        """Go on after as many agent steps, with new episodes."""
        set_num_frames(self, frames)
        self.set_seed(seed)
        torch.manual_seed(seed)
        self.reset()


class RayActors(RayCollector):
    """The same as :class:`~torchrl_tdmpc.trainers.Actors`, on the machines of a Ray cluster.

    It joins the cluster that the environment variable ``RAY_ADDRESS`` names, or else starts one on
    this machine. The learner's weights are sent to each actor, which has a copy of its own.

    Args:
        task: what the environments pose.
        planner: what acts; the actors get copies.
        num_envs: environments of all actors together.
        num_actors: Ray actors; each has ``num_envs / num_actors`` environments.
        sync_interval: updates from one sending of weights to the next.
        random_steps: first agent steps that are random, summed over environments.
        seed: of the environments and of the draws of each planner.
        device: where the planners are, on each actor's machine.
        resources: what each actor asks the cluster for, as ``ray.remote`` takes it.

    Raises:
        CollectionError: an environment failed at the start.
        ImportError: Ray is not installed.
        ValueError: environments that cannot be divided among the actors, or that remember
            something across episodes.
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
        resources: Mapping[str, Any] | None = None,
    ):
        if importlib.util.find_spec("ray") is None:
            raise ImportError("RayActors need ray: pip install 'torchrl_tdmpc[ray]'")
        envs_each = refuse_actors(task, num_envs, num_actors, sync_interval)
        self.sync_interval = sync_interval
        make = functools.partial(_make_env, task, planner, envs_each, device)
        with warnings.catch_warnings(), _telling_the_start():
            # Each actor counts its own random steps
            warnings.filterwarnings("ignore", message="async distributed data collection with init")
            super().__init__(
                [functools.partial(make, env_seed) for env_seed in env_seeds(seed, num_actors)],
                StampedPolicy(copy.deepcopy(planner)),
                frames_per_batch=envs_each,
                total_frames=ENDLESS,
                init_random_frames=random_steps,
                collector_class=RemoteCollector,
                remote_configs=dict(resources or {"num_cpus": 1}),
                ray_init_config={"log_to_driver": False, "logging_level": "error"},
            )

    @property
    def num_frames(self) -> int:
        """Agent steps that arrived."""
        return self.collected_frames

    def go_on(self, frames: int, seed: int) -> None:
        """Go on after as many agent steps, with new episodes."""
        self.collected_frames = frames
        each = frames // self.num_collectors
        seeds = env_seeds(seed, self.num_collectors)
        self.map_fn("go_on", [(each, env_seed) for env_seed in seeds])

    def send(self, planner: TDMPC2Planner, updates: int) -> None:
        """Send weights to every actor, which takes them after the step that it is in.

        Args:
            planner: has the weights.
            updates: how many updates they have had.
        """
        self.policy.take_weights(planner, updates)
        self.update_policy_weights_(self.policy)

    def _async_iterator(self) -> Iterator[TensorDictBase]:
        """Steps as they arrive; unlike TorchRL's, an actor takes its next one at once."""
        import ray

        pending = {actor.next.remote(): i for i, actor in enumerate(self.remote_collectors)}
        while True:
            ready, _ = ray.wait([*pending], timeout=1.0)  # lets signals through
            if not ready:
                continue
            number = pending.pop(ready[0])
            try:
                data = ray.get(ready[0])
            except ray.exceptions.RayError as error:
                raise _told(error, number) from error
            self.collected_frames += data.numel()
            pending[self.remote_collectors[number].next.remote()] = number
            yield data

    def shutdown(self, timeout: float | None = None, *, raise_on_error: bool = True) -> None:
        """End the actors; a cluster that was there before stays."""
        try:
            super().shutdown(timeout)
        except Exception:
            if raise_on_error:
                raise


@contextmanager
def _telling_the_start() -> Iterator[None]:
    """Turn what an actor raised when it began into one sentence."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        *_, last = str(error).strip().splitlines()  # of its traceback
        raise CollectionError(f"an actor failed at the start ({last.rstrip('.')}).") from error


def _told(error: Exception, number: int) -> WorkerError:
    """What an actor raised, in one line and with its traceback; or that it ended."""
    cause = getattr(error, "cause", None)
    text = "its process ended" if cause is None else f"{type(cause).__name__}: {cause}\n\n{error}"
    told = WorkerError(text)
    told.environment = number
    return told


def _make_env(
    task: Task, planner: TDMPC2Planner, num_envs: int, device: torch.device | str, seed: int
) -> EnvBase:
    """The environments of one actor, with the planner's warm start, in a process of its own."""
    seed_generators(seed)
    env = make_actor_env(task, num_envs, device, seed)
    return env.append_transform(planner.make_tensordict_primer())
