"""The replay of a run: large enough for all it can collect, and no larger."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_replay import finished
from test_replay_properties import stacks_of

from torchrl_tdmpc.envs import Task
from torchrl_tdmpc.trainers import build_replay
from torchrl_tdmpc.trainers import replay as room

VECTORS = Task("test", "test", 10, 1, (3,), 1, make=None, episodic=False)
FRAMES = dataclasses.replace(VECTORS, observation_shape=(9, 8, 8), frame_channels=3, action_dim=6)


@pytest.mark.parametrize("task", [VECTORS, FRAMES], ids=["vectors", "frames"])
@pytest.mark.parametrize(("episodic", "length"), [(False, 10), (True, 3), (True, 7)])
@pytest.mark.parametrize(("num_envs", "steps"), [(1, 60), (7, 60), (100, 130)])
def test_all_that_a_run_can_collect_is_kept(task, episodic, length, num_envs, steps):
    task = dataclasses.replace(task, episodic=episodic)
    replay = build_replay(task, horizon=3, steps=steps, num_envs=num_envs)
    num_frames = 1 if task is VECTORS or task.frame_channels is None else 3
    # Environments step together until the steps are reached
    each = -(-steps // num_envs)
    episode = finished(length) if num_frames == 1 else stacks_of(length, size=8)
    for _ in range(num_envs * (each // length)):
        replay.extend(episode)
    assert replay.num_written == replay.num_transitions
    if length in (3, 10) and num_envs == 1:  # the most that there can be
        assert replay.num_transitions > replay.capacity - 2 * (num_frames + 1)


def test_a_capacity_is_a_cap():
    assert build_replay(VECTORS, horizon=3, steps=60, capacity=20).capacity == 20
    assert build_replay(VECTORS, horizon=3, steps=60, capacity=1_000).capacity < 80
    assert build_replay(VECTORS, horizon=3, steps=10**9).capacity == 1_000_000
    with pytest.raises(ValueError, match="capacity 3 cannot hold a slice"):
        build_replay(VECTORS, horizon=3, steps=60, capacity=3)


def test_the_memory_of_a_transition_is_what_is_stored():
    for task, episode in (
        (VECTORS, finished(10)),
        (FRAMES, stacks_of(10, size=8)),
    ):
        replay = build_replay(task, horizon=3, steps=60)
        replay.extend(episode)
        replay.sample()
        stored = replay.written(0)
        expected = sum(value.nbytes for value in stored.values(True, True)) / len(stored)
        assert room._bytes(task, replay._frames.num_frames) == expected


def test_the_device_that_holds_it(monkeypatch):
    class Properties:
        total_memory = 1000

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert room._fitting_device(500, "cuda:1") == torch.device("cuda:1")
    assert room._fitting_device(501, "cuda:1") == torch.device("cpu")
    assert room._fitting_device(10**15, "cpu") == torch.device("cpu")
    assert build_replay(VECTORS, horizon=3, steps=60).device == torch.device("cpu")
    # Explicitly elsewhere than the networks
    replay = build_replay(VECTORS, horizon=3, steps=60, device="cpu", networks_device="meta")
    replay.extend(finished(6))
    assert replay.device.type == "cpu"
    batch = replay.sample()
    assert all(value.is_meta for value in batch.values(True, True)) and batch.shape == (256, 3)
