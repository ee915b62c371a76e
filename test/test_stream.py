"""Data sets of several tasks: joined, split, and sampled from disk."""

from __future__ import annotations

import json
import re

import pytest
import torch
from tensordict import TensorDict

from torchrl_tdmpc.cli.dataset import main
from torchrl_tdmpc.data import (
    DatasetError,
    EpisodeFiles,
    EpisodeStream,
    join_datasets,
    write_episodes,
)

DIMS = {"cartpole-swingup": (5, 1), "cup-catch": (8, 2), "pendulum-spin": (3, 1)}
TASKS = list(DIMS)


def episode(name, length=4, number=0, **changed):
    """Rows as published, whose numbers tell task, episode and row; row 0 is filler."""
    index = TASKS.index(name)
    count = torch.arange(length + 1.0) + 100 * number + 1000 * index
    obs, action = (torch.zeros(length + 1, size) for size in DIMS["cup-catch"])
    obs[:, : DIMS[name][0]] = count.unsqueeze(1)
    action[:, : DIMS[name][1]] = (count / 10000).unsqueeze(1)
    action[0] = torch.nan
    reward = 10 * count
    reward[0] = torch.nan
    rows = {"obs": obs, "action": action, "reward": reward}
    rows["task"] = torch.full((length + 1,), index, dtype=torch.int32)
    return TensorDict({**rows, **changed}, batch_size=length + 1)


def publish(folder, *chunks):
    """Files as published, without the names of tasks."""
    folder.mkdir(exist_ok=True)
    for number, episodes in enumerate(chunks):
        torch.save(torch.stack(list(episodes)).contiguous(), folder / f"chunk_{number}.pt")
    return folder


def stream(folder, tasks=TASKS, **settings):
    dims = [DIMS[task] for task in tasks]
    settings = {"horizon": 2, "batch_size": 64, **settings}
    return EpisodeStream(
        EpisodeFiles(folder),
        tasks,
        observation_dims=[obs for obs, _ in dims],
        action_dims=[action for _, action in dims],
        **settings,
    )


@pytest.fixture
def published(tmp_path):
    """Two files, the tasks mixed in both; the pendulum's episodes are shorter."""
    first = [episode("cartpole-swingup", number=n) for n in range(3)] + [episode("cup-catch")]
    second = [episode("pendulum-spin", 3, number=n) for n in range(2)]
    third = [episode("cup-catch", number=1)]
    return publish(tmp_path / "published", first, second, third)


