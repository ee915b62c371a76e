from __future__ import annotations

import sys

import dm_env
import numpy as np
import pytest
import torch
from dm_control import suite
from test_envs_gym import hide
from torchrl.collectors import Collector

from torchrl_tdmpc.envs import Task, load_task, make_env
from torchrl_tdmpc.envs.dmcontrol import install_command, published_name
from torchrl_tdmpc.envs.task import resolve_episode_length


def raw_observation(timestep: dm_env.TimeStep) -> torch.Tensor:
    values = [np.ravel(value) for value in timestep.observation.values()]
    return torch.from_numpy(np.concatenate(values)).float()


# Observations of vectors only, with a scalar, with a matrix.
@pytest.mark.parametrize(
    "domain, task", [("cartpole", "swingup"), ("walker", "stand"), ("stacker", "stack_2")]
)
def test_observations_and_rewards_are_those_of_dm_control(domain, task):
    env = load_task("dmcontrol", f"{domain}-{task}").make(3)
    raw = suite.load(domain, task, task_kwargs={"random": 3})
    rng = np.random.RandomState(0)
    td, timestep = env.reset(), raw.reset()
    for _ in range(20):
        action = rng.uniform(-1, 1, raw.action_spec().shape).astype(np.float32)
        td = env.step(td.set("action", torch.from_numpy(action)))["next"]
        before, reward = raw.physics.time(), 0.0
        for _ in range(2):
            timestep = raw.step(action)
            reward += timestep.reward
        assert raw.physics.time() - before == pytest.approx(2 * raw.control_timestep())
        torch.testing.assert_close(td["observation"], raw_observation(timestep), rtol=0, atol=0)
        torch.testing.assert_close(td["reward"], torch.tensor([reward]).float(), rtol=0, atol=0)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_actions_are_scaled_to_the_bounds(share):
    env = load_task("dmcontrol", "quadruped-run").make(3)
    raw = suite.load("quadruped", "run", task_kwargs={"random": 3})
    low, high = raw.action_spec().minimum, raw.action_spec().maximum
    assert (low.min(), low.max(), high.min(), high.max()) == (-1, -0.8, 0.8, 1.1)
    assert (env.action_spec.space.low == -1).all() and (env.action_spec.space.high == 1).all()
    raw.reset()
    env.step(env.reset().set("action", torch.full((12,), 2 * share - 1)))
    raw.step(low + share * (high - low))
    raw.step(low + share * (high - low))
    np.testing.assert_allclose(env.physics.control(), raw.physics.control(), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "name, task",
    [
        ("cup-catch", "ball_in_cup-catch"),
        ("ball_in_cup-catch", "ball_in_cup-catch"),
        ("ball-in-cup-catch", "ball_in_cup-catch"),
        ("pointmass-easy", "point_mass-easy"),
        ("point_mass-hard", "point_mass-hard"),
        ("finger-turn_easy", "finger-turn_easy"),
        ("finger-turn-easy", "finger-turn_easy"),
        ("reacher-easy", "reacher-easy"),
        ("humanoid_CMU-run", "humanoid_CMU-run"),
        ("humanoid-cmu-run", "humanoid_CMU-run"),
        ("humanoid-run-pure-state", "humanoid-run_pure_state"),
    ],
)
def test_names(name, task):
    task = task.split("-")
    loaded = load_task("dmcontrol", name)
    env, raw = loaded.make(7), suite.load(*task, task_kwargs={"random": 7})
    expected = raw_observation(raw.reset())
    torch.testing.assert_close(env.reset()["observation"], expected, rtol=0, atol=0)
    assert loaded.name == published_name(*task)
    assert (loaded.backend, loaded.episode_length, loaded.action_repeat) == ("dmcontrol", 500, 2)


def test_every_task_has_a_name_of_its_own(monkeypatch):
    loaded = []

    def load(*task, **kwargs):
        loaded.append(task)
        raise KeyboardInterrupt  # the name is resolved; spare the physics

    monkeypatch.setattr(suite, "load", load)
    for domain, task in suite.ALL_TASKS:
        for name in (published_name(domain, task), f"{domain}-{task}"):
            with pytest.raises(KeyboardInterrupt):
                load_task("dmcontrol", name)
            assert loaded.pop() == (domain, task)


@pytest.mark.parametrize("episode_length, length", [(None, 500), (500, 500), (7, 7)])
def test_the_time_limit_truncates(episode_length, length):
    task = load_task("dmcontrol", "cartpole-swingup", episode_length=episode_length)
    assert task.episode_length == length
    rollout = make_env(task, num_envs=1, seed=0).rollout(1000, break_when_any_done=True)
    last = torch.arange(length) == length - 1
    assert rollout.shape == (1, length)
    assert (rollout["next", "truncated"].flatten() == last).all()
    assert (rollout["next", "done"].flatten() == last).all()
    assert not rollout["next", "terminated"].any()


def test_a_shorter_limit_holds_in_every_episode():
    task = load_task("dmcontrol", "cartpole-swingup", episode_length=4)
    rollout = make_env(task, num_envs=2).rollout(13, break_when_any_done=False)
    expected = torch.arange(1, 14) % 4 == 0
    assert (rollout["next", "truncated"].squeeze(-1) == expected).all()


def first_and_second_reset(seed: int, num_envs: int = 2) -> torch.Tensor:
    env = make_env(load_task("dmcontrol", "reacher-easy"), num_envs=num_envs, seed=seed)
    return torch.stack([env.reset()["observation"], env.reset()["observation"]], 1)


