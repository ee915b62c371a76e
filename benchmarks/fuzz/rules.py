"""Runs in an environment of Gymnasium's that breaks one rule at a time, at random moments.

``python -m benchmarks.fuzz.rules --minutes 5 --seed 0`` prints a row for each rule. A run ends in
one sentence with a checkpoint, or all that it saw follows from what it did. Exits with 1 if one did
neither.
"""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from tensordict import TensorDictBase

from benchmarks.fuzz.environments import MODEL
from benchmarks.fuzz.outcome import Trial, table
from torchrl_tdmpc import OnlineTrainer, TDMPC2Loss, TDMPC2Planner
from torchrl_tdmpc.envs import make_task
from torchrl_tdmpc.trainers import build_networks, build_replay

EPISODE = 6
BOX = gymnasium.spaces.Box


class Ruled(gymnasium.Env):
    """A point that is pushed. It breaks one rule, from one of its calls on.

    Attributes:
        rule: one of ``RULES``, of every environment; None breaks none.
        begin: the number of calls of each environment that are right.
    """

    rule: str | None = None
    begin = 0
    action_space = BOX(-2, 1, (2,), np.float32)
    observation_space = gymnasium.spaces.Dict(
        place=BOX(-np.inf, np.inf, (2,), np.float32), given=BOX(-np.inf, np.inf, (2,), np.float32)
    )

    def __init__(self):
        self.calls, self.kept = 0, []
        self.buffers = {"place": np.zeros(2, np.float32), "given": np.zeros(2, np.float32)}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        """Begin at a random place."""
        self.calls += 1
        super().reset(seed=seed)
        self.t, self.given = 0, np.zeros(2)
        self.place = self.np_random.integers(-64, 64, 2) / 64  # float16 holds it
        return self.broken((self.observe(), {}))

    def step(self, action: np.ndarray) -> tuple:
        """Push."""
        self.calls += 1
        self.t += 1
        self.given = np.round(np.array(action, np.float64) * 16) / 16
        self.place = self.place + self.given / 4
        terminated = bool(np.abs(self.place).max() > 4)
        return self.broken((self.observe(), float(self.given.sum()), terminated, False, {}), action)

    def observe(self) -> dict[str, np.ndarray]:
        """Where the point is, and the last push."""
        return {"place": self.place.astype(np.float32), "given": self.given.astype(np.float32)}

    def broken(self, result: tuple, action: np.ndarray | None = None) -> Any:
        """What is returned in place of a result."""
        if self.rule is None or self.calls <= self.begin:
            return result
        return RULES[self.rule](self, list(result), action)


def change(place: int, value: Any) -> Callable:
    """Another value at a place of what a step returns; a reset stays as it is."""

    def rule(env: Ruled, result: list, action: np.ndarray | None) -> tuple:
        if action is not None:
            result[place] = value(env, result[place]) if callable(value) else value
        return tuple(result)

    return rule


def observe(function: Callable) -> Callable:
    """Another observation, of a reset too."""

    def rule(env: Ruled, result: list, action: np.ndarray | None) -> tuple:
        return function(env, result[0]), *result[1:]

    return rule


def fail(error: type[Exception]) -> Callable:
    """An error of the environment's own."""

    def rule(env: Ruled, result: list, action: np.ndarray | None) -> None:
        raise error("the motor is hot.\nIt has to cool down.")

    return rule


def scale_in_place(env: Ruled, result: list, action: np.ndarray | None) -> tuple:
    """The array that it was given belongs to it, it thinks; and so do the earlier ones."""
    if action is not None:
        env.kept.append(action)
    for kept in env.kept:
        kept *= 0.1
    return tuple(result)


def reuse_buffers(env: Ruled, observation: dict) -> dict:
    """One buffer for each entry, in every step."""
    for key, value in observation.items():
        env.buffers[key][...] = value
    return env.buffers


def cast(dtype: type) -> Callable:
    """Observations of another dtype."""
    return observe(lambda env, observed: {key: dtype(value) for key, value in observed.items()})


