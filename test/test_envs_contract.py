"""What an environment must give: each rule with its sentence, each conversion with its value."""

from __future__ import annotations

import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.envs import GymEnv

from torchrl_tdmpc.envs import load_task, make_env, make_task
from torchrl_tdmpc.trainers import discount_heuristic, evaluate, seed_steps

PAGE = Path(__file__).parents[1] / "docs/environments.md"
BOX = gymnasium.spaces.Box


class Mine(gymnasium.Env):
    """Counts its steps, and keeps every rule."""

    metadata = {"render_modes": ["rgb_array"]}
    action_space = BOX(-1, 1, (1,), np.float32)
    observation_space = BOX(-np.inf, np.inf, (2,), np.float32)
    dtype = np.float32

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def observe(self):
        return np.full(2, self.t, self.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        return self.observe(), 0.5, False, False, {}


def mine(**methods):
    """The same environment with other methods or attributes."""
    return type("Mine", (Mine,), methods)


def without_seed(self):
    return Mine.reset(self)


def without_info(self, *, seed=None, options=None):
    return Mine.reset(self, seed=seed)[0]


def four_values(self, action):
    return Mine.step(self, action)[:4]


def giving(place, value):
    """A step with another value at a place."""

    def step(self, action):
        given = list(Mine.step(self, action))
        given[place] = value
        return tuple(given)

    return step


AT_ONCE = {
    "no seed": (
        mine(reset=without_seed),
        "task 'mine' breaks a rule: reset() must take seed and options, by which an episode is "
        "repeated; Mine.reset takes nothing.",
    ),
    "no info": (
        mine(reset=without_info),
        "task 'mine' breaks a rule: reset() must return an observation and an info dictionary; it "
        "returned an array of shape (2,).",
    ),
    "four values": (
        mine(step=four_values),
        "task 'mine' breaks a rule: step() must return five values, which are observation, reward, "
        "terminated, truncated and an info dictionary; it returned 4 values (an array of shape "
        "(2,), 0.5, False, False).",
    ),
    "two rewards": (
        mine(step=giving(1, np.ones(2))),
        "task 'mine' breaks a rule: a reward must be one number; it is an array of shape (2,).",
    ),
    "a flag of 2": (
        mine(step=giving(2, 2)),
        "task 'mine' breaks a rule: terminated must be one boolean, 0 or 1; it is 2.",
    ),
    "another length": (
        mine(observe=lambda self: np.zeros(3, np.float32)),
        "task 'mine' breaks a rule: the observation must be numbers of shape (2,), as its space "
        "says; it is of shape (3,) and holds numbers.",
    ),
    "text": (
        mine(observation_space=gymnasium.spaces.Text(5), observe=lambda self: "here"),
        "task 'mine' observes 'observation' of shape () and type text; it must be a vector or a "
        "matrix of floating-point numbers, or be left out by observation_keys of make_task.",
    ),
    "NaN at the start": (
        mine(observe=lambda self: np.full(2, np.nan, np.float32)),
        "task 'mine' gives NaN or infinity as its observation by reset().",
    ),
}
LATER = {
    "NaN": (
        mine(observe=lambda self: np.full(2, np.nan if self.t > 4 else 0, np.float32)),
        "task 'mine' gives NaN or infinity as its observation by step().",
    ),
    "infinite reward": (
        mine(step=lambda self, a: giving(1, np.inf if self.t > 4 else 0.0)(self, a)),
        "task 'mine' gives NaN or infinity as its reward by step().",
    ),
    "a limit below that asked for": (
        mine(step=lambda self, a: giving(3, self.t == 5)(self, a)),
        "episode_length is 9, but task 'mine' truncated its first episode after 6 agent steps; "
        "choose 6, or change the limit that the environment has of its own.",
    ),
}


@pytest.mark.parametrize("kind", AT_ONCE)
def test_a_broken_rule_is_one_sentence_when_the_task_is_made(kind):
    make, sentence = AT_ONCE[kind]
    with pytest.raises(ValueError) as error:
        make_task(make, name="mine", episode_length=9)
    assert str(error.value) == sentence


@pytest.mark.parametrize("kind", LATER)
def test_a_rule_that_is_broken_later_is_one_sentence_then(kind):
    make, sentence = LATER[kind]
    task = make_task(make, name="mine", episode_length=9)
    with pytest.raises((ValueError, FloatingPointError)) as error:
        evaluate(None, task, episodes=1, seed=0)
    assert str(error.value) == sentence


class Declares(gymnasium.Wrapper):
    """Counts steps to a limit, as Gymnasium's TimeLimit does, and ends elsewhere or nowhere."""

    end = 1000

    def __init__(self, env):
        super().__init__(env)
        self._max_episode_steps, self._elapsed_steps = 6, 0

    def reset(self, **kwargs):
        self._elapsed_steps = 0
        return self.env.reset(**kwargs)

    def step(self, action):
        self._elapsed_steps += 1
        *given, _, info = self.env.step(action)
        return *given, self._elapsed_steps == self.end, info


class DeclaresMore(Declares):
    end = 4


GOES_ON = (
    "task 'mine' declares a limit of 6 agent steps, but its episode goes on after them; choose "
    "episode_length 6, which truncates it there."
)
ENDS_EARLY = (
    "task 'mine' declares a limit of 6 agent steps, but truncated its first episode after 4; "
    "choose episode_length 4."
)


@pytest.mark.parametrize("kind, sentence", [(Declares, GOES_ON), (DeclaresMore, ENDS_EARLY)])
def test_an_episode_is_as_long_as_its_declared_limit(kind, sentence):
    def make():
        return kind(Mine())

    task = make_task(make, name="mine")
    assert task.episode_length == 6
    with pytest.raises(ValueError) as error:
        evaluate(None, task, episodes=1, seed=0)
    assert str(error.value) == sentence
    asked = make_task(make, name="mine", episode_length=min(6, kind.end))
    length = evaluate(None, asked, episodes=1, seed=0)[0]["length"]
    assert length == asked.episode_length == min(6, kind.end)


def test_a_limit_holds_from_the_second_episode_on_whatever_comes():
    """The first episode is compared alone: later ones may be truncated for another reason."""

    class Later(Declares):
        end = 6

        def reset(self, **kwargs):
            if self._elapsed_steps == 6:
                self.end = 3
            return super().reset(**kwargs)

    env = make_env(make_task(lambda: Later(Mine()), name="mine"))
    done = env.rollout(15, break_when_any_done=False)["next", "truncated"].flatten()
    assert done.nonzero().flatten().tolist() == [5, 8, 11, 14]


def test_the_page_has_every_sentence():
    text = PAGE.read_text(encoding="utf-8")
    table = text.partition("## What is checked")[2].partition("\n## ")[0]
    said = set(re.findall(r"`([^`]*)` *\|$", table, re.MULTILINE))
    ours = {message for _, message in (AT_ONCE | LATER).values()} | {GOES_ON, ENDS_EARLY, ACTION}
    assert said == ours


ACTION = "task 'mine' was given the action [nan]; it must be finite and in [-1, 1]."


def test_an_action_that_is_none_is_one_sentence():
    env = make_task(Mine, name="mine", episode_length=9).make(0)
    with pytest.raises(FloatingPointError) as error:
        env.step(env.reset().set("action", torch.tensor([torch.nan])))
    assert str(error.value) == ACTION


# ------------------------------------------------------------------ conversions


def rollout(make, steps=4, **settings):
    return make_env(make_task(make, name="mine", episode_length=9, **settings)).rollout(steps)


@pytest.mark.parametrize("flag", [0, 1, 0.0, np.int8(1), np.array([1]), torch.tensor(True)])
def test_flags_that_are_0_or_1_are_booleans(flag):
    data = rollout(mine(step=lambda self, a: giving(2, flag if self.t > 4 else 0)(self, a)), 9)
    assert data["next", "terminated"].dtype == torch.bool
    assert data["next", "terminated"].flatten().any() == bool(flag)
    assert data.shape == (1, 6 if flag else 9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_every_floating_dtype_is_float32(dtype):
    space = BOX(-np.inf, np.inf, (2,), dtype if dtype != np.longdouble else np.float64)
    data = rollout(mine(dtype=dtype, observation_space=space))
    assert data["next", "observation"].dtype == data["next", "reward"].dtype == torch.float32
    assert data["next", "observation"][0, :, 0].tolist() == [1, 2, 3, 4]
    assert (data["next", "reward"] == 0.5).all()


@pytest.mark.parametrize("reward", [2, True, np.float16(2), np.array([[2]]), torch.tensor(2)])
def test_a_reward_is_one_float32_number(reward):
    reward_of = rollout(mine(step=giving(1, reward)))["next", "reward"]
    assert reward_of.dtype == torch.float32 and reward_of.shape == (1, 4, 1)
    assert (reward_of == np.asarray(reward).item()).all()


def test_an_image_that_is_observed_is_resized_and_stacked():
    def observe(self):
        return np.full((128, 96, 3), 10 * self.t, np.uint8)

    camera = mine(observation_space=BOX(0, 255, (128, 96, 3), np.uint8), observe=observe)
    data = rollout(camera, 4, pixels=True)["next", "observation"]
    assert data.shape == (1, 4, 9, 64, 64) and data.dtype == torch.uint8
    assert data[0, 3, ::3, 5, 5].tolist() == [20, 30, 40]
    with pytest.raises(ValueError, match=r"an image of shape .*choose pixels=True \(env.pixels="):
        rollout(camera)


# ------------------------------------------------------------------ units and names


@pytest.mark.parametrize(
    "make",
    [
        lambda: GymEnv("Pendulum-v1", frame_skip=4),
        lambda: gymnasium.wrappers.MaxAndSkipObservation(gymnasium.make("Pendulum-v1"), 4),
    ],
)
def test_a_limit_below_a_frame_skip_is_divided(make):
    task = make_task(make, name="mine")
    assert (task.episode_length, task.action_repeat) == (50, 4)
    assert make_env(task).rollout(200).shape == (1, 50)
    assert discount_heuristic(task.episode_length, task.discount_cap) == discount_heuristic(50)
    assert seed_steps(task.episode_length) == seed_steps(50)
    with pytest.raises(ValueError) as error:
        make_task(make, name="mine", episode_length=60)
    assert str(error.value) == (
        "episode_length 60 does not fit task 'mine'; choose from 1 to 50 agent steps."
    )


gymnasium.register("MineOfThisModule-v0", entry_point=Mine, max_episode_steps=7)


def test_an_id_may_have_its_module_in_front_and_is_near_others_when_unknown():
    task = load_task("gym", "test_envs_contract:MineOfThisModule-v0")
    assert task.episode_length == 7
    with pytest.raises(ValueError) as error:
        load_task("gym", "test_envs_contract:MineOfThisModul-v0")
    assert "MineOfThisModule-v0" in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    "settings, mode", [({}, None), ({"video": True}, "rgb_array"), ({"pixels": True}, "rgb_array")]
)
def test_a_renderer_is_asked_for_when_frames_are_wanted(monkeypatch, settings, mode):
    monkeypatch.setattr(Mine, "render", lambda self: np.zeros((64, 64, 3), np.uint8))
    env = make_task("MineOfThisModule-v0", **settings).make(0)
    assert env.base_env._env.render_mode == mode
