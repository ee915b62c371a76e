"""From the name of a task to environments that pose it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey
from torchrl.envs import DeviceCastTransform, EnvBase

from torchrl_tdmpc.envs.dmcontrol import dmcontrol_task
from torchrl_tdmpc.envs.generic import function_task, gym_task
from torchrl_tdmpc.envs.task import Task, resolve_num_envs, unknown
from torchrl_tdmpc.envs.workers import ProcessEnv, serial_env

BACKENDS = {"dmcontrol": dmcontrol_task, "gym": gym_task, "function": function_task}
WORKERS = ("serial", "process")


def load_task(
    backend: str,
    name: str,
    *,
    episode_length: int | None = None,
    action_repeat: int | None = None,
    observation_keys: Sequence[NestedKey] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    pixels: bool = False,
    video: bool = False,
    extra_keys: Sequence[NestedKey] | None = None,
    success_key: NestedKey | None = None,
) -> Task:
    """Look a task up by name.

    Args:
        backend: where the task comes from; one of ``BACKENDS``.
        name: the task's name in that backend: ``"walker-stand"``, ``"Hopper-v5"``, or the
            import path of a function, ``"package.module:function"``. A Gymnasium id may have the
            module that registers it in front, ``"package.module:Id-v0"``.
        episode_length: time limit in agent steps. It may shorten the limit that the
            task declares, and is needed where a task declares none.
        action_repeat: environment steps in an agent step; None takes what was published, which is
            2 on DMControl, and 1 elsewhere.
        observation_keys: the entries to observe, in this order; None takes all.
        kwargs: for ``gymnasium.make`` or for the function.
        pixels: observe three stacked frames, uint8 ``[9, 64, 64]``, newest last.
        video: whether videos of it will be wanted; see :func:`make_task`.
        extra_keys: further numbers of an episode, such as ``success``; see :func:`make_task`.
        success_key: see :func:`make_task`; None on DMControl, where returns alone tell.

    Returns:
        The task, ready for :func:`make_env`.

    Raises:
        ImportError: if a package that the task needs is not installed.
        ValueError: if the backend or the task is unknown, or its actions, its observations or its
            time limit do not fit.

    Examples:
        >>> task = load_task("dmcontrol", "cartpole-swingup")
        >>> task.episode_length, task.action_repeat
        (500, 2)
    """
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    if kwargs and backend == "dmcontrol":
        raise ValueError(f"kwargs is {dict(kwargs)}; with backend 'dmcontrol' it must be empty.")
    further = {"action_repeat": action_repeat, "observation_keys": observation_keys}
    if success_key is not None and backend == "dmcontrol":
        raise ValueError(f"success_key is {success_key!r}; with backend 'dmcontrol' leave it out.")
    further |= {"extra_keys": extra_keys or None, "success_key": success_key}
    further |= {"kwargs": kwargs or None, "video": (video and backend != "dmcontrol") or None}
    given = {name: value for name, value in further.items() if value is not None}
    return BACKENDS[backend](name, episode_length=episode_length, pixels=pixels, **given)


def make_env(
    task: Task | Sequence[Task],
    *,
    num_envs: int | None = None,
    seed: int | Sequence[int] = 0,
    device: torch.device | str = "cpu",
    workers: str = "serial",
) -> EnvBase:
    """Environments stepped together, of one task or of several; one is a batch of one.

    Each environment draws its initial states from a generator of its own, whose seed is derived
    from ``seed`` and its index: no global generator is read, and the first environments stay the
    same when more are added. In a process of its own the global generators are seeded too.

    Args:
        task: what to pose, from :func:`load_task`; or a task for each environment, which must look
            alike, as those of ``TaskSet.padded`` do.
        num_envs: number of environments N; None takes 1, or as many as a batch of the task has.
            Environments that are a batch by nature are all seeded by one seed, draw from one
            generator, and run in this process.
        seed: at least 0; equal seeds give equal initial states. Or the ``num_envs`` seeds of
            :func:`env_seeds` themselves (one for environments that are a batch).
        device: where observations and rewards appear.
        workers: ``"serial"`` steps the environments one after the other, ``"process"`` each
            in a process of its own, which a script must then start under
            ``if __name__ == "__main__":``. The trajectories are the same.

    Returns:
        Environments of batch size ``[N]``. They read ``action`` ``[N, A]``, and write
        ``observation`` ``[N, *observation_shape]``, ``reward`` ``[N, 1]`` (summed over the repeated
        steps), ``done``, ``terminated`` and ``truncated`` ``[N, 1]``.

    Raises:
        ValueError: if ``num_envs`` is less than 1 or more than 10,000, ``seed`` less than
            0, ``workers`` unknown, or one of them does not fit environments that are a batch.

    Examples:
        >>> env = make_env(load_task("dmcontrol", "walker-stand"), num_envs=2, seed=1)
        >>> env.rollout(5)["next", "observation"].shape
        torch.Size([2, 5, 24])
    """
    if isinstance(task, Task) and task.num_envs is not None:
        return _make_batch(task, num_envs, seed, device, workers)
    num_envs = 1 if num_envs is None else num_envs
    if num_envs < 1:
        raise ValueError(f"num_envs {num_envs} is too few; choose at least 1.")
    if num_envs > 10_000:
        raise ValueError(f"num_envs {num_envs} is too many; choose at most 10,000.")
    seeds = env_seeds(seed, num_envs) if isinstance(seed, int) else list(seed)
    if len(seeds) != num_envs:
        raise ValueError(f"seed has {len(seeds)} numbers for {num_envs} environments.")
    if workers not in WORKERS:
        raise unknown("workers", workers, WORKERS)
    tasks = num_envs * [task] if isinstance(task, Task) else task
    if len(tasks) != num_envs:
        raise ValueError(f"task has {len(tasks)} tasks for {num_envs} environments.")
    if batches := [task.name for task in tasks if task.num_envs is not None]:
        raise ValueError(
            f"task has {batches[0]!r}, whose environments are a batch; give it without a list."
        )
    makes = [task.make for task in tasks]
    if workers == "serial":
        return serial_env(makes, seeds, device)
    return ProcessEnv(makes=makes, seeds=seeds, device=device)


def _make_batch(
    task: Task,
    num_envs: int | None,
    seed: int | Sequence[int],
    device: torch.device | str,
    workers: str,
) -> EnvBase:
    """The environments of a task that are a batch by nature, where the agent is."""
    num_envs = resolve_num_envs(task, num_envs)
    if workers != "serial":
        raise ValueError(
            f"workers is {workers!r}, but the environments of task {task.name!r} are one batch in "
            "this process; choose serial."
        )
    (place,) = env_seeds(seed, 1) if isinstance(seed, int) else seed
    env = task.make(place)
    if env.device != torch.device(device):
        env = env.append_transform(DeviceCastTransform(device, env.device))
    env.ready = torch.ones(num_envs, dtype=torch.uint8)
    return env


def env_seeds(seed: int, num_envs: int) -> list[int]:
    """The seed of each environment; the first ones stay the same when more are added.

    Raises:
        ValueError: if ``seed`` is less than 0.

    Examples:
        >>> env_seeds(1, 3)[:2] == env_seeds(1, 2)
        True
    """
    if seed < 0:
        raise ValueError(f"seed {seed} is negative; choose at least 0.")
    return np.random.SeedSequence(seed).generate_state(num_envs).tolist()
