"""How well an agent does when it does not explore."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules.utils import get_primers_from_module

from torchrl_tdmpc.envs import (
    Task,
    TaskSet,
    env_seeds,
    forked_generators,
    make_env,
    names_of,
    resolve_num_envs,
    set_env_memory,
)

__all__ = ["evaluate"]

MOST_ENVS = 10  # environments that are open at once, unless more are asked for


def evaluate(
    policy: TensorDictModuleBase | None,
    task_or_envs: Task | TaskSet | EnvBase,
    *,
    episodes: int,
    num_envs: int | None = None,
    seed: int,
    device: torch.device | str = "cpu",
    memory: Mapping[str, Any] | None = None,
    extra_keys: Sequence[NestedKey] | None = None,
    on_begin: Callable[[TransformedEnv], None] = lambda env: None,
    on_step: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Run evaluation episodes, some of them side by side.

    The rows are a function of the policy's weights, ``seed``, ``episodes``, ``num_envs`` and
    ``memory``:
    environments are made afresh and closed, and torch's generators are forked, so that whatever
    surrounds a call is left as it was. Where an episode begins depends on ``seed`` and its number
    alone.

    Args:
        policy: acts without exploring; None acts at random.
        task_or_envs: what to act in: a task, several of them, or environments of batch size ``[]``
            or ``[N]`` whose episodes end by themselves. Such environments are seeded with ``seed``
            and left open; where their episodes begin depends on what they do with a seed.
        episodes: number of episodes, of each task.
        num_envs: environments that are open at once; None takes one for each episode, at most 10,
            or one of each task if these are more. Environments of different tasks are planned for
            together. Environments that were given, or that are a batch by nature, are as many as
            they are; such a batch is seeded for the first of its episodes.
        seed: of the environments and of every draw.
        device: where the policy is.
        memory: what an environment of training remembers across episodes, one of
            :func:`~torchrl_tdmpc.envs.env_memory`. Every environment of the task begins with it,
            and does not change its statistics.
        extra_keys: further entries of the environments, one number each below ``"next"``, that rows
            carry; None takes the task's.
        on_begin: given the first environments before they are reset; it may append transforms, such
            as :func:`~torchrl_tdmpc.recording.record_first_episode`.
        on_step: called after every agent step (of all environments together); an exception it
            raises ends the evaluation.

    Returns:
        A row for each episode: ``return``, undiscounted; ``length`` in agent steps; and each of
        ``extra_keys`` as it was after the last step, under its name in ``Task.extra_names``. With
        several tasks also ``task``, a name; the rows of a task follow one another.

    Raises:
        ValueError: no episode, or no environment; or a memory for environments that were given,
            which have their own.

    Examples:
        >>> from torchrl_tdmpc.envs import load_task
        >>> task = load_task("dmcontrol", "cartpole-swingup", episode_length=10)
        >>> rows = evaluate(None, task, episodes=3, num_envs=2, seed=0)
        >>> [row["length"] for row in rows]
        [10, 10, 10]
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; an evaluation needs at least 1.")
    device = torch.device(device)
    tasks = _tasks(task_or_envs)
    if memory is not None and not isinstance(task_or_envs, Task):
        raise ValueError(
            "memory is given with environments or several tasks; it must be given with a task, or "
            "be given to environments by set_env_memory."
        )
    if extra_keys is None:
        extra_keys = tasks[0].extra_keys if tasks else ()
    extra_names = names_of(extra_keys)
    # By episode, then by task: all tasks are in one batch
    places = [(task, place) for place in env_seeds(seed, episodes) for task in tasks]
    if not tasks:
        num_envs = max(1, task_or_envs.batch_size.numel())
    elif tasks[0].num_envs is not None:
        num_envs = resolve_num_envs(tasks[0], num_envs)
    elif num_envs is None:
        num_envs = min(len(places), max(MOST_ENVS, len(tasks)))
    elif num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}; an evaluation needs at least 1.")
    rows: list[dict[str, Any]] = []
    cuda_devices = [device] if device.type == "cuda" else []
    with (
        forked_generators(seed, cuda_devices),
        set_exploration_type(ExplorationType.DETERMINISTIC),
        torch.no_grad(),
    ):
        if not tasks:
            task_or_envs.set_seed(seed)
        while len(rows) < (len(places) or episodes):
            if tasks:
                envs = _made(places[len(rows) : len(rows) + num_envs], device, memory)
            else:
                envs = _given(task_or_envs)
            with envs as env:
                primers = None if policy is None else get_primers_from_module(policy, warn=False)
                if primers is not None:
                    env.append_transform(primers)
                if not rows:
                    on_begin(env)
                rows += _episodes(env, policy, extra_names, on_step)
    if not isinstance(task_or_envs, TaskSet):
        return rows[:episodes]
    named = [{"task": task.name, **row} for (task, _), row in zip(places, rows, strict=True)]
    return [row for task in tasks for row in named if row["task"] == task.name]


def _tasks(task_or_envs: Task | TaskSet | EnvBase) -> Sequence[Task]:
    """The tasks that environments are made of; none where environments were given."""
    if isinstance(task_or_envs, TaskSet):
        return task_or_envs.padded
    return [task_or_envs] if isinstance(task_or_envs, Task) else []


@contextmanager
def _made(
    places: Sequence[tuple[Task, int]], device: torch.device, memory: Mapping[str, Any] | None
) -> Iterator[TransformedEnv]:
    """An environment for each task and seed, closed in the end."""
    tasks, seeds = zip(*places)
    num_envs = len(seeds)
    if tasks[0].num_envs is not None:
        tasks, seeds, num_envs = tasks[0], seeds[:1], None
    env = TransformedEnv(make_env(tasks, num_envs=num_envs, seed=seeds, device=device))
    try:
        if memory is not None:
            set_env_memory(env, [memory], frozen=True)
        yield env
    finally:
        env.close(raise_if_closed=False)  # as it is where on_begin failed
        del env
        gc.collect()  # environments refer to themselves, and simulators' memory hangs on them


@contextmanager
def _given(env: EnvBase) -> Iterator[TransformedEnv]:
    """A user's environments, with room for transforms that do not stay; they are left open."""
    yield TransformedEnv(env, auto_unwrap=False)


def _episodes(
    env: EnvBase,
    policy: TensorDictModuleBase | None,
    extra_names: Mapping[str, NestedKey],
    on_step: Callable[[], None],
) -> list[dict[str, Any]]:
    """One episode in each environment; one that has ended waits for the others."""
    act = env.rand_action if policy is None else policy
    data = env.reset()
    is_open = data.get("done").new_ones(env.batch_size)
    rewards: list[Tensor] = []
    lengths = is_open.long() * 0
    extra = {}
    while is_open.any():
        if not is_open.all():
            data["_step"] = is_open  # the others are not stepped
        data = env.step(act(data))
        step = data["next"]
        rewards.append(torch.where(is_open, step["reward"].squeeze(-1), 0.0))
        lengths += is_open
        for name, key in extra_names.items():
            value = step[key].reshape(env.batch_size)
            extra[name] = torch.where(is_open, value, extra.get(name, value))
        is_open = is_open & ~step["done"].squeeze(-1)
        data = env.step_mdp(data)
        on_step()
    columns = {"return": torch.stack(rewards, -1).sum(-1), "length": lengths, **extra}
    values = zip(*(column.flatten().tolist() for column in columns.values()))
    return [dict(zip(columns, row)) for row in values]
