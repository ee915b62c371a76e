"""Episodes on disk: the published format, our own runs', and a run that begins with them."""

from __future__ import annotations

import json
import re

import pytest
import torch
from runs import run
from tensordict import TensorDict

from torchrl_tdmpc.cli.dataset import main
from torchrl_tdmpc.data import (
    DatasetError,
    EpisodeFiles,
    EpisodeReplay,
    stored_episodes,
    write_episodes,
)
from torchrl_tdmpc.envs import load_task
from torchrl_tdmpc.trainers import build_replay


def episode(length, begin=0.0, *, num_obs=5, task=None, **further):
    """Rows as published: row t holds what led to observation t, row 0 NaN."""
    count = torch.arange(length + 1.0) + begin
    rows = TensorDict(
        obs=count.unsqueeze(-1).expand(-1, num_obs).clone(),
        action=((count % 10) / 10).unsqueeze(-1),
        reward=10 * count,
        **further,
        batch_size=length + 1,
    )
    rows["action"][0], rows["reward"][0] = torch.nan, torch.nan
    if task is not None:
        rows["task"] = torch.full((length + 1,), task, dtype=torch.int32)
    return rows


def test_steps_are_what_the_rows_say(tmp_path):
    terminated = torch.arange(4) == 3
    write_episodes(
        tmp_path, [episode(3, 100, terminated=terminated), episode(2), episode(2, 50)], ["a"]
    )
    files = EpisodeFiles(tmp_path)
    assert (files.num_steps, files.num_episodes, files.tasks) == (7, 3, ["a"])
    first, second, third = files
    assert first["observation"][:, 0].tolist() == [0, 1] and second["observation"][0, 0] == 50
    assert first["next", "observation"][:, 0].tolist() == [1, 2]
    assert first["action"].flatten().tolist() == pytest.approx([0.1, 0.2])
    assert first["next", "reward"].flatten().tolist() == [10, 20]
    assert first["next", "truncated"].flatten().tolist() == [False, True]
    assert third["next", "terminated"].flatten().tolist() == [False, False, True]
    assert third["next", "truncated"].sum() == 0 and third["next", "done"].sum() == 1


def test_a_run_is_exported_and_another_begins_with_it(tmp_path, capsys):
    _, trainer_rows, _ = run(tmp_path / "first", "eval.episodes=0", "train.steps=45")
    main(["export", str(tmp_path / "first"), str(tmp_path / "data")])
    main(["show", str(tmp_path / "data")])
    shown = capsys.readouterr().out.splitlines()[-1]
    returns = [float(row["return"]) for row in trainer_rows]
    assert shown.startswith("| cartpole-swingup | 4 | 40 | 10 | ")
    assert f"| {sum(returns) / 4:.1f} | {min(returns):.1f} | {max(returns):.1f} |" in shown

    settings = ("train.seed_steps=0", f"replay.load={tmp_path / 'data'}", "seed=7")
    second, table, _ = run(tmp_path / "second", *settings, "train.steps=25", "eval.episodes=0")
    stored = list(EpisodeFiles(tmp_path / "data"))
    assert second.counters.updates == 25  # from the first agent step on
    rows = second.replay.written(0)
    assert torch.equal(rows["observation"][1:11], stored[0]["next", "observation"])
    assert torch.equal(rows["action"][1:11], stored[0]["action"])
    assert len(rows) == 4 * 11 + 2 * 11 and len(table) == 2
    assert second.replay.capacity >= len(rows) + 5

    # Resumed, it has them once
    resumed, *_ = run(
        tmp_path / "second", *settings, "train.steps=35", "eval.episodes=0", "resume=auto"
    )
    assert torch.equal(resumed.replay.written(0)[: len(rows)]["observation"], rows["observation"])
    assert len(resumed.replay.written(0)) == 7 * 11


def publish(folder, *episodes):
    folder.mkdir(exist_ok=True)
    torch.save(torch.stack(list(episodes)).contiguous(), folder / "chunk_0.pt")
    return folder


