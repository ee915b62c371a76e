"""Frames and videos of environments: what is drawn, recorded, and left unwritten."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import sys
from dataclasses import replace
from functools import partial

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from torchrl.envs import SerialEnv, TransformedEnv
from torchrl.testing.mocking_classes import CountingEnv

from torchrl_tdmpc.envs import choose_renderer, load_task, make_env, render
from torchrl_tdmpc.recording import FirstEpisodeRecorder, check_video, record_first_episode
from torchrl_tdmpc.trainers import evaluate


def frames(path):
    """Every frame of an mp4, ``[T, height, width, 3]``."""
    reader = imageio_ffmpeg.read_frames(path)
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in reader])


@pytest.fixture(scope="module")
def task():
    return load_task("dmcontrol", "walker-stand", episode_length=6)


def test_a_video_shows_the_first_episode_and_changes_nothing(task, tmp_path):
    path = tmp_path / "new" / "walker.mp4"
    state = torch.get_rng_state()
    with_video = evaluate(
        None, task, episodes=2, seed=3, on_begin=partial(record_first_episode, path=path)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert with_video == evaluate(None, task, episodes=2, seed=3)
    assert list(path.parent.iterdir()) == [path]

    # One frame for the initial state of the first environment, and one for each agent step
    env = make_env(task, num_envs=2, seed=3)
    env.reset()
    frame = render(env._envs[0])
    video = frames(path)
    assert video.shape == (task.episode_length + 1, *frame.shape)
    assert np.abs(video[0].astype(float) - frame).mean() < 4  # compression loses a little
    changes = np.abs(video[1:].astype(float) - video[:-1]).mean((1, 2, 3))
    assert (changes > 0.5).all(), changes  # it moves in every frame


def test_gymnasium_is_drawn_at_its_own_size():
    env = load_task("gym", "InvertedPendulum-v5").make(0)
    env.reset()
    frame = render(env)
    assert frame.shape == (480, 480, 3) and frame.dtype == np.uint8
    assert frame.std() > 10  # a frame, not a blank


def counting_env(*max_steps):
    return SerialEnv(len(max_steps), [lambda n=n: CountingEnv(max_steps=n) for n in max_steps])


def grey(level):
    return np.full((32, 48, 3), 40 * level, np.uint8)


def test_recording_ends_with_the_first_episode_of_the_first_environment(tmp_path):
    batch = counting_env(2, 5)
    recorder = FirstEpisodeRecorder(tmp_path / "count.mp4", lambda: grey(int(batch._envs[0].count)))
    env = TransformedEnv(batch, recorder)
    env.rollout(9, lambda observation: torch.ones(2, 1, dtype=torch.int32))
    assert recorder.has_ended
    env.close()
    levels = frames(tmp_path / "count.mp4").mean((1, 2, 3)) / 40
    np.testing.assert_allclose(levels, np.arange(len(levels)), atol=0.1)
    assert len(levels) == 4


def test_an_episode_cut_short_leaves_no_video(task, tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record = partial(record_first_episode, path=tmp_path / "walker.mp4")
        evaluate(None, task, episodes=1, seed=0, on_step=stop, on_begin=record)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_recorded_is_refused_beforehand(task, monkeypatch):
    check_video(task)
    mock = replace(task, make=lambda seed: CountingEnv())
    refused = r"a video is wanted, but task 'walker-stand' cannot be rendered here .*render"
    with pytest.raises(ValueError, match=refused):
        check_video(mock)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'torchrl_tdmpc\[video\]'"):
        check_video(task)


@pytest.mark.parametrize(
    ("settings", "platform", "library", "expected"),
    [
        ({}, "linux", "libEGL.so.1", "egl"),
        ({"MUJOCO_GL": "osmesa"}, "linux", "libEGL.so.1", "osmesa"),
        ({"DISPLAY": ":0"}, "linux", "libEGL.so.1", None),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", "libEGL.so.1", None),
        ({}, "linux", None, None),
        ({}, "darwin", "libEGL.so.1", None),
    ],
)
def test_a_renderer_is_chosen_without_a_display(settings, platform, library, expected, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: library)
    choose_renderer()
    assert os.environ.get("MUJOCO_GL") == expected
