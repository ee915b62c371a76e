"""Environments of one's own: what arrives from them, and what is refused."""

from __future__ import annotations

import os
import signal

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import ActionScaling, Compose, EnvBase, GymEnv, StepCounter, TransformedEnv

from torchrl_tdmpc.envs import load_task, make_env, make_task


class Counting(EnvBase):
    """Counts its steps, observes them in two entries, and rewards the action."""

    def __init__(self, end=5, reads_state=False, batch_size=()):
        super().__init__(batch_size=batch_size)
        self.end, self.reads_state = end, reads_state
        zebra, ant = Unbounded((*batch_size, 2)), Unbounded((*batch_size, 2, 2), dtype=torch.double)
        self.observation_spec = Composite(zebra=zebra, ant=ant, shape=batch_size)
        if reads_state:
            self.state_spec = Composite(zebra=Unbounded((2,)))
        self.action_spec = Bounded(-2.0, 4.0, (*batch_size, 1))
        self.reward_spec = Unbounded((*batch_size, 1))

    def _observe(self, count):
        return {
            "zebra": torch.full((2,), float(count)),
            "ant": torch.arange(4.0).view(2, 2).double(),
        }

    def _reset(self, tensordict=None):
        self.count = 0
        return TensorDict(**self._observe(self.count))

    def _step(self, tensordict):
        count = tensordict["zebra"][0].item() if self.reads_state else self.count
        self.count = count + 1
        done = torch.tensor([self.count >= self.end])
        return TensorDict(
            **self._observe(self.count), reward=tensordict["action"].clone(), done=done
        )

    def _set_seed(self, seed):
        torch.manual_seed(seed)  # as careless environments do


class Space(gymnasium.Env):
    """A Gymnasium environment of any spaces."""

    def __init__(self, action_space=None, observation_space=None):
        self.action_space = action_space or gymnasium.spaces.Box(-1, 1, (1,))
        self.observation_space = observation_space or gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def make_counting():
    return Counting()


def make_wrapped():
    return TransformedEnv(Counting(), Compose(ActionScaling()))


def not_an_environment():
    return []


def rollout(task, steps=4, action=0.5, **kwargs):
    def policy(tensordict):
        return tensordict.set("action", torch.full((*tensordict.shape, 1), action))

    return make_env(task, **kwargs).rollout(steps, policy, break_when_any_done=False)


def test_dictionaries_are_concatenated_in_the_order_of_the_spec():
    data = rollout(make_task(Counting, episode_length=9))
    assert data["observation"].dtype == torch.float32
    assert data["next", "observation"][0, 2].tolist() == [3, 3, 0, 1, 2, 3]  # zebra, then ant


def test_observation_keys_choose_and_order():
    task = make_task(Counting, episode_length=9, observation_keys=["ant", "zebra"])
    assert rollout(task)["next", "observation"][0, 2].tolist() == [0, 1, 2, 3, 3, 3]
    task = make_task(Counting, episode_length=9, observation_keys=["zebra"])
    assert task.observation_shape == (2,)
    data = rollout(task)
    assert data["next", "observation"][0, 2].tolist() == [3, 3]
    assert "ant" not in set(data.keys())


# -1 .. 1 to -2 .. 4
@pytest.mark.parametrize("action, reward", [(-1.0, -2.0), (0.0, 1.0), (0.5, 2.5), (1.0, 4.0)])
def test_actions_are_scaled_to_the_bounds(action, reward):
    data = rollout(make_task(Counting, episode_length=9), action=action)
    assert (data["next", "reward"] == reward).all()


def test_actions_are_scaled_where_one_bound_alone_differs():
    def make_lopsided():
        env = Counting()
        env.action_spec = Bounded(-1.0, 0.5, (1,))
        return env

    data = rollout(make_task(make_lopsided, episode_length=9), action=1.0)
    assert (data["next", "reward"] == 0.5).all()


@pytest.mark.parametrize("make", [make_counting, lambda: Counting(reads_state=True), make_wrapped])
@pytest.mark.parametrize(
    "repeat, counts, rewards",
    [
        (1, [1, 2, 3, 4, 5, 1], [2.5] * 6),
        (2, [2, 4, 5, 2], [5, 5, 2.5, 5]),
        (3, [3, 5, 3], [7.5, 5, 7.5]),
    ],
)
def test_repeated_actions_stop_where_the_episode_ends(make, repeat, counts, rewards):
    data = rollout(make_task(make, episode_length=9, action_repeat=repeat), len(counts))
    assert data["next", "observation"][0, :, 0].tolist() == counts
    assert data["next", "reward"].flatten().tolist() == rewards
    terminated = [count == 5 for count in counts]  # only done is written: it means terminated
    assert data["next", "terminated"].flatten().tolist() == terminated
    assert not data["next", "truncated"].any()