RULES: dict[str, Callable] = {
    "an error": fail(RuntimeError),
    "a TypeError": fail(TypeError),
    "one value": lambda env, result, action: result[0],
    "nothing": lambda env, result, action: None,
    "a value too few": lambda env, result, action: tuple(result[:-1]),
    "two rewards": change(1, np.ones(2)),
    "no reward": change(1, None),
    "a reward that is text": change(1, "much"),
    "an infinite reward": change(1, np.inf),
    "a flag of 2": change(2, 2),
    "a flag that is None": change(3, None),
    "its own limit": change(3, lambda env, flag: env.t == EPISODE - 2),
    "an observation of NaN": observe(lambda env, o: o | {"place": np.full(2, np.nan, np.float32)}),
    "a longer observation": observe(lambda env, o: o | {"place": np.zeros(3, np.float32)}),
    "an entry less": observe(lambda env, o: {"place": o["place"]}),
    "another entry": observe(lambda env, o: o | {"more": np.zeros(2, np.float32)}),
    "an observation of text": observe(lambda env, o: "somewhere"),
    "an action scaled in place": scale_in_place,
    "buffers used again": observe(reuse_buffers),
    "flags of 0 and 1": change(2, lambda env, flag: int(flag)),
    "flags in arrays": change(3, lambda env, flag: np.array([flag])),
    "a reward in an array": change(1, lambda env, reward: np.array([reward])),
    "observations of float16": cast(np.float16),
    "observations of float64": cast(np.float64),
    "observations in lists": observe(lambda env, o: {key: v.tolist() for key, v in o.items()}),
}
WHOLE_LIFE = ("its own limit",)  # a rule that is not broken from some moment on


class Seen:
    """What an agent saw, did and got, step by step."""

    def __init__(self):
        self.steps: list[TensorDictBase] = []

    def on_collect(self, trainer: OnlineTrainer, data: TensorDictBase) -> None:
        """Keep the steps ``[num_envs, 1]``."""
        self.steps.append(data.clone())

    def are_right(self, repeat: int) -> bool:
        """Whether each observation and reward follows from the place and the action before."""
        data = torch.cat(self.steps, -1)
        following = data["next"]
        place, next_place = data["observation"][..., :2], following["observation"][..., :2]
        given = following["observation"][..., 2:]
        push = data["action"] * 1.5 - 0.5  # -1 to 1 is -2 to 1
        whole = ~following["terminated"].squeeze(-1)  # no repeat was cut short
        goes_on = ~following["done"][:, :-1].squeeze(-1)
        begins_near = place[:, 1:][~goes_on].abs() <= 1
        return (
            bool(((given - push).abs() <= 1 / 32 + 1e-4).all())
            and torch.equal((next_place - place)[whole], repeat * given[whole] / 4)
            and torch.equal(following["reward"][whole], repeat * given[whole].sum(-1, True))
            and torch.equal(place[:, 1:][goes_on], next_place[:, :-1][goes_on])
            and bool(begins_near.all())
        )


def is_right(rule: str, begin: int, folder: Path, repeat: int, num_envs: int) -> bool:
    """Whether a run that comes to its end saw what it should."""
    Ruled.rule, Ruled.begin = rule, begin
    task = make_task(Ruled, name="ruled", episode_length=EPISODE, action_repeat=repeat)
    networks, seen = build_networks(task, MODEL), Seen()
    few = {"num_samples": 16, "num_elites": 4, "num_pi_trajs": 2, "iterations": 1}
    trainer = OnlineTrainer(
        task,
        loss=TDMPC2Loss(*networks, discount=0.9),
        planner=TDMPC2Planner(*networks, discount=0.9, **few),
        replay=build_replay(task, horizon=3, steps=24, num_envs=num_envs, batch_size=4),
        callbacks=[seen],
        output_dir=folder,
        num_envs=num_envs,
        steps=24,
        seed_steps=12,
        eval_interval=12,
        eval_episodes=1,
    )
    try:
        trainer.train()
    finally:
        assert [*(folder / "checkpoints").glob("*.torchrl")], "no checkpoint"
    return seen.are_right(repeat)


def try_rule(trial: Trial, folder: Path) -> None:
    """One run in an environment that breaks the rule after which the trial is named."""
    rule, draw = trial.name, trial.generator
    begin = 0 if rule in WHOLE_LIFE else draw.choice((0, draw.randrange(4, 16)))
    repeat, num_envs = draw.randrange(1, 4), draw.randrange(1, 3)
    what = f"after {begin} calls, repeat {repeat}, {num_envs} environments"
    output_dir = folder / f"{rule} {sum(trial.counts.values())}".replace(" ", "-")
    trial.attempt(what, lambda: is_right(rule, begin, output_dir, repeat, num_envs))


def main() -> None:
    """Break one rule after the other, by turns, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="about how long at most")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("torchrl").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    deadline = time.monotonic() + 60 * arguments.minutes
    trials = [
        Trial(rule, 10**6, random.Random(f"{arguments.seed} {rule}"), deadline) for rule in RULES
    ]
    torch.manual_seed(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < deadline:
            for trial in trials:
                if trial.goes_on:
                    try_rule(trial, Path(folder))
    print(table(trials))
    found = [line for trial in trials for line in trial.found]
    print("\n".join(found) or "Nothing that should not be.")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
