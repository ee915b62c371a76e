"""What crosses the border of an environment: copies, ranges, numbers that are finite."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from dm_control.rl import control
from dm_control.suite import cartpole
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import (
    DMControlWrapper,
    EnvBase,
    FrameSkipTransform,
    GymEnv,
    GymWrapper,
    TransformedEnv,
    default_info_dict_reader,
)

from torchrl_tdmpc.envs import NonFiniteError, make_env, make_task
from torchrl_tdmpc.trainers import evaluate

BOX = gymnasium.spaces.Box
STEPS = 7
JUNK = 7.0


class Plane(gymnasium.Env):
    """A point that is pushed; it behaves well."""

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"
    action_space = BOX(-1, 1, (2,), np.float32)
    observation_space = gymnasium.spaces.Dict(
        place=BOX(-np.inf, np.inf, (2,), np.float32), given=BOX(-np.inf, np.inf, (2,), np.float32)
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.given = self.np_random.uniform(-1, 1, 2), np.zeros(2)
        return self.observe(), self.info()

    def step(self, action):
        self.given = np.array(action, np.float64)
        self.place = self.place + 0.1 * self.given
        terminated = bool(np.abs(self.place).max() > 1.2)
        return self.observe(), float(self.given.sum()), terminated, False, self.info()

    def observe(self):
        return {"place": self.place.astype(np.float32), "given": self.given.astype(np.float32)}

    def info(self):
        return {"distance": np.abs(self.place).astype(np.float32)}

    def render(self):
        frame = np.zeros((64, 64, 3), np.uint8)
        frame[:, :, :2] = np.clip(100 + 80 * self.place, 0, 255)
        return frame


class Hostile(Plane):
    """Its twin has one buffer for each thing, keeps what it is given, and overwrites all of it."""

    def __init__(self):
        self.buffers = {
            "observation": {"place": np.zeros(2, np.float32), "given": np.zeros(2, np.float32)},
            "reward": np.zeros(1, np.float32),
            "terminated": np.zeros(1, bool),
            "truncated": np.zeros(1, bool),
            "info": {"distance": np.zeros(2, np.float32)},
            "frame": np.zeros((64, 64, 3), np.uint8),
        }
        self.kept = []

    def _fill(self, name, value):
        buffer = self.buffers[name]
        for key in value if isinstance(value, dict) else ():
            buffer[key][...] = value[key]
        if not isinstance(value, dict):
            buffer[...] = value
        return buffer

    def _spoil(self):
        for action in self.kept:
            action *= 0.1
        for buffer in self.buffers.values():
            for array in buffer.values() if isinstance(buffer, dict) else (buffer,):
                array[...] = JUNK

    def reset(self, **kwargs):
        self._spoil()
        observation, info = super().reset(**kwargs)
        return self._fill("observation", observation), self._fill("info", info)

    def step(self, action):
        self._spoil()
        observation, reward, terminated, truncated, info = super().step(action)
        action *= 0.1
        self.kept.append(action)
        return (
            self._fill("observation", observation),
            self._fill("reward", reward),
            self._fill("terminated", terminated),
            self._fill("truncated", truncated),
            self._fill("info", info),
        )

    def render(self):
        return self._fill("frame", super().render())


class TorchPlane(EnvBase):
    """The same for TorchRL; a state is read from the data."""

    def __init__(self):
        super().__init__()
        self.observation_spec = Composite(place=Unbounded((2,)), given=Unbounded((2,)))
        self.state_spec = Composite(place=Unbounded((2,)))
        self.action_spec = Bounded(-1.0, 1.0, (2,))
        self.reward_spec = Unbounded((1,))

    def _set_seed(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def _reset(self, tensordict=None):
        self.shown = torch.rand(2, generator=self.generator)
        return TensorDict(place=self.shown.clone(), given=torch.zeros(2))

    def _step(self, tensordict):
        action = tensordict["action"].clone()
        self.shown = tensordict["place"] + 0.1 * action
        done = (self.shown.abs().max() > 1.2).reshape(1)
        return TensorDict(
            place=self.shown.clone(), given=action, reward=action.sum().reshape(1), done=done
        )

    def render(self):
        frame = np.zeros((64, 64, 3), np.uint8)
        frame[:, :, :2] = (100 + 80 * self.shown.numpy()).clip(0, 255)
        return frame


class HostileTorch(TorchPlane):
    def __init__(self):
        super().__init__()
        self.kept, self.data = [], {}

    def _spoil(self):
        for data in self.kept:
            for value in data.values():
                value.fill_(JUNK if value.is_floating_point() else True)

    def _reset(self, tensordict=None):
        self._spoil()
        self.kept.append(data := super()._reset(tensordict))
        return data

    def _step(self, tensordict):
        data = super()._step(tensordict)  # reads what it was given before it spoils all
        kept = data.clone()
        self._spoil()
        self.kept += [tensordict, kept]
        tensordict["action"].mul_(0.1)
        tensordict["place"].fill_(JUNK)
        return kept


def with_info(env):
    reader = default_info_dict_reader(["distance"], spec=[Unbounded((2,))])
    return GymWrapper(env).set_info_dict_reader(reader)


KINDS = {
    "gymnasium": lambda make: make(),
    "info": lambda make: with_info(make()),
    "skip of TorchRL's wrapper": lambda make: GymWrapper(make(), frame_skip=2),
    "skip of Gymnasium's wrapper": lambda make: gymnasium.wrappers.MaxAndSkipObservation(
        gymnasium.wrappers.FlattenObservation(make()), 2
    ),
}
TORCH_KINDS = {
    "torchrl": lambda make: make(),
    "skip of TorchRL's transform": lambda make: TransformedEnv(make(), FrameSkipTransform(2)),
}


def data_of(make, workers="serial", *, repeat=1, pixels=False):
    """What an agent sees, and what it chose."""
    task = make_task(make, name="plane", episode_length=5, action_repeat=repeat, pixels=pixels)
    env = make_env(task, num_envs=2, seed=3, workers=workers)
    generator = torch.Generator().manual_seed(0)
    chosen = []

    def policy(tensordict):
        chosen.append(torch.rand(2, 2, generator=generator) * 2 - 1)
        return tensordict.set("action", chosen[-1].clone())

    data = env.rollout(STEPS, policy, break_when_any_done=False)
    env.close()
    return data, torch.stack(chosen, 1)


def check_twins(twin, hostile, **settings):
    expected, chosen = data_of(twin, **settings)
    data, _ = data_of(hostile, **settings)
    assert set(data.keys(True, True)) == set(expected.keys(True, True))
    assert (data == expected).all()
    assert torch.equal(data["action"], chosen)
    assert expected["observation"].float().std() > 0.1 and expected["next", "done"].any()


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("repeat", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_gymnasium_environment_gives_the_data_of_its_twin(kind, repeat, pixels):
    if pixels and kind != "gymnasium":
        pytest.skip("the frames do not depend on it")
    make = KINDS[kind]
    check_twins(lambda: make(Plane), lambda: make(Hostile), repeat=repeat, pixels=pixels)


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("repeat", [1, 2, 3])
@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_a_hostile_torchrl_environment_gives_the_data_of_its_twin(kind, repeat, pixels):
    make = TORCH_KINDS[kind]
    check_twins(lambda: make(TorchPlane), lambda: make(HostileTorch), repeat=repeat, pixels=pixels)


@pytest.mark.parametrize("twin, hostile", [(Plane, Hostile), (TorchPlane, HostileTorch)])
def test_hostile_environments_in_processes(twin, hostile):
    for repeat, pixels in ((1, True), (3, False)):
        expected, _ = data_of(twin, repeat=repeat, pixels=pixels)
        data, _ = data_of(hostile, "process", repeat=repeat, pixels=pixels)
        assert (data == expected).all()


def test_the_twin_observes_the_action_of_each_sub_step():
    data, chosen = data_of(Hostile, repeat=3)
    assert torch.equal(data["next", "observation"][..., 2:], chosen)  # place, then given
    whole = ~data["next", "terminated"].squeeze(-1)
    assert whole.sum() > 5
    torch.testing.assert_close(data["next", "reward"][whole], 3 * chosen.sum(-1, True)[whole])


class Motor(cartpole.Balance):
    """Scales the array that it is given, and keeps what it observes."""

    hostile = True

    def before_step(self, action, physics):
        self.given = np.array(action)
        super().before_step(action, physics)
        if self.hostile:
            action *= 0.1

    def get_observation(self, physics):
        observation = super().get_observation(physics)
        if not self.hostile:
            return observation
        if not hasattr(self, "kept"):
            self.kept = observation
        for key, value in observation.items():
            self.kept[key][...] = value
        return self.kept


class Tame(Motor):
    hostile = False


def cart(task):
    physics = cartpole.Physics.from_xml_string(*cartpole.get_model_and_assets())
    task = task(swing_up=False, sparse=False, random=0)
    env = control.Environment(physics, task, time_limit=10, control_timestep=0.01)
    return DMControlWrapper(env, frame_skip=2)


@pytest.mark.parametrize("repeat", [1, 2])
def test_a_hostile_task_of_dm_control_gives_the_data_of_its_twin(repeat):
    def rollout(kind):
        task = make_task(lambda: cart(kind), episode_length=9, action_repeat=repeat)
        assert task.action_repeat == 2 * repeat
        torch.manual_seed(0)
        return make_env(task, seed=1).rollout(6)

    assert (rollout(Motor) == rollout(Tame)).all()


# ------------------------------------------------------------------ bounds


class Strict(gymnasium.Env):
    """Refuses an action outside of its bounds."""

    observation_space = BOX(-np.inf, np.inf, (1,), np.float32)

    def __init__(self, low, high, dtype):
        self.action_space = BOX(np.array(low, dtype), np.array(high, dtype), dtype=dtype)
        self.given = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.given.append(action)
        return np.zeros(1, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_ends_of_the_action_space_are_inside_it(dtype):
    generator = np.random.default_rng(0)
    for _ in range(20):
        low, high = np.sort(generator.uniform(-3, 3, (2, 4)), 0)
        env = make_task(lambda lo=low, hi=high: Strict(lo, hi, dtype), episode_length=5).make(0)
        for action in (-1.0, 1.0, 1 + 1e-7, 0.3):
            env.step(env.reset().set("action", torch.full((4,), action)))
        given = env._env.given
        np.testing.assert_allclose(given[-2], np.array(high, dtype), rtol=1e-6)
        np.testing.assert_allclose(given[-1], low + 0.65 * (high - low), rtol=5e-3, atol=5e-3)


def test_a_locked_action_is_kept_at_its_value():
    task = make_task(lambda: Strict([-1, 0.3], [2, 0.3], np.float64), episode_length=5)
    env = task.make(0)
    assert task.action_dim == 2
    assert env.action_spec.space.low.tolist() == [-1, -1]
    for action in (-1.0, 0.0, 1.0):
        env.step(env.reset().set("action", torch.full((2,), action)))
    assert np.stack(env._env.given[-3:])[:, 1].tolist() == [0.3] * 3
    np.testing.assert_allclose(np.stack(env._env.given[-3:])[:, 0], [-1, 0.5, 2])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.5, 1.001])
@pytest.mark.parametrize("repeat", [1, 2])
def test_an_action_that_is_no_action_never_reaches_the_environment(bad, repeat):
    task = make_task(lambda: Strict([-1], [1], np.float32), episode_length=5, action_repeat=repeat)
    env = task.make(0)
    data = env.reset().set("action", torch.tensor([bad]))
    with pytest.raises(NonFiniteError, match=r"given the action \[.*must be finite and in \[-1, 1"):
        env.step(data)
    assert env._env.given == []


# ------------------------------------------------------------------ finite numbers


class Sensor(Plane):
    """Fails at a step."""

    observation_space = BOX(-np.inf, np.inf, (2,), np.float32)
    bad = {"observation": np.nan, "reward": 0.0}

    def reset(self, **kwargs):
        self.t = 0
        return super().reset(**kwargs)[0]["place"], {}

    def step(self, action):
        self.t += 1
        observation, reward, *_ = super().step(0 * action)
        fails = self.t == 5
        place = observation["place"] + fails * np.float32(self.bad["observation"])
        return place, reward + fails * self.bad["reward"], False, False, {}


@pytest.mark.parametrize("key", ["observation", "reward"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_in_an_evaluation(key, value):
    sensor = type("Sensor", (Sensor,), {"bad": {"observation": 0.0, "reward": 0.0, key: value}})
    if not np.isnan(value):
        sensor.bad = dict.fromkeys(("observation", "reward"), 0.0)

        def step(self, action, parent=Sensor.step):
            place, reward, *rest = parent(self, action)
            if self.t == 5:
                place, reward = (place + value, reward) if key == "observation" else (place, value)
            return np.float32(place), reward, *rest

        sensor.step = step
    else:
        sensor.step = lambda self, action: nan_at_5(self, action, key)
    task = make_task(sensor, episode_length=10)
    with pytest.raises(NonFiniteError, match=f"task 'Sensor' gives NaN or infinity as its {key}"):
        evaluate(None, task, episodes=1, seed=1)


def nan_at_5(env, action, key):
    env.t += 1
    place = np.full(2, np.nan if env.t == 5 and key == "observation" else 0.5, np.float32)
    reward = np.nan if env.t == 5 and key == "reward" else 0.5
    return place, reward, False, False, {}


def test_large_numbers_are_finite():
    class Large(Sensor):
        def step(self, action):
            return np.full(2, 3e38, np.float32), 1e30, False, False, {}

    data = make_env(make_task(Large, episode_length=10)).rollout(4)
    assert data["next", "observation"].max() > 1e38


def test_an_entry_that_is_not_observed_may_be_nan():
    class Blind(Plane):
        def observe(self):
            return super().observe() | {"given": np.full(2, np.nan, np.float32)}

    task = make_task(Blind, episode_length=10, observation_keys=["place"])
    assert make_env(task).rollout(3)["observation"].shape == (1, 3, 2)


def test_rendered_frames_are_copies():
    from torchrl_tdmpc.envs import render

    task = make_task(lambda: GymEnv("Pendulum-v1"), name="p")
    assert task.episode_length == 200
    env = make_task(Hostile, episode_length=5).make(0)
    data = env.reset()
    first = render(env)
    kept = first.copy()
    env.step(env.rand_action(data))
    render(env)
    np.testing.assert_array_equal(first, kept)
