"""Gymnasium's tasks: values against the raw simulator, ends of episodes, runs."""

from __future__ import annotations

import builtins

import gymnasium
import numpy as np
import pytest
import torch
from runs import configure, make, run

from torchrl_tdmpc.cli.settings import settle
from torchrl_tdmpc.data import ReplayError
from torchrl_tdmpc.envs import load_task, make_env

HOPPER = ("env.backend=gym", "env.task=Hopper-v5", "env.episode_length=40")
FUNCTION = ("env.backend=function", "env.task=test_envs_any:make_counting")


def load(name, **kwargs):
    return load_task("gym", name, **kwargs)


def test_observations_rewards_and_flags_are_those_of_gymnasium():
    env, raw = load("Hopper-v5").make(3), gymnasium.make("Hopper-v5")
    raw.reset(seed=3)
    td, (observation, _) = env.reset(), raw.reset()
    rng, terminated = np.random.RandomState(0), False
    while not terminated:
        np.testing.assert_array_equal(td["observation"].numpy(), observation.astype(np.float32))
        action = rng.uniform(-1, 1, 3).astype(np.float32)
        td = env.step(td.set("action", torch.from_numpy(action)))["next"]
        observation, reward, terminated, truncated, _ = raw.step(action)
        assert td["reward"].item() == np.float32(reward)
        assert (td["terminated"].item(), td["truncated"].item()) == (terminated, truncated)
    assert td["done"].item() and not td["truncated"].item()


@pytest.mark.parametrize("action, torque", [(-1.0, -2.0), (0.25, 0.5), (1.0, 2.0)])
def test_actions_reach_the_simulator_at_its_bounds(action, torque):
    env = load("Pendulum-v1").make(0)
    assert env.action_spec.space.low == -1 and env.action_spec.space.high == 1
    env.step(env.reset().set("action", torch.tensor([action])))
    assert env._env.unwrapped.last_u == torque


@pytest.mark.parametrize("episode_length", [None, 30])
def test_the_time_limit_truncates_and_does_not_terminate(episode_length):
    task = load("Pendulum-v1", episode_length=episode_length)
    length = episode_length or 200
    assert (task.episode_length, task.action_repeat) == (length, 1)
    rollout = make_env(task).rollout(1000, break_when_any_done=True)
    last = torch.arange(length) == length - 1
    assert (rollout["next", "truncated"].flatten() == last).all()
    assert not rollout["next", "terminated"].any()


def test_a_termination_before_the_limit_is_not_a_truncation():
    rollout = make_env(load("Hopper-v5"), num_envs=2, seed=1).rollout(
        120, break_when_any_done=False
    )
    done, terminated = rollout["next", "done"], rollout["next", "terminated"]
    assert done.sum() >= 4 and (done == terminated).all()
    assert not rollout["next", "truncated"].any()


def test_seeds():
    def first_states(seed):
        env = make_env(load("Hopper-v5"), num_envs=2, seed=seed)
        return torch.cat([env.reset()["observation"], env.reset()["observation"]])

    before = torch.get_rng_state()
    one, same, other = first_states(1), first_states(1), first_states(2)
    assert (one == same).all()
    assert len(torch.cat([one, other]).unique(dim=0)) == 8
    assert (torch.get_rng_state() == before).all()


@pytest.mark.parametrize(
    "name, words",
    [
        ("CartPole-v1", ("CartPole-v1", "discrete actions", "continuous, bounded")),
        ("Hoper-v5", ("Hoper-v5", "did you mean Hopper-v5", "gymnasium.registry")),
        ("Pendulum-v0", ("Pendulum-v0", "Pendulum-v1")),
    ],
)
def test_what_does_not_fit_is_one_sentence(name, words):
    with pytest.raises(ValueError) as error:
        load(name)
    message = str(error.value)
    assert message.startswith("task ") and message.endswith(".") and "\n" not in message
    assert all(word in message for word in words), message