def test_the_time_limit_counts_decisions_and_truncates():
    task = make_task(lambda: Counting(end=100), episode_length=3, action_repeat=2)
    assert (task.episode_length, task.action_repeat) == (3, 2)
    data = rollout(task, 7)
    assert data["next", "truncated"].flatten().nonzero().flatten().tolist() == [2, 5]
    assert not data["next", "terminated"].any()
    assert data["next", "observation"][0, :, 0].tolist() == [2, 4, 6, 2, 4, 6, 2]


def test_a_declared_limit_that_the_repeat_does_not_divide_is_rounded_up():
    task = make_task(lambda: gymnasium.make("Pendulum-v1", max_episode_steps=5), action_repeat=2)
    assert task.episode_length == 3
    data = make_env(task).rollout(9)
    assert data["next", "truncated"].flatten().tolist() == [False, False, True]


@pytest.mark.parametrize(
    "source, name",
    [
        ("Pendulum-v1", "Pendulum-v1"),
        (lambda: "Pendulum-v1", "<lambda>"),
        (lambda: gymnasium.make("Pendulum-v1"), "<lambda>"),
        (GymEnv("Pendulum-v1"), "GymEnv"),
        (gymnasium.make("Pendulum-v1"), "TimeLimit"),
    ],
)
def test_sources_of_one_task_pose_the_same(source, name):
    task = make_task(source)
    assert (task.name, task.episode_length) == (name, 200)
    expected = rollout(load_task("gym", "Pendulum-v1"), 3, num_envs=2, seed=5)
    assert (rollout(task, 3, num_envs=2, seed=5) == expected).all()


def test_a_copied_environment_is_not_shared():
    env = Counting()
    task = make_task(env, episode_length=9)
    first, second = task.make(0), task.make(0)
    first.rollout(3)
    second.reset()
    assert first.base_env.count == 3 and second.base_env.count == 0
    assert not hasattr(env, "count")


def test_a_careless_seed_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    make_env(make_task(Counting, episode_length=9), num_envs=2, seed=4).reset()
    assert (torch.get_rng_state() == before).all()


def test_a_function_by_its_import_path():
    task = load_task("function", "test_envs_any:make_counting", episode_length=9)
    assert (task.name, task.backend) == ("test_envs_any:make_counting", "function")
    assert rollout(task)["next", "observation"][0, 2].tolist() == [3, 3, 0, 1, 2, 3]


def test_processes_give_the_trajectories_of_one_process_and_outlive_an_interrupt():
    task = load_task("gym", "Hopper-v5", episode_length=20)

    def trajectories(workers):
        torch.manual_seed(0)
        threads = torch.get_num_threads()
        env = make_env(task, num_envs=2, seed=3, workers=workers)
        data = env.rollout(30, break_when_any_done=False)
        assert torch.get_num_threads() == threads
        if workers == "process":
            for worker in env._workers:  # a terminal's Ctrl-C, which the main process handles
                os.kill(worker.pid, signal.SIGINT)
            env.rollout(3)
        env.close()
        return data

    serial, process = trajectories("serial"), trajectories("process")
    assert serial["next", "done"].sum() >= 2
    assert set(serial.keys(True, True)) == set(process.keys(True, True))
    assert (serial == process).all()


BOX = gymnasium.spaces.Box


@pytest.mark.parametrize(
    "source, words",
    [
        (lambda: Space(gymnasium.spaces.Discrete(3)), ("discrete actions", "continuous, bounded")),
        (lambda: Space(BOX(-np.inf, np.inf, (2,))), ("unbounded actions", "with bounds")),
        (lambda: Space(BOX(np.float32([-1, -np.inf]), 1)), ("unbounded actions", "with bounds")),
        (lambda: Space(BOX(-1, 1, (2, 2))), ("actions of shape (2, 2)", "vector")),
        (
            lambda: Space(None, BOX(0, 255, (4,), np.uint8)),
            ("'observation' of shape (4,) and type uint8", "floating-point"),
        ),
        (
            lambda: Space(None, BOX(-1, 1, (3, 8, 8))),
            ("'observation' of shape (3, 8, 8) and type float32", "a vector or a matrix"),
        ),
        (
            lambda: TransformedEnv(Counting(), StepCounter()),
            ("'step_count' of shape (1,) and type int64", "observation_keys"),
        ),
        (lambda: Counting(batch_size=(3, 2)), ("batch size [3, 2]", "one dimension")),
        (not_an_environment, ("not_an_environment", "type list", "TorchRL environment")),
    ],
)
def test_what_does_not_fit_is_one_sentence(source, words):
    with pytest.raises(ValueError) as error:
        make_task(source, episode_length=5)
    message = str(error.value)
    assert message.startswith("task ") and message.endswith(".") and "\n" not in message
    assert all(word in message for word in words), message


