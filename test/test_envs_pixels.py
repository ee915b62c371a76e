"""Frames: whose they are, their order, and runs that learn from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dm_control import suite
from runs import run
from torchrl.testing.mocking_classes import ContinuousActionVecMockEnv

from torchrl_tdmpc.envs import load_task, make_env, make_task
from torchrl_tdmpc.envs.pixels import to_frame


def frame_of(raw, camera=0):
    return torch.from_numpy(raw.physics.render(64, 64, camera_id=camera).copy()).permute(2, 0, 1)


@pytest.mark.parametrize(
    "domain, task, camera", [("cartpole", "swingup", 0), ("quadruped", "run", 2)]
)
def test_frames_are_the_published_cameras_newest_last(domain, task, camera):
    env = load_task("dmcontrol", f"{domain}-{task}", pixels=True).make(3)
    raw = suite.load(domain, task, task_kwargs={"random": 3})
    raw.reset()
    frames = [frame_of(raw, camera)] * 3  # after a reset the first frame, three times
    td = env.reset()
    rng = np.random.RandomState(0)
    for _ in range(4):
        assert td["observation"].dtype == torch.uint8
        assert torch.equal(td["observation"], torch.cat(frames[-3:]))
        action = rng.uniform(-1, 1, env.action_spec.shape).astype(np.float32)
        td = env.step(td.set("action", torch.from_numpy(action)))["next"]
        low, high = raw.action_spec().minimum, raw.action_spec().maximum
        for _ in range(2):
            raw.step(low + (action + 1) / 2 * (high - low))
        frames.append(frame_of(raw, camera))
    assert not torch.equal(frames[-1], frames[0])


def test_every_environment_shows_itself_and_begins_anew():
    task = load_task("dmcontrol", "cartpole-swingup", episode_length=3, pixels=True)
    assert (task.observation_shape, task.frame_channels) == ((9, 64, 64), 3)
    data = make_env(task, num_envs=2, seed=1).rollout(5, break_when_any_done=False)
    first, second = data["observation"]
    assert not torch.equal(first[0], second[0])
    assert set(data.keys()) == {
        *("observation", "action", "next", "done", "terminated", "truncated", "_step_count")
    }
    stacks = data["observation"].unflatten(2, (3, 3))  # [env, time, frame, channel, 64, 64]
    for begin in (0, 3):  # both episodes begin with one frame, three times
        assert (stacks[:, begin] == stacks[:, begin, :1]).all()
    assert not torch.equal(stacks[:, 0], stacks[:, 3])
    after = data["next", "observation"].unflatten(2, (3, 3))
    assert (after[:, :, :2] == stacks[:, :, 1:]).all()


def test_states_and_frames_are_of_the_same_episode():
    task, pixels = (load_task("dmcontrol", "reacher-easy", pixels=p) for p in (False, True))
    state, frames = task.make(5), pixels.make(5)
    for _ in range(2):
        state.reset(), frames.reset()
        np.testing.assert_array_equal(state.physics.data.qpos, frames.physics.data.qpos)


def test_gymnasium_is_rendered_too():
    task = load_task("gym", "InvertedPendulum-v5", pixels=True)
    assert task.observation_shape == (9, 64, 64)
    env = make_env(task, seed=1)
    data = env.rollout(3)
    assert (data["next", "observation"][0, 0, :6] == data["observation"][0, 0, 3:]).all()
    assert data["observation"].float().std() > 10  # a frame, not a blank


class Painted(ContinuousActionVecMockEnv):
    frame = np.zeros((128, 192, 3), np.uint8)

    def render(self):
        return self.frame


def test_larger_frames_are_averaged_down():
    frame = np.zeros((128, 192, 3), np.uint8)
    frame[:2, :3, 0] = np.array([[10, 20, 30], [40, 50, 60]])
    assert to_frame(frame)[:, 0, 0].tolist() == [35, 0, 0]
    assert to_frame(frame).sum() == 35
    task = make_task(Painted, episode_length=5, pixels=True)
    assert task.make(0).reset()["observation"].shape == (9, 64, 64)


def test_what_cannot_be_rendered_is_one_sentence(monkeypatch):
    def refused(source):
        with pytest.raises(ValueError) as error:
            make_task(source, episode_length=5, pixels=True)
        assert "\n" not in str(error.value)
        return str(error.value)

    message = refused(ContinuousActionVecMockEnv)
    assert message.startswith("pixels is true, but task 'ContinuousActionVecMockEnv' can")
    assert "has no attribute 'render'" in message and "MUJOCO_GL" in message
    monkeypatch.setattr(Painted, "frame", np.zeros((64, 64, 3)))
    assert "no uint8 frame" in refused(Painted)
    monkeypatch.setattr(Painted, "frame", None)
    assert "no uint8 frame" in refused(Painted)


def test_a_run_learns_from_frames(tmp_path):
    overrides = ("env.pixels=true", "replay.capacity=100", "train.steps=22", "eval.episodes=1")
    trainer, table, evaluations = run(tmp_path, *overrides)
    assert trainer.replay.num_transitions == 2 * (3 + 10)  # each frame of two episodes, once
    batch = trainer.replay.sample()
    assert batch["observation"].dtype == torch.uint8
    assert batch["observation"].shape[2:] == (9, 64, 64)
    assert type(trainer.update.loss.world_model.encoder).__name__ == "PixelEncoder"
    assert len(table) == 2 and len(evaluations) == 2