def hide(monkeypatch, package):
    """Make importing a package fail, as where it is not installed."""
    real = builtins.__import__

    def hidden(name, *args, **kwargs):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", hidden)


def test_without_gymnasium_the_extra_is_named(monkeypatch):
    hide(monkeypatch, "gymnasium")
    with pytest.raises(ImportError, match=r"needs gymnasium: pip install 'torchrl_tdmpc\[gym\]'"):
        load("Hopper-v5")


def test_without_a_package_of_the_task_the_extra_is_named(monkeypatch):
    def make(name, **kwargs):
        raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed,\nrun pip ...")

    monkeypatch.setattr(gymnasium, "make", make)
    with pytest.raises(ImportError) as error:
        load("Hopper-v5")
    assert "MuJoCo is not installed, run pip" in str(error.value)
    assert "pip install 'torchrl_tdmpc[gym]'" in str(error.value)


@pytest.mark.parametrize(
    "overrides, discount, rho, episodic",
    [
        (("env.backend=gym", "env.task=Hopper-v5", "env.episode_length=null"), 0.99, 0.7, True),
        (("env.backend=gym", "env.task=Pendulum-v1", "env.episode_length=null"), 0.975, 0.7, True),
        (("env.episode_length=null",), 0.99, 0.5, False),
        ((*FUNCTION, "env.episode_length=1000"), 0.995, 0.5, True),
        ((*HOPPER, "loss.rho=0.6", "loss.discount=0.995", "env.episodic=false"), 0.995, 0.6, False),
    ],
)
def test_what_is_automatic(tmp_path, overrides, discount, rho, episodic):
    long = ("train.seed_steps=auto", "train.steps=10_000", "compile=off")
    config = configure(f"output_dir={tmp_path}", *overrides, *long)
    trainer, (config, _) = make(config), settle(config)
    assert (config.loss.discount, config.loss.rho) == (discount, rho)
    assert config.env.episodic is episodic
    assert trainer.update.loss.world_model.episodic is episodic
    assert (trainer.update.loss.discount, trainer.update.loss.rho) == (discount, rho)
    assert trainer.planner.discount == discount


def test_a_run_learns_terminations_and_reports_short_episodes(tmp_path, capsys):
    walk = ("env.backend=function", "env.task='walks:ShortAndLongWalk'", "env.episode_length=10")
    lengths = ("train.seed_steps=33", "train.steps=35", "planner.horizon=5", "train.batch_size=64")
    trainer, table, evaluations = run(tmp_path, *walk, *lengths, "eval.episodes=1")
    assert [int(row["length"]) for row in table] == [3, 8, 3, 8, 3, 8]
    # Of the windows of 5 steps in 8, one in four terminates
    terminated = trainer.replay.sample()["next", "terminated"]
    assert terminated.any() and not terminated.all()
    *_, bias = trainer.update.loss.world_model.termination_head.parameters()
    assert bias != 0  # as it began
    assert int(evaluations[-1]["step"]) == int(evaluations[-1]["agent_steps"]) == 35  # no repeat
    assert trainer.replay.num_short_episodes == 3
    said = "3 episodes were shorter than planner.horizon (5 agent steps"
    assert said in capsys.readouterr().out


def test_a_termination_ends_a_run_that_is_not_episodic(tmp_path):
    with pytest.raises(ReplayError) as error:
        run(tmp_path, *HOPPER, "train.seed_steps=40", "env.episodic=false")
    message = str(error.value)
    assert "at agent step " in message and "in environment 0" in message
    assert "episodic is false; set it to true" in message


def test_a_run_without_terminations(tmp_path):
    pendulum = ("env.backend=gym", "env.task=Pendulum-v1", "env.episode_length=10")
    _, table, evaluations = run(tmp_path, *pendulum, "train.steps=30")
    assert [int(row["length"]) for row in table] == [10, 10, 10]
    assert all(-170 < float(row["return"]) < 0 for row in table)
    assert float(table[-1]["loss_termination"]) > 0
    assert [float(row["length"]) for row in evaluations] == [10, 10]
