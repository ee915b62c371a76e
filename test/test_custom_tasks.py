"""The official implementation's own tasks against numbers recorded from it.

The arrays are described in ``test/reference/custom_tasks.md``.
"""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch
from reference_data import FOLDER

from torchrl_tdmpc.envs import env_state, load_task, make_env, set_env_state
from torchrl_tdmpc.envs.custom import TASKS
from torchrl_tdmpc.envs.dmcontrol import suite_env


def recorded():
    """The numbers of each task, by its name."""
    found = {}
    for path in sorted(FOLDER.glob("*.npz")):
        with np.load(path) as arrays:
            if "mt30_tasks" not in arrays.files:
                continue
            for name in arrays["tasks"].tolist():
                prefix = f"{name}/"
                of_task = {k[len(prefix) :]: k for k in arrays.files if k.startswith(prefix)}
                found[name] = {short: arrays[key] for short, key in of_task.items()}
    return found


RECORDED = recorded()


@pytest.fixture(params=RECORDED)
def task(request):
    return request.param, RECORDED[request.param]


def flat(observation):
    return np.concatenate([np.ravel(value) for value in observation.values()])


def assert_equal(ours, published, tolerance=1e-12):
    np.testing.assert_allclose(ours, published, rtol=tolerance, atol=tolerance)


def test_rewards_and_observations_of_states(task):
    name, numbers = task
    env = suite_env(name, 0)
    env.reset()
    model, data = env.physics.named.model, env.physics.data
    for i in range(len(numbers["qpos"])):
        mujoco.mj_resetData(env.physics.model.ptr, data.ptr)
        if "target_pos" in numbers:
            model.geom_pos["target"] = numbers["target_pos"][i]
            model.geom_size["target", 0] = numbers["target_size"][i]
        data.qpos[:], data.qvel[:] = numbers["qpos"][i], numbers["qvel"][i]
        data.ctrl[:] = numbers["ctrl"][i]
        mujoco.mj_forward(env.physics.model.ptr, data.ptr)
        assert_equal(env.task.get_reward(env.physics), numbers["reward"][i])
        observation = flat(env.task.get_observation(env.physics))
        assert_equal(observation, numbers["observation"][i])
    assert numbers["reward"].std() > 0


def test_resets(task):
    name, numbers = task
    env = suite_env(name, 0)
    for seed in range(len(numbers["reset_qpos"])):
        env.task.random.seed(seed)  # as that of a fresh environment
        observation = flat(env.reset().observation)
        assert_equal(env.physics.data.qpos, numbers["reset_qpos"][seed])
        assert_equal(env.physics.data.qvel, numbers["reset_qvel"][seed])
        assert_equal(observation, numbers["reset_observation"][seed])
        if "reset_target_pos" in numbers:
            position = env.physics.named.model.geom_pos["target"]
            assert_equal(position, numbers["reset_target_pos"][seed])


def test_rollouts(task):
    name, numbers = task
    env = suite_env(name, int(numbers["rollout_seed"]))
    timestep = env.reset()
    for t, action in enumerate(numbers["rollout_action"]):
        assert_equal(env.physics.data.qpos, numbers["rollout_qpos"][t])
        assert_equal(env.physics.data.qvel, numbers["rollout_qvel"][t])
        assert_equal(flat(timestep.observation), numbers["rollout_observation"][t], 1e-6)
        for reward in numbers["rollout_reward_each"][t]:
            timestep = env.step(action)
            assert_equal(timestep.reward, reward)
    assert_equal(env.physics.data.qpos, numbers["rollout_qpos"][-1])


ONE_OF_EACH_BODY = {body: name for name, body in TASKS.items() if name in RECORDED}.values()


@pytest.mark.parametrize("name", ONE_OF_EACH_BODY)
def test_what_the_agent_sees(name):
    numbers = RECORDED[name]
    loaded = load_task("dmcontrol", name)
    facts = (loaded.episode_length, loaded.action_repeat, loaded.action_dim, loaded.episodic)
    published = ("episode_length", "action_repeat", "action_dim")
    assert facts == (*(int(numbers[fact]) for fact in published), False)
    assert loaded.observation_shape == (int(numbers["observation_dim"]),)
    env = loaded.make(int(numbers["rollout_seed"]))
    data = env.reset()
    for t, action in enumerate(torch.from_numpy(numbers["rollout_action"])):
        assert_equal(data["observation"], numbers["rollout_observation"][t], 1e-6)
        data = env.step(data.set("action", action))["next"]
        assert_equal(data["reward"].item(), numbers["rollout_reward"][t], 1e-6)
    env.close()


def test_names():
    assert set(RECORDED) in (set(), set(TASKS))
    assert load_task("dmcontrol", "Cup_Spin").name == "cup-spin"
    with pytest.raises(ValueError, match=r"task 'ball_in_cup-spin' is unknown"):
        load_task("dmcontrol", "ball_in_cup-spin")
    with pytest.raises(ValueError, match=r"did you mean walker-walk-backwards"):
        load_task("dmcontrol", "walker-walk-backward")


@pytest.mark.parametrize("name", ["cup-spin", "reacher-four-hard", "fish-obstacles"])
def test_a_run_can_be_continued_in_the_middle(name):
    """What a task adds to dm_control's is saved with its state."""
    task = load_task("dmcontrol", name)
    env, other = make_env(task, seed=1), make_env(task, seed=2)
    data = env.rollout(3, break_when_any_done=False)[..., -1]["next"].exclude("reward")
    other.reset()
    set_env_state(other, env_state(env))
    action = torch.full((1, task.action_dim), 0.3)
    stepped, again = (e.step(data.clone().set("action", action))["next"] for e in (env, other))
    assert (stepped == again).all()
    begun, again = env.reset(), other.reset()
    assert (begun == again).all()