def test_episodes_of_the_task_are_taken_by_its_name(tmp_path):
    task = load_task("dmcontrol", "cartpole-swingup", episode_length=3)
    both = publish(tmp_path / "both", episode(3, task=0), episode(3, 50, task=1))
    with pytest.raises(DatasetError, match="has the tasks 0 and 1, and no names of them"):
        build_replay(task, horizon=2, steps=9, episodes=EpisodeFiles(both))
    (both / "dataset.json").write_text(json.dumps({"tasks": ["other", "cartpole-swingup"]}))
    replay = build_replay(task, horizon=2, steps=9, episodes=EpisodeFiles(both))
    assert replay.written(0)["observation"][:, 0].tolist() == [50, 51, 52, 53]
    (both / "dataset.json").write_text(json.dumps({"tasks": ["other", "walker-walk"]}))
    with pytest.raises(DatasetError, match="has the tasks other, walker-walk, but not cartpole-sw"):
        build_replay(task, horizon=2, steps=9, episodes=EpisodeFiles(both))
    wide = publish(tmp_path / "wide", episode(3, task=0, num_obs=6))
    with pytest.raises(DatasetError, match=r"observations \[6\] and 1 actions; cartpole-.*\[5\]"):
        build_replay(task, horizon=2, steps=9, episodes=EpisodeFiles(wide))


def nan_in(key):
    rows = episode(3, task=0)
    rows[key][2] = torch.nan
    return rows


def changed(key, value):
    rows = episode(3, task=0)
    rows[key] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (nan_in("obs"), "NaN or infinity in 'obs' in episode 0"),
        (nan_in("action"), "NaN or infinity in 'action' in episode 0"),
        (nan_in("reward"), "NaN or infinity in 'reward' in episode 0"),
        (
            changed("action", torch.full((4, 1), 1.5)),
            "an action of 1.5, beyond [-1, 1]",
        ),
        (changed("task", torch.arange(4)), "several tasks in episode 0"),
        (changed("terminated", torch.arange(4) == 1), "an early termination in episode 0"),
        (changed("obs", torch.zeros(4, 5, dtype=torch.int64)), "'obs' of shape [1, 4, 5] and type"),
        (changed("reward", torch.zeros(4, 1)), "'reward' of shape [1, 4, 1]"),
        (episode(3), "has no entry 'task'"),
        (episode(0, task=0), "no TensorDict [episodes, T + 1]"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(tmp_path, rows, words):
    publish(tmp_path, rows)
    with pytest.raises(DatasetError, match=re.escape(words)) as error:
        list(EpisodeFiles(tmp_path))
    assert "chunk_0.pt" in str(error.value)


class Stranger:
    """What a pickle could run."""

    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("what", ["stranger", "bytes", "tensor"])
def test_strange_files_are_refused_in_a_sentence(tmp_path, what, capsys):
    path = tmp_path / "chunk_0.pt"
    if what == "bytes":
        path.write_bytes(b"no zip")
    else:
        torch.save(Stranger() if what == "stranger" else torch.zeros(2), path)
    with pytest.raises(DatasetError) as error:
        EpisodeFiles(tmp_path)
    assert "chunk_0.pt" in str(error.value) and "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_folders_are_not_mixed(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data set"):
        EpisodeFiles(tmp_path)
    write_episodes(tmp_path, [episode(3)], ["a"])
    with pytest.raises(FileExistsError, match="holds a data set already"):
        write_episodes(tmp_path, [episode(3)], ["a"])
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"dataset.json does not list the tasks"):
        _ = EpisodeFiles(tmp_path).tasks


def test_what_the_ring_left_of_an_episode_is_an_episode_that_begins_later(tmp_path):
    replay = EpisodeReplay(capacity=6, horizon=1, batch_size=1)
    write_episodes(tmp_path, [episode(3), episode(3, 50)], ["a"])
    for one in EpisodeFiles(tmp_path):
        replay.extend(one)
    first, second = stored_episodes(replay)
    assert first["obs"][:, 0].tolist() == [2, 3] and second["obs"][:, 0].tolist() == [
        50,
        51,
        52,
        53,
    ]
    assert first["reward"][1] == 30
