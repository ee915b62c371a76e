"""A run that was stopped and resumed is the run that was not stopped."""

from __future__ import annotations

import copy
import errno
import multiprocessing
import os
import shutil
import signal

import pytest
import test_example
import torch
from test_example import configure, rows, without_times
from tiny import seeded
from torchrl.checkpoint import CheckpointError

from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.training import CollectorState, TDMPC2Update

example = test_example.example  # the fixture


class Died(BaseException):
    """Instead of kill -9: nothing that would tidy up may catch it."""


def begin(example, output_dir, *overrides):
    config, task = example.settle(configure(f"output_dir={output_dir}", "resume=auto", *overrides))
    agent = example.make_agent(config, task)
    return config, task, agent, example.make_log(config, agent)


def run(example, output_dir, *overrides):
    config, task, agent, log = begin(example, output_dir, *overrides)
    example.train(config, task, agent, log)
    return agent, *tables(output_dir)


def tables(output_dir):
    return [without_times(rows(output_dir / name)) for name in ("train.csv", "eval.csv")]


def die_at(monkeypatch, example, decisions):
    """Die when so many decisions are made, after the row of an episode that ends there."""
    log_episodes = example.log_episodes

    def dying(log, progress, data, now, task):
        log_episodes(log, progress, data, now, task)
        if now >= decisions:
            raise Died

    monkeypatch.setattr(example, "log_episodes", dying)


def disturb():
    """Another process begins from other generators."""
    torch.manual_seed(1234)