def test_seeds():
    one, same, other = (first_and_second_reset(seed) for seed in (1, 1, 2))
    assert (one == same).all()
    states = torch.cat([one, other]).flatten(0, 1)  # 2 seeds x 2 environments x 2 resets
    assert len(states.unique(dim=0)) == 8
    assert (first_and_second_reset(1, num_envs=3)[:2] == one).all()


def test_environments_leave_the_global_generators_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    one = first_and_second_reset(1)
    assert (torch.get_rng_state() == before[0]).all()
    assert (np.random.get_state()[1] == before[1]).all()
    torch.manual_seed(1)
    np.random.seed(1)
    assert (first_and_second_reset(1) == one).all()


@pytest.mark.parametrize("workers", ["serial", "process"])
@pytest.mark.parametrize("threads", [1, 3])
def test_closed_environments_leave_the_threads_alone(workers, threads):
    before = torch.get_num_threads()
    task = load_task("dmcontrol", "cartpole-swingup")
    try:
        torch.set_num_threads(threads)
        env = make_env(task, num_envs=2, workers=workers)
        env.reset()
        assert torch.get_num_threads() == threads
        env.close()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("episode_length", [None, 4])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_collector_carries_nothing_superfluous(num_envs, episode_length):
    task = load_task("dmcontrol", "cup-catch", episode_length=episode_length)
    env = make_env(task, num_envs=num_envs, seed=0)
    assert env.batch_size == (num_envs,)
    assert (env.action_spec.space.low == -1).all() and (env.action_spec.space.high == 1).all()
    data = next(
        iter(
            Collector(
                env,
                lambda td: td.set("action", torch.zeros(num_envs, 2)),
                frames_per_batch=6 * num_envs,
                total_frames=-1,
                auto_register_policy_transforms=True,
            )
        )
    )
    flags = {"done", "terminated", "truncated"}
    root = {"observation", "action", ("collector", "traj_ids")} | flags
    following = {("next", key) for key in {"observation", "reward"} | flags}
    assert set(data.keys(True, True)) == root | following
    assert data.shape == (num_envs, 6)
    for key in ("observation", "action", ("next", "observation"), ("next", "reward")):
        assert data[key].dtype == torch.float32
    before, after = data["observation"][:, 1:], data["next", "observation"][:, :-1]
    reset = data["next", "done"][:, :-1]
    assert (reset | (before == after)).all()
    assert reset.sum() == (0 if episode_length is None else num_envs)


@pytest.mark.parametrize(
    "arguments, beginning",
    [
        (
            ("dmc", "cartpole-swingup"),
            "backend 'dmc' is unknown; choose from dmcontrol, gym, function.",
        ),
        (
            ("dmcontrol", "cartpole-swngup"),
            "task 'cartpole-swngup' is unknown (did you mean cartpole-swingup or",
        ),
        (("dmcontrol", "zzz"), "task 'zzz' is unknown; choose from acrobot-swingup, "),
        (("dmcontrol", "cartpole"), "task 'cartpole' is unknown"),
        (("dmcontrol", ""), "task '' is unknown"),
    ],
)
def test_an_unknown_name_is_one_sentence_before_anything_is_built(
    arguments, beginning, monkeypatch
):
    monkeypatch.setattr(suite, "load", None)
    with pytest.raises(ValueError) as error:
        load_task(*arguments)
    message = str(error.value)
    assert message.startswith(beginning) and message.endswith(".") and "\n" not in message
    if arguments[0] == "dmcontrol":
        assert all(published_name(*task) in message for task in suite.ALL_TASKS)


def test_unbounded_actions_are_refused():
    with pytest.raises(ValueError, match=r"task 'lqr-lqr-2-1' has unbounded actions; choose"):
        load_task("dmcontrol", "lqr-lqr_2_1", episode_length=10)


@pytest.mark.parametrize("episode_length", [0, -1, 501])
def test_a_limit_that_does_not_fit(episode_length):
    with pytest.raises(ValueError) as error:
        load_task("dmcontrol", "cartpole-swingup", episode_length=episode_length)
    assert str(error.value) == (
        f"episode_length {episode_length} does not fit task 'cartpole-swingup'; "
        "choose from 1 to 500 agent steps."
    )


def test_a_task_without_a_limit_needs_one():
    assert resolve_episode_length("endless", None, 30) == 30
    with pytest.raises(ValueError, match=r"episode_length is None, but task 'endless'"):
        resolve_episode_length("endless", None, None)
    with pytest.raises(ValueError, match="choose at least 1 agent steps"):
        resolve_episode_length("endless", None, 0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_envs": 0}, "num_envs 0 is too few; choose at least 1."),
        ({"seed": -1}, "seed -1 is negative; choose at least 0."),
    ],
)
def test_bad_arguments_of_make_env(arguments, message):
    def make(seed):
        raise AssertionError("nothing may be built")

    task = Task("none", "none", 1, 1, (1,), 1, make)
    with pytest.raises(ValueError) as error:
        make_env(task, **arguments)
    assert str(error.value) == message


@pytest.mark.parametrize("package", ["dm_control", "dm_env"])
def test_without_dm_control_or_a_part_of_it_the_command_is_named(monkeypatch, package):
    for name in [name for name in sys.modules if name.partition(".")[0] == "dm_control"]:
        monkeypatch.delitem(sys.modules, name)
    hide(monkeypatch, package)
    with pytest.raises(ImportError) as error:
        load_task("dmcontrol", "walker-walk")
    assert str(error.value) == f"backend 'dmcontrol' needs {package}: {install_command()}"
