"""What copies and checks at the border of an environment add to an agent step, in microseconds.

An environment with them and one without are stepped by turns in one process.
"""

from __future__ import annotations

import statistics
import time

import torch
from torchrl.envs import EnvBase

from torchrl_tdmpc.envs import load_task
from torchrl_tdmpc.envs.border import Border, Promise, layers

STEPS, TURNS = 100, 15


def without_border(env: EnvBase) -> EnvBase:
    """The same environment of another library's, the copies and checks taken off."""
    for layer in layers(env):
        vars(layer).pop("step", None)
        vars(layer).pop("reset", None)
    for place in reversed(range(len(env.transform))):
        if isinstance(env.transform[place], (Border, Promise)):
            env.transform.pop(place)
    return env


def microseconds(env: EnvBase) -> float:
    """An agent step, on average."""
    data = env.reset().set("action", torch.zeros(env.action_spec.shape))
    begin = time.perf_counter()
    for _ in range(STEPS):
        env._step(data)
    return (time.perf_counter() - begin) / STEPS * 1e6


def main() -> None:
    """Print the median of each, and the difference."""
    torch.set_num_threads(1)
    for backend, name in (("gym", "Pendulum-v1"), ("dmcontrol", "cartpole-swingup")):
        task = load_task(backend, name)
        guarded, bare = task.make(0), without_border(task.make(0))
        turns = [(microseconds(guarded), microseconds(bare)) for _ in range(TURNS)]
        with_it, without = (statistics.median(turn) for turn in zip(*turns, strict=True))
        added = statistics.median(a - b for a, b in turns)
        print(f"{name}: {with_it:.0f} with, {without:.0f} without; {added:.0f} microseconds added")


if __name__ == "__main__":
    main()
