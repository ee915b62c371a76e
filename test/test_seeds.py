"""A seed fixes a run, whichever generator an environment draws from."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from runs import configure

from torchrl_tdmpc import OnlineTrainer
from torchrl_tdmpc.cli.parts import make_trainer
from torchrl_tdmpc.cli.settings import settle
from torchrl_tdmpc.envs import make_env, make_task
from torchrl_tdmpc.trainers import evaluate

EXAMPLE = Path(__file__).parents[1] / "examples/tdmpc2_multigamma.py"
MODEL = {"enc_dim": 16, "mlp_dim": 16, "latent_dim": 16}
BOX = gymnasium.spaces.Box


class FromGlobals(gymnasium.Env):
    """Draws where it begins, and every reward, from the global generators of three libraries."""

    action_space = BOX(-1, 1, (1,), np.float32)
    observation_space = BOX(-np.inf, np.inf, (3,), np.float32)

    def draw(self):
        return np.array([np.random.rand(), random.random(), torch.rand(1).item()], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.draw()
        return self.place, {}

    def step(self, action):
        return self.place, float(self.draw().sum()), False, False, {}


def task():
    return make_task(FromGlobals, episode_length=5)


def draws():
    """The next number of each global generator."""
    return np.random.rand(), random.random(), torch.rand(1).item()


class Returns:
    def __init__(self):
        self.values = []

    def on_episode(self, trainer, row):
        self.values.append(row["return"])

    def on_evaluation(self, trainer, row):
        self.values.append(row["reward"])


def returns(seed, workers):
    """Of the episodes and the evaluations of a run, which draws and learns on the way."""
    seen = Returns()
    sizes = {"model": MODEL, "steps": 14, "seed_steps": 10, "eval_episodes": 1, "eval_interval": 7}
    settings = {"num_envs": 2, "workers": workers, "callbacks": [seen], "seed": seed}
    OnlineTrainer(task(), **sizes, **settings).train()
    return seen.values


@pytest.mark.parametrize("workers", ["serial", "process"])
def test_two_runs_of_one_seed_are_one_run(workers):
    np.random.seed(0)
    first = returns(1, workers)
    np.random.seed(99)  # whatever was drawn before
    random.seed(99)
    assert returns(1, workers) == first
    assert len(first) >= 4 and len(set(first)) == len(first) - 1  # evaluations are of one seed
    if workers == "serial":
        assert returns(2, workers) != first


def test_environments_in_processes_draw_different_numbers():
    env = make_env(task(), num_envs=2, seed=1, workers="process")
    first, second = env.reset()["observation"]
    env.close()
    assert (first != second).all()


def test_an_evaluation_is_of_its_seed_and_leaves_the_generators_alone():
    ours, rows = task(), []
    for seed_before in (0, 1):
        for library in (np.random, random):
            library.seed(seed_before)
        torch.manual_seed(seed_before)
        expected = draws()
        for library in (np.random, random):
            library.seed(seed_before)
        torch.manual_seed(seed_before)
        rows.append(evaluate(None, ours, episodes=3, num_envs=2, seed=5))
        assert draws() == expected
    assert rows[0] == rows[1] != evaluate(None, ours, episodes=3, num_envs=2, seed=6)


def test_making_a_task_or_environments_leaves_the_generators_alone():
    for library in (np.random, random):
        library.seed(3)
    torch.manual_seed(3)
    expected = draws()
    for library in (np.random, random):
        library.seed(3)
    torch.manual_seed(3)
    make_env(task(), num_envs=2, seed=4)
    assert draws() == expected


def test_the_example_and_the_command_seed_every_generator(tmp_path):
    spec = importlib.util.spec_from_file_location("example", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    for compose in (example.compose, make_trainer):
        after = []
        for run in range(2):
            np.random.seed(run)
            random.seed(run)
            config, task = settle(configure(f"output_dir={tmp_path / f'{compose.__name__}{run}'}"))
            compose(config, task)
            after.append(draws())
        assert after[0] == after[1]