RUNS = {
    "in an episode": (["checkpoint.interval=24"], 29),
    "in the seed phase": (["checkpoint.interval=14"], 17),
    "2 environments": (["env.num_envs=2", "checkpoint.interval=26", "train.decisions=52"], 40),
    "before the first": ([], 3),
    "a random target": (["env.task=reacher-easy", "checkpoint.interval=34"], 40),
    "the ring wrapped": (["replay.capacity=17", "checkpoint.interval=7"], 38),
    "auxiliary heads": (
        ["multi_gamma.enabled=true", "multi_gamma.gammas=[primary,0.9]"]
        + ["checkpoint.interval=24"],
        31,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_has_the_numbers_of_one_that_was_not_stopped(
    example,
    tmp_path,
    monkeypatch,
    name,
):
    overrides, death = RUNS[name]
    whole, *whole_tables = run(example, tmp_path / "whole", *overrides)
    with monkeypatch.context() as patch:
        die_at(patch, example, death)
        with pytest.raises(Died):
            run(example, tmp_path / "stopped", *overrides)
    disturb()
    resumed, *resumed_tables = run(example, tmp_path / "stopped", *overrides)
    assert resumed_tables == whole_tables
    ours, theirs = resumed.update.loss.state_dict(), whole.update.loss.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (seeded(resumed.replay.sample) == seeded(whole.replay.sample)).all()


@pytest.mark.parametrize("call", [7, 31], ids=["making up for the seed phase", "later"])
def test_updates_that_an_interrupt_left_out_are_made_up_for(example, tmp_path, monkeypatch, call):
    sample, calls = EpisodeReplay.sample, []

    def interrupted_sample(self):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return sample(self)

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeReplay, "sample", interrupted_sample)
        run(example, tmp_path / "stopped", "env.num_envs=2")
    assert len(calls) == call
    disturb()
    _, *resumed = run(example, tmp_path / "stopped", "env.num_envs=2")
    _, *whole = run(example, tmp_path / "whole", "env.num_envs=2")
    assert resumed == whole


def test_environments_that_cannot_tell_their_state_begin_new_episodes(
    example, tmp_path, monkeypatch, capsys
):
    overrides = ["env.backend=gym", "env.task=Pendulum-v1", "checkpoint.interval=25"]
    with monkeypatch.context() as patch:
        die_at(patch, example, 29)
        with pytest.raises(Died):
            run(example, tmp_path, *overrides)
    capsys.readouterr()
    agent, train, _ = run(example, tmp_path, *overrides)
    said = [line for line in capsys.readouterr().out.splitlines() if "truncated" in line]
    assert said == ["1 unfinished episodes are truncated: the environments begin new ones"]
    # At 25 decisions two episodes of 10 had ended; the third has 5 steps and no row
    assert [int(row["decisions"]) for row in train] == [10, 20, 35]
    assert agent.replay.num_decisions == 40
    assert agent.replay.num_transitions == 10 + 10 + 5 + 10
    assert agent.replay.num_pending == 5
    done = agent.replay.written(0)["next", "done"].flatten().nonzero().flatten()
    assert done.tolist() == [9, 19, 24, 34]


def lose_the_carrier(collector):
    del collector._carrier


def lose_the_warm_start(collector):
    collector._carrier = collector._carrier.exclude("_previous_mean")


@pytest.mark.parametrize("lose", [lose_the_carrier, lose_the_warm_start])
def test_a_collector_that_cannot_be_read_in_full_begins_new_episodes(
    example, tmp_path, monkeypatch, capsys, lose
):
    """As of a series of TorchRL that keeps a part of it elsewhere."""

    def unreadable(self):
        hidden = copy.copy(self.collector)
        lose(hidden)
        return state_dict(CollectorState(hidden))

    state_dict = CollectorState.state_dict
    with monkeypatch.context() as patch:
        patch.setattr(CollectorState, "state_dict", unreadable)
        die_at(patch, example, 29)
        with pytest.raises(Died):
            run(example, tmp_path)
    capsys.readouterr()
    _, train, _ = run(example, tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if "truncated" in line]
    assert said == ["1 unfinished episodes are truncated: the environments begin new ones"]
    assert [int(row["decisions"]) for row in train] == [10, 20, 35]


def test_a_finished_run_goes_on_for_longer(example, tmp_path):
    _, whole, _ = run(example, tmp_path / "whole")
    run(example, tmp_path / "two", "train.decisions=30")
    _, longer, evaluations = run(example, tmp_path / "two")
    assert longer == whole
    # Its last evaluation, at 30, is one that the interval asked for as well
    assert [int(row["decisions"]) for row in evaluations] == [15, 30, 40]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("env.task=walker-stand", ("env.task", "walker-stand", "cartpole-swingup")),
        ("train.batch_size=9", ("train.batch_size", "9", "8")),
        ("resume=nowhere", ("resume", "nowhere", "auto, a checkpoint, or the folder of a run")),
        ("train.max_skipped_updates=0", ("train.max_skipped_updates", "0", "at least 1")),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(example, finished, override, words):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        begin(example, finished, override)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def finished(example, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("run")
    run(example, output_dir)
    return output_dir


def test_a_path_is_as_good_as_auto(example, finished, tmp_path):
    newest = max((finished / "checkpoints").glob("checkpoint-*"))
    for path in (newest, newest.parent, finished):
        settled, _ = example.settle(configure(f"output_dir={tmp_path}", f"resume={path}"))
        assert (settled.resume, settled.output_dir) == (str(newest), str(finished))


def test_a_run_is_never_overwritten(example, finished):
    with pytest.raises(FileExistsError, match=r"already holds a run.*resume=auto"):
        begin(example, finished, "resume=null")


@pytest.mark.parametrize("part", ["checkpoint", "replay", "no replay", "cut"])
def test_a_damaged_file_is_refused_before_anything_is_loaded(example, finished, tmp_path, part):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    newest = max((tmp_path / "checkpoints").glob("checkpoint-*"))
    segment = max((tmp_path / "checkpoints/replay").iterdir())
    path = newest if part in ("checkpoint", "cut") else segment
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if part == "no replay":
        path.unlink()
    else:
        path.write_bytes(content[:-50] if part == "cut" else content)
    rows_before = tables(tmp_path)
    with pytest.raises(CheckpointError, match=r"truncated or altered|is missing") as error:
        config, task, agent, log = begin(example, tmp_path)
        weights = {k: v.clone() for k, v in agent.update.loss.state_dict().items()}
        try:
            example.train(config, task, agent, log)
        finally:
            assert same(weights, agent.update.loss.state_dict())
    assert path.name in str(error.value) and "\n" not in str(error.value)
    assert tables(tmp_path) == rows_before


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_an_older_checkpoint_gives_up_what_came_later(example, finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    older = min((tmp_path / "checkpoints").glob("checkpoint-*"))
    assert older.stem.endswith("25")
    config, task = example.settle(configure(f"resume={older}"))
    agent = example.make_agent(config, task)
    log = example.make_log(config, agent)
    example.begin_or_resume(config, agent, example.make_collector(config, task, agent.planner), log)
    assert [path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")] == [older.name]
    assert [row["decisions"] for row in rows(tmp_path / "train.csv")] == ["10", "20"]
    assert [row["decisions"] for row in rows(tmp_path / "eval.csv")] == ["15"]


def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on(
    example, tmp_path, monkeypatch, capsys
):
    save = torch.save

    def full(state, path, *args, **kwargs):
        if any((tmp_path / "checkpoints").glob("checkpoint-*25.torchrl")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(state, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SystemExit, match="without its last checkpoint"):
        run(example, tmp_path, "checkpoint.interval=5", "checkpoint.keep=1")
    said = [line for line in capsys.readouterr().out.splitlines() if "could not be saved" in line]
    assert len(said) == 3 and all("No space left on device" in line for line in said)
    monkeypatch.undo()
    _, *resumed = run(example, tmp_path, "checkpoint.interval=5", "checkpoint.keep=1")
    _, *whole = run(example, tmp_path / "whole", "checkpoint.interval=5", "checkpoint.keep=1")
    assert resumed == whole


def test_skipped_updates_are_counted_and_end_a_run(example, tmp_path, monkeypatch):
    update = TDMPC2Update.__call__
    calls = []

    def skipping(self, batch):
        calls.append(1)
        metrics = update(self, batch)
        is_skipped = len(calls) in (3, 5) or len(calls) > 26
        if is_skipped:
            metrics["loss_value"].fill_(torch.nan)
        return metrics.set("skipped_updates", torch.tensor(float(is_skipped)))

    monkeypatch.setattr(TDMPC2Update, "__call__", skipping)
    with pytest.raises(FloatingPointError, match=r"updates in a row.*max_skipped_updates is 4"):
        run(example, tmp_path, "train.max_skipped_updates=4", "train.decisions=60")
    assert len(calls) == 26 + 4
    table = rows(tmp_path / "train.csv")
    assert [row["skipped_updates"] for row in table] == ["", "", "5.0"]
    assert float(table[2]["loss_value"]) > 0
    assert sorted(path.stem[-2:] for path in (tmp_path / "checkpoints").glob("ch*")) == ["00", "25"]


def test_a_dead_process_ends_a_run_with_a_checkpoint(example, tmp_path, monkeypatch):
    log_episodes = example.log_episodes

    def killing(log, progress, data, now, task):
        log_episodes(log, progress, data, now, task)
        if now == 25:
            (child,) = multiprocessing.active_children()
            os.kill(child.pid, signal.SIGKILL)

    settings = ["env.workers=process", "eval.episodes=0"]
    with monkeypatch.context() as patch:
        patch.setattr(example, "log_episodes", killing)
        with pytest.raises(SystemExit, match=r"processes of the environments ended .*exit code -9"):
            run(example, tmp_path, *settings)
    assert max((tmp_path / "checkpoints").glob("checkpoint-*")).stem.endswith("25")
    agent, *_ = run(example, tmp_path, *settings)
    assert agent.replay.num_decisions == 40
    assert agent.replay.num_transitions == 10 + 10 + 5 + 10
