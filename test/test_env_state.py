"""Environments go on, bit for bit, where others were."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from dm_control import suite
from dm_control.rl import control
from dm_control.suite import cartpole
from torchrl.envs import DMControlWrapper, TransformedEnv

from torchrl_tdmpc.envs import (
    env_state,
    has_lost_processes,
    load_task,
    make_env,
    make_task,
    set_env_state,
    why_no_state,
)
from torchrl_tdmpc.envs.dmcontrol import published_name
from torchrl_tdmpc.envs.state import _dmcontrol

# What a step depends on, each in one of them: warm starts of the solver under contact, targets
# written into the model, terrain, actuator activations, action scaling, a time limit of our own
TASKS = ["walker-walk", "reacher-hard", "swimmer-swimmer6", "quadruped-walk", "pointmass-hard"]


def go_on(env, data, actions):
    """What is observed; episodes end and begin on the way."""
    steps = []
    for action in actions:
        step, data = env.step_and_maybe_reset(data.clone().set("action", action))
        steps.append(step["next"].select("observation", "reward", "done").clone())
    return torch.stack(steps), data


def warm_starts(env):
    """Where MuJoCo's solver begins; another beginning shows in a reward only after long."""
    return [_dmcontrol(worker).physics.data.qacc_warmstart.tolist() for worker in env._envs]


@pytest.mark.parametrize("name", TASKS)
def test_steps_and_resets_are_the_same(name):
    task = load_task("dmcontrol", name, episode_length=20)
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(60, 2, task.action_dim, generator=generator) * 2 - 1
    env, other = make_env(task, num_envs=2, seed=3), make_env(task, num_envs=2, seed=4)
    other.reset()
    _, now = go_on(env, env.reset(), actions[:31])
    file = io.BytesIO()
    torch.save(env_state(env), file)
    file.seek(0)
    saved_warm_starts = warm_starts(env)
    here = now.clone()
    expected, _ = go_on(env, now, actions[31:])
    assert expected["done"].any()
    different, _ = go_on(other, here.clone(), actions[31:])
    assert not (different == expected).all()
    set_env_state(TransformedEnv(other), torch.load(file, weights_only=True))
    assert warm_starts(other) == saved_warm_starts
    ours, _ = go_on(other, here, actions[31:])
    assert (ours == expected).all()


def test_an_episode_ends_at_the_suites_own_limit():
    """dm_control itself counts environment steps to 1000, two to an agent step."""
    task = load_task("dmcontrol", "cartpole-swingup")
    env, other = make_env(task, seed=1), make_env(task, seed=2)
    env.reset()
    now = other.reset()
    _dmcontrol(env._envs[0])._step_count = 994
    env._envs[0].limit.agent_steps = 497
    set_env_state(other, env_state(env))
    steps, _ = go_on(other, now, torch.zeros(4, 1, 1))
    assert steps["done"].flatten().tolist() == [False, False, True, False]


def test_a_state_does_not_change_with_the_environment():
    env = make_env(load_task("dmcontrol", "reacher-easy", episode_length=3), seed=0)
    env.reset()
    state = env_state(env)
    kept = {name: value.clone() for name, value in state[0]["model"].items()}
    physics = state[0]["physics"].clone()
    for _ in range(5):
        env.rollout(3)
    assert torch.equal(physics, state[0]["physics"])
    assert all(torch.equal(kept[name], state[0]["model"][name]) for name in kept)


def test_what_cannot_tell_its_state():
    env = make_env(load_task("gym", "Pendulum-v1"))
    env.reset()
    assert env_state(env) is None
    assert not has_lost_processes(env)
    one, two = (make_env(load_task("dmcontrol", "cup-catch"), num_envs=n) for n in (1, 2))
    one.reset()
    two.reset()
    with pytest.raises(ValueError, match="of 1 environments; 2 here"):
        set_env_state(two, env_state(one))
    with pytest.raises(ValueError, match="of 1 environments; none here"):
        set_env_state(env, env_state(one))


class Goal(cartpole.Balance):
    """Keeps a goal, what it has seen, and a generator of its own; or something that is no value."""

    def __init__(self, extra=None):
        super().__init__(swing_up=False, sparse=False, random=1)
        self.goal, self.seen = np.zeros(1), {"steps": [], "last": (0, None)}
        self.dice = np.random.default_rng(5)
        if extra is not None:
            self.extra = extra

    def initialize_episode(self, physics):
        super().initialize_episode(physics)
        self.goal = self.random.uniform(-1, 1, 1)

    def get_reward(self, physics):
        self.seen["steps"].append(float(self.dice.random()))
        return float(self.goal[0] + sum(self.seen["steps"]))


def goal_task(extra=None):
    def make():
        physics = cartpole.Physics.from_xml_string(*cartpole.get_model_and_assets())
        task = Goal(extra)
        return DMControlWrapper(control.Environment(physics, task, 10, control_timestep=0.01))

    return make_task(make, name="goal", episode_length=8)


def test_arrays_containers_and_generators_of_a_task_are_its_state():
    env, other = make_env(goal_task(), seed=1), make_env(goal_task(), seed=2)
    actions = torch.zeros(12, 1, 1)
    _, now = go_on(env, env.reset(), actions[:3])
    other.reset()
    file = io.BytesIO()
    torch.save(env_state(env), file)
    file.seek(0)
    set_env_state(other, torch.load(file, weights_only=True))
    here = now.clone()
    assert (go_on(env, now, actions[3:])[0] == go_on(other, here, actions[3:])[0]).all()


def test_an_attribute_of_another_kind_is_named():
    env = make_env(goal_task(extra=[1, object()]))
    env.reset()
    assert env_state(env) is None
    assert why_no_state(env) == "of the task, extra[1] is of type object, which cannot be saved"


@pytest.mark.parametrize("domain, task", [t for t in suite.ALL_TASKS if t[0] != "lqr"])
def test_every_suite_task_goes_on_where_it_was(domain, task):
    task = load_task("dmcontrol", published_name(domain, task))
    env, other = make_env(task, seed=1), make_env(task, seed=2)
    actions = torch.rand(4, 1, task.action_dim, generator=torch.Generator().manual_seed(0)) * 2 - 1
    _, now = go_on(env, env.reset(), actions[:2])
    other.reset()
    set_env_state(other, env_state(env))
    here = now.clone()
    assert (go_on(env, now, actions[2:])[0] == go_on(other, here, actions[2:])[0]).all()