def test_slices_are_rows_that_follow_one_another(published):
    files = stream(published)
    assert files.num_episodes == [3, 2, 2] and files.episode_lengths == [4, 4, 3]
    seen = set()
    for _ in range(20):
        batch = files.sample()
        assert batch.shape == (64, 2)
        task = batch["task"]
        assert (task[:, 0] == task[:, 1]).all() and task.dtype == torch.int64
        now = batch["observation"][..., 0]
        assert torch.equal(batch["next", "observation"][..., 0], now + 1)
        torch.testing.assert_close(batch["action"][..., 0], (now + 1) / 10000)
        assert torch.equal(batch["next", "reward"].squeeze(-1), 10 * (now + 1))
        assert torch.equal(now // 1000, task.float())
        for i, (obs, action) in enumerate(DIMS.values()):
            of_task = batch[task[:, 0] == i]
            assert (of_task["observation"][..., :obs] == of_task["observation"][..., :1]).all()
            assert not of_task["observation"][..., obs:].any()
            assert not of_task["action"][..., action:].any()
        length = torch.tensor(files.episode_lengths)[task]
        done = batch["next", "done"].squeeze(-1)
        assert torch.equal(done, (now % 100 + 1) == length)
        assert not batch["next", "terminated"].any()
        seen |= set(now[:, 0].tolist())
    begins = {
        1000 * i + 100 * n + t
        for i, (n_, t_) in enumerate([(3, 3), (2, 3), (2, 2)])
        for n in range(n_)
        for t in range(t_)
    }
    assert seen == begins


def test_every_episode_is_as_likely(published):
    files = stream(published, batch_size=7000, seed=3)
    now = files.sample()["observation"][:, 0, 0]
    counts = (now // 100).unique(return_counts=True)[1]
    assert len(counts) == 7 and (counts > 850).all() and (counts < 1150).all()  # 5 deviations


def test_draws_go_on_where_they_were(published):
    files = stream(published, seed=5)
    files.sample()
    state = files.state_dict()
    expected = [files.sample() for _ in range(3)]
    other = stream(published, seed=9)
    other.sample()
    other.load_state_dict(state)
    assert all((other.sample() == batch).all() for batch in expected)
    assert not (stream(published, seed=6).sample() == stream(published, seed=5).sample()).all()
    state["num_episodes"] = [3, 2, 1]
    with pytest.raises(DatasetError, match=r"\[3, 2, 2\] episodes .* had \[3, 2, 1\]"):
        other.load_state_dict(state)


def test_tasks_are_found_by_their_names(published):
    facts = {"tasks": ["cartpole-swingup", "cup-catch", "pendulum-spin"]}
    (published / "dataset.json").write_text(json.dumps(facts))
    files = stream(published, ["pendulum-spin", "cartpole-swingup"])
    batch = files.sample()
    assert files.num_episodes == [2, 3] and batch["observation"].shape == (64, 2, 5)
    assert batch["action"].shape == (64, 2, 1)
    assert set((batch["observation"][..., 0] // 1000)[batch["task"] == 0].tolist()) == {2}
    with pytest.raises(DatasetError, match=r"has the tasks cartpole.*, but not walker-walk"):
        EpisodeStream(
            EpisodeFiles(published),
            ["walker-walk"],
            observation_dims=[3],
            action_dims=[1],
            horizon=2,
            batch_size=3,
        )


def with_one(key, row, column, value):
    rows = episode("cartpole-swingup", number=1)
    rows[key][row, column] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (with_one("obs", 2, 0, torch.nan), "NaN or infinity in 'obs' in episode 1"),
        (with_one("action", 1, 1, 0.5), "'action' that is not 0 beyond the 1 of cartpole-swingup"),
        (with_one("obs", 0, 6, 0.5), "'obs' that is not 0 beyond the 5 of cartpole-swingup"),
        (episode("cartpole-swingup", task=torch.full((5,), 3)), "index beyond the 3 tasks"),
        (episode("cartpole-swingup", task=torch.full((5,), -1)), "index beyond the 3 tasks"),
        (
            episode("cartpole-swingup", terminated=torch.arange(5) == 4),
            "a termination of cartpole-swingup",
        ),
    ],
)
def test_what_does_not_fit_the_tasks_is_refused(published, rows, words):
    good = episode("cartpole-swingup", task=rows["task"] * 0)
    if "terminated" in rows.keys():  # noqa: SIM118
        good["terminated"] = torch.zeros(5, dtype=torch.bool)
    publish(published, [good, rows])
    with pytest.raises(DatasetError, match=re.escape(words)) as error:
        stream(published)
    assert "chunk_0.pt" in str(error.value) and "episode 1" in str(error.value)


def test_files_that_do_not_fit_each_other_are_refused(published, tmp_path):
    torch.save(torch.stack([episode("cup-catch", 3)]), published / "chunk_3.pt")
    with pytest.raises(DatasetError, match=r"chunk_3.pt has 3 steps .* 0 of cup-catch; .* 4"):
        stream(published)
    (published / "chunk_1.pt").unlink()
    with pytest.raises(DatasetError, match=r"published lacks chunk_1.pt"):
        EpisodeFiles(published)
    narrow = episode("cup-catch").exclude("obs").set("obs", torch.zeros(5, 7))
    folder = publish(tmp_path / "narrow", [episode("cup-catch")], [narrow])
    with pytest.raises(DatasetError, match=r"chunk_1.pt has .* 7 .* 2; chunk_0.pt has 8 and 2"):
        EpisodeFiles(folder)
    with pytest.raises(DatasetError, match="has no episode of cartpole-swingup"):
        stream(publish(tmp_path / "one", [episode("cup-catch")]))
    with pytest.raises(DatasetError, match="has episodes of 3 steps; a slice takes 4"):
        (published / "chunk_3.pt").unlink()
        stream(publish(published, *[[episode(t, 3)] for t in TASKS]), horizon=4)


def own(folder, task, *episodes):
    """A data set of one task, not padded, without an index."""
    obs, action = DIMS[task]
    narrow = []
    for rows in episodes:
        cut = {"obs": rows["obs"][:, :obs], "action": rows["action"][:, :action]}
        narrow.append(rows.exclude("task").update(cut))
    write_episodes(folder, narrow, [task])
    return str(folder)


def test_join_and_split(tmp_path, capsys):
    cup = [episode("cup-catch", number=n) for n in range(2)]
    pole = [episode("cartpole-swingup"), episode("cartpole-swingup", 2, number=1)]
    sources = [own(tmp_path / "cup", "cup-catch", *cup)]
    sources += [own(tmp_path / "pole", "cartpole-swingup", *pole)]
    main(["join", *sources, "--to", str(tmp_path / "both"), "--steps", "4"])
    assert capsys.readouterr().out.startswith("3 episodes of cup-catch, cartpole-swingup in")
    assert EpisodeFiles(tmp_path / "both").tasks == ["cup-catch", "cartpole-swingup"]
    files = stream(tmp_path / "both", ["cartpole-swingup", "cup-catch"])
    assert files.num_episodes == [1, 2]
    assert set((files.sample()["observation"][:, 0, 0] // 100).tolist()) == {0, 10, 11}

    main(["show", str(tmp_path / "both")])
    shown = capsys.readouterr().out.splitlines()
    returns = [float(one["reward"][1:].sum()) for one in cup]
    assert shown[-1].startswith("| cup-catch | 2 | 8 | 4 | ")
    assert (
        f"| {min(returns):.1f} | {max(returns):.1f} | █" in shown[-1] and shown[-1].count("█") == 2
    )

    main(["split", str(tmp_path / "both"), str(tmp_path / "parts")])
    assert "cartpole-swingup" in capsys.readouterr().out
    for task, source in zip(["cup-catch", "cartpole-swingup"], sources):
        again = list(EpisodeFiles(tmp_path / "parts" / task))
        before = [one for one in EpisodeFiles(source) if len(one) == 4]
        assert len(again) == len(before) and all((a == b).all() for a, b in zip(again, before))

    for words, arguments in {
        "holds a data set already": ["join", *sources, "--to", str(tmp_path / "both")],
        "no episode is left": ["join", *sources, "--to", str(tmp_path / "none"), "--steps", "9"],
    }.items():
        with pytest.raises(SystemExit, match=f"error: .*{words}"):
            main(arguments)


def test_published_data_are_split_by_names_that_are_given(published, tmp_path):
    with pytest.raises(DatasetError, match="does not tell the names of its tasks"):
        join_datasets([published], tmp_path / "joined")
    main(["split", str(published), str(tmp_path / "parts"), "--tasks", ",".join(TASKS)])
    shapes = [next(iter(EpisodeFiles(tmp_path / "parts" / t)))["observation"].shape for t in TASKS]
    assert shapes == [(4, 5), (4, 8), (3, 3)]
    with pytest.raises(SystemExit, match="has task 2; there are names of 2"):
        main(["split", str(published), str(tmp_path / "two"), "--tasks", ",".join(TASKS[:2])])