def test_several_actions_are_refused():
    env = Counting()
    env.action_spec = Composite(left=Bounded(-1, 1, (1,)), right=Categorical(2))
    with pytest.raises(ValueError, match=r"actions \['left', 'right'\].* must have one 'action'"):
        make_task(env, episode_length=5)


def test_a_limit_is_needed_and_keys_must_exist():
    with pytest.raises(ValueError, match=r"episode_length is None, but task 'Counting'"):
        make_task(Counting)
    with pytest.raises(ValueError, match="has no observation 'bee'; choose from zebra, ant"):
        make_task(Counting, episode_length=5, observation_keys=["bee"])


@pytest.mark.parametrize(
    "path, words",
    [
        ("Counting", "package.module:function"),
        ("nowhere:make", "module 'nowhere', which Python does not find; PYTHONPATH"),
        ("test_envs_any:nothing", "test_envs_any has no 'nothing'"),
        ("test_envs_any:BOX.nothing", "has no 'BOX.nothing'"),
        ("test_envs_any:not_an_environment", "an object of type list"),
    ],
)
def test_import_paths_that_lead_nowhere(path, words):
    with pytest.raises(ValueError) as error:
        load_task("function", path, episode_length=5)
    assert str(error.value).startswith(f"task {path!r}") and words in str(error.value)


def test_unknown_workers():
    with pytest.raises(ValueError) as error:
        make_env(make_task(Counting, episode_length=9), workers="thread")
    assert str(error.value) == "workers 'thread' is unknown; choose from serial, process."


def of_gravity(g=10.0, length=1.0):
    env = gymnasium.make("Pendulum-v1", g=g)
    env.unwrapped.l = length
    return env


def test_arguments_reach_gymnasium_and_functions():
    task = load_task("gym", "Pendulum-v1", kwargs={"g": 3.0})
    assert task.make(0)._env.unwrapped.g == 3.0
    task = load_task("function", "test_envs_any:of_gravity", kwargs={"g": 4.0, "length": 2.0})
    pendulum = task.make(0)._env.unwrapped
    assert (pendulum.g, pendulum.l) == (4.0, 2.0)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (
            ("gym", "Pendulum-v1"),
            "kwargs is {'gravity': 1}, which task 'Pendulum-v1' does not take",
        ),
        (
            ("function", "test_envs_any:of_gravity"),
            "kwargs is {'gravity': 1}, which the function of task 'test_envs_any:of_gravity' does "
            "not take: got an unexpected keyword argument 'gravity'.",
        ),
        (
            ("dmcontrol", "cartpole-swingup"),
            "kwargs is {'gravity': 1}; with backend 'dmcontrol' it must be empty.",
        ),
    ],
)
def test_arguments_that_nothing_takes_are_one_sentence(arguments, sentence):
    with pytest.raises(ValueError) as error:
        load_task(*arguments, kwargs={"gravity": 1})
    assert str(error.value).startswith(sentence) and str(error.value).endswith(".")
    with pytest.raises(ValueError, match=r"kwargs is .* is an environment already; only a"):
        make_task(GymEnv("Pendulum-v1"), kwargs={"g": 1})


def test_repeat_and_observed_entries_of_the_suite():
    task = load_task("dmcontrol", "walker-walk", action_repeat=4, observation_keys=["velocity"])
    assert (task.episode_length, task.action_repeat, task.observation_shape) == (250, 4, (9,))
    env = make_env(task)
    before = env._envs[0].physics.time() if env.rollout(1) is not None else 0
    env.rollout(3)
    assert env._envs[0].physics.time() == pytest.approx(3 * 4 * 0.025)
    assert before == pytest.approx(4 * 0.025)
    with pytest.raises(ValueError, match="action_repeat is 0; it must be at least 1"):
        load_task("dmcontrol", "walker-walk", action_repeat=0)
    with pytest.raises(ValueError, match="has no observation 'speed'; choose from orientations"):
        load_task("dmcontrol", "walker-walk", observation_keys=["speed"])
