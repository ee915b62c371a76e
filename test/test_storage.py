"""TorchRL's memory-mapped storages as data sets."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, ReplayBuffer

from torchrl_tdmpc.cli.dataset import main
from torchrl_tdmpc.data import DatasetError, EpisodeFiles, minari_episodes, storage_episodes


def steps(length, begin=0.0, ends=True, trajectory=None):
    """An episode whose numbers count its observations."""
    count = torch.arange(length + 1.0).unsqueeze(1) + begin
    done = torch.zeros(length, 1, dtype=torch.bool)
    done[-1] = ends
    following = {"observation": count[1:], "reward": 10 * count[1:], "done": done}
    data = TensorDict(
        observation=count[:-1],
        action=count[1:] / 1000,
        next=TensorDict({**following, "terminated": done & (begin > 0)}, batch_size=length),
        batch_size=length,
    )
    if trajectory is not None:
        data["collector", "traj_ids"] = torch.full((length,), trajectory)
    return data


@pytest.fixture
def storage(tmp_path):
    """A buffer that is not full: two episodes and an open one; its folder, and that of its dump."""
    replay = ReplayBuffer(storage=LazyMemmapStorage(20, scratch_dir=tmp_path / "scratch"))
    replay.extend(torch.cat([steps(3), steps(2, 100.0), steps(4, 200.0, ends=False)]))
    replay.dumps(tmp_path / "dump")
    return tmp_path


@pytest.mark.parametrize("folder", ["scratch", "dump", "dump/storage"])
def test_a_storage_becomes_a_data_set(storage, folder, capsys):
    main(["import", str(storage / folder), str(storage / "data"), "--task", "counting"])
    assert capsys.readouterr().out.startswith("2 episodes of counting in ")
    files = EpisodeFiles(storage / "data")
    assert files.tasks == ["counting"]
    second, first = files  # the shorter one first
    for episode, expected in ((first, steps(3)), (second, steps(2, 100.0))):
        for key in ("observation", "action", ("next", "observation"), ("next", "reward")):
            assert torch.equal(episode[key], expected[key]), key
    assert second["next", "terminated"].flatten().tolist() == [False, True]
    assert not first["next", "terminated"].any()


def test_interleaved_episodes_are_told_apart_by_their_ids(tmp_path):
    mixed = torch.stack([steps(3, trajectory=1), steps(3, 100.0, trajectory=0)], 1).flatten()
    still_open = steps(2, 200.0, ends=False, trajectory=0)
    still_open["collector", "traj_ids"] -= 1
    torch.cat([mixed, still_open]).memmap(tmp_path / "ids")
    found = storage_episodes(tmp_path / "ids")
    assert [one["obs"].flatten().tolist() for one in found] == [
        [100, 101, 102, 103],
        [0, 1, 2, 3],
    ]
    mixed.exclude("collector").memmap(tmp_path / "none")
    with pytest.raises(DatasetError, match="has steps of several episodes in turn, before step 5"):
        storage_episodes(tmp_path / "none")


def test_what_is_no_storage_of_steps_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"error: there is no memory-mapped storage"):
        main(["import", str(tmp_path), str(tmp_path / "data"), "--task", "x"])
    for name, data, words in (
        ("open", steps(3, ends=False), "has no finished episode"),
        ("bare", steps(3).exclude("action"), "has no entry 'action'"),
        ("wide", torch.stack([steps(3), steps(3)]), r"has the batch size \[2, 3\]; it must be one"),
    ):
        data.memmap(tmp_path / name)
        with pytest.raises(DatasetError, match=words):
            storage_episodes(tmp_path / name)
    (tmp_path / "open" / "meta.json").write_text("{")
    with pytest.raises(DatasetError, match="cannot be read as a storage"):
        storage_episodes(tmp_path / "open")


@pytest.mark.skipif(importlib.util.find_spec("minari") is not None, reason="minari is installed")
def test_minari_is_asked_for():
    with pytest.raises(ImportError, match=r"needs the package minari.*pip install 'minari"):
        minari_episodes("mujoco/hopper/expert-v0")
