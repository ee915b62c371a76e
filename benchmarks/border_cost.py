"""What copies and checks at the border of an environment add to an agent step, in microseconds.

An environment with them and one without are stepped by turns in one process, step by step, so that
both meet the same clock of the processor. What is counted is the processor's time of this thread,
which other processes disturb less than the time of day.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.testing.mocking_classes import ContinuousActionVecMockEnv

from torchrl_tdmpc.envs import Task, load_task, make_task
from torchrl_tdmpc.envs.layers import innermost, layers

TURNS = 5_000


def without_border(env: EnvBase) -> EnvBase:
    """The same environment, the copies and checks taken off."""
    for layer in (innermost(env), *layers(env)):
        for name in ("step", "reset", "_step", "_reset"):
            vars(layer).pop(name, None)
    env.__class__ = TransformedEnv
    return env


def steps(env: EnvBase) -> Iterator[int]:
    """The nanoseconds of one agent step after the other; it is given what batches give it."""
    data = env.reset().set("action", torch.zeros(env.action_spec.shape))
    data = data.select("action", *env.state_spec.keys(True, True))
    while True:
        begin = time.thread_time_ns()
        env._step(data)
        yield time.thread_time_ns() - begin


def added(name: str, task: Task) -> str:
    """A line on one task."""
    guarded, bare = steps(task.make(0)), steps(without_border(task.make(0)))
    turns = [(next(guarded), next(bare)) for _ in range(TURNS)]
    with_it, without = (statistics.median(times) / 1000 for times in zip(*turns, strict=True))
    median = statistics.median(a - b for a, b in turns) / 1000
    return f"{name}: {with_it:.0f} with and {without:.0f} without, in the median {median:.0f} added"


def main() -> None:
    """Print a line for each kind of environment."""
    torch.set_num_threads(1)
    vectors = {"episode_length": 2 * TURNS, "observation_keys": ["observation"]}
    tasks = {
        "Gymnasium's Pendulum-v1": load_task("gym", "Pendulum-v1"),
        "dm_control's cartpole-swingup": load_task("dmcontrol", "cartpole-swingup"),
        "an environment of TorchRL's": make_task(ContinuousActionVecMockEnv, **vectors),
    }
    for name, task in tasks.items():
        print(added(name, task))


if __name__ == "__main__":
    main()
