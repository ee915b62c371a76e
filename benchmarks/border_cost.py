"""What copies and checks at the border of an environment add to an agent step, in microseconds.

An environment with them and one without are stepped by turns in one process. What is counted is the
processor's time of this thread, which other processes disturb less than the clock's.
"""

from __future__ import annotations

import statistics
import time

import torch
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.testing.mocking_classes import ContinuousActionVecMockEnv

from torchrl_tdmpc.envs import Task, load_task, make_task
from torchrl_tdmpc.envs.layers import innermost, layers

STEPS, TURNS = 100, 30


def without_border(env: EnvBase) -> EnvBase:
    """The same environment, the copies and checks taken off."""
    for layer in (innermost(env), *layers(env)):
        for name in ("step", "reset", "_step", "_reset"):
            vars(layer).pop(name, None)
    env.__class__ = TransformedEnv
    return env


def microseconds(env: EnvBase) -> float:
    """An agent step, on average; it is given what batched environments give it."""
    data = env.reset().set("action", torch.zeros(env.action_spec.shape))
    data = data.select("action", *env.state_spec.keys(True, True))
    begin = time.thread_time()
    for _ in range(STEPS):
        env._step(data)
    return (time.thread_time() - begin) / STEPS * 1e6


def added(name: str, task: Task) -> str:
    """A line on one task."""
    guarded, bare = task.make(0), without_border(task.make(0))
    turns = [(microseconds(guarded), microseconds(bare)) for _ in range(TURNS)]
    with_it, without = (min(turn) for turn in zip(*turns, strict=True))
    median = statistics.median(a - b for a, b in turns)
    return (
        f"{name}: {with_it:.0f} with and {without:.0f} without at best, so {with_it - without:.0f} "
        f"added; {median:.0f} in the median"
    )


def main() -> None:
    """Print a line for each kind of environment."""
    torch.set_num_threads(1)
    vectors = {"episode_length": 200, "observation_keys": ["observation"]}
    tasks = {
        "Gymnasium's Pendulum-v1": load_task("gym", "Pendulum-v1"),
        "dm_control's cartpole-swingup": load_task("dmcontrol", "cartpole-swingup"),
        "an environment of TorchRL's": make_task(ContinuousActionVecMockEnv, **vectors),
    }
    for name, task in tasks.items():
        print(added(name, task))


if __name__ == "__main__":
    main()
