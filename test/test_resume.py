"""A run that was stopped and resumed is the run that was not stopped."""

from __future__ import annotations

import copy
import errno
import multiprocessing
import os
import shutil
import signal

import pytest
import runs
import torch
from omegaconf import OmegaConf
from runs import configure, rows, without_times
from test_replay_log import make, numbered
from tiny import seeded
from torchrl.checkpoint import CheckpointError

from torchrl_tdmpc.checkpoints import (
    CollectorState,
    ReplayLog,
    Segment,
    read_metadata,
    resume_run,
    save_run,
)
from torchrl_tdmpc.cli.settings import leaves, resolve_resume, settle
from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.recording import CsvFiles, RunRecord
from torchrl_tdmpc.trainers import CollectionError, TDMPC2Update


class Died(BaseException):
    """Instead of kill -9: nothing that would tidy up may catch it."""


def begin(output_dir, *overrides):
    return runs.make(configure(f"output_dir={output_dir}", "resume=auto", *overrides))


def run(output_dir, *overrides, callbacks=()):
    trainer, *_ = runs.run(output_dir, "resume=auto", *overrides, callbacks=callbacks)
    return trainer, *tables(output_dir)


def tables(output_dir):
    return [without_times(rows(output_dir / name)) for name in ("train.csv", "eval.csv")]


def snapshots(output_dir):
    """Each line holds the environment step it was taken at."""
    path = output_dir / "multi_gamma.jsonl"
    return path.read_text().splitlines() if path.exists() else []


class DieAt:
    """Callback that dies when so many agent steps are made, after an episode's row if one ends."""

    def __init__(self, agent_steps):
        self.agent_steps = agent_steps

    def on_collect(self, trainer, data):
        if trainer.counters.agent_steps >= self.agent_steps and not data["next", "done"].any():
            raise Died

    def on_episode(self, trainer, row):
        if row["agent_steps"] >= self.agent_steps:
            raise Died


class DieAtTheBeginning:
    def on_begin(self, trainer):
        raise Died


def disturb():
    """Another process begins from other generators."""
    torch.manual_seed(1234)


RUNS = {
    "in an episode": (["checkpoint.interval=24"], 29),
    "in the random warm-up": (["checkpoint.interval=14"], 17),
    "2 environments": (["env.num_envs=2", "checkpoint.interval=26", "train.steps=52"], 40),
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
    tmp_path,
    name,
):
    overrides, death = RUNS[name]
    whole, *whole_tables = run(tmp_path / "whole", *overrides)
    with pytest.raises(Died):
        run(tmp_path / "stopped", *overrides, callbacks=[DieAt(death)])
    disturb()
    resumed, *resumed_tables = run(tmp_path / "stopped", *overrides)
    assert resumed_tables == whole_tables
    assert snapshots(tmp_path / "stopped") == snapshots(tmp_path / "whole")
    ours, theirs = resumed.update.loss.state_dict(), whole.update.loss.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (seeded(resumed.replay.sample) == seeded(whole.replay.sample)).all()


@pytest.mark.parametrize("call", [7, 31], ids=["making up for the random warm-up", "later"])
def test_updates_that_an_interrupt_left_out_are_made_up_for(tmp_path, monkeypatch, call):
    sample, calls = EpisodeReplay.sample, []

    def interrupted_sample(self):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return sample(self)

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeReplay, "sample", interrupted_sample)
        run(tmp_path / "stopped", "env.num_envs=2")
    assert len(calls) == call
    disturb()
    _, *resumed = run(tmp_path / "stopped", "env.num_envs=2")
    _, *whole = run(tmp_path / "whole", "env.num_envs=2")
    assert resumed == whole


class InterruptEvaluation:
    calls = 0

    def on_evaluation_step(self, trainer):
        self.calls += 1
        if self.calls == 3:
            signal.raise_signal(signal.SIGINT)


def test_an_interrupt_ends_an_evaluation_without_a_row(finished, tmp_path):
    interrupt = InterruptEvaluation()
    _, train, evaluations = run(tmp_path, callbacks=[interrupt])
    assert interrupt.calls == 3 and evaluations == []
    assert [row["agent_steps"] for row in train] == ["10"]
    assert max((tmp_path / "checkpoints").glob("checkpoint-*")).stem.endswith("15")
    disturb()
    *_, evaluations = run(tmp_path, "train.steps=20")  # which makes up for it
    assert evaluations[0] == tables(finished)[1][0]


def test_environments_that_cannot_tell_their_state_begin_new_episodes(tmp_path, capsys):
    overrides = ["env.backend=gym", "env.task=Pendulum-v1", "checkpoint.interval=25"]
    with pytest.raises(Died):
        run(tmp_path, *overrides, callbacks=[DieAt(29)])
    capsys.readouterr()
    trainer, train, _ = run(tmp_path, *overrides)
    said = [line for line in capsys.readouterr().out.splitlines() if "truncated" in line]
    assert said == ["1 unfinished episodes are truncated: the environments begin new ones"]
    # At 25 agent steps two episodes of 10 had ended; the third has 5 steps and no row
    assert [int(row["agent_steps"]) for row in train] == [10, 20, 35]
    assert trainer.replay.num_steps == 40
    # Each episode has one transition more, for the observation that it begins with
    assert trainer.replay.num_transitions == 11 + 11 + 6 + 11
    assert trainer.replay.num_pending == 5
    done = trainer.replay.written(0)["next", "done"].flatten().nonzero().flatten()
    assert done.tolist() == [10, 21, 27, 38]


def lose_the_carrier(collector):
    del collector._carrier


def lose_the_warm_start(collector):
    collector._carrier = collector._carrier.exclude("_previous_mean")


@pytest.mark.parametrize("lose", [lose_the_carrier, lose_the_warm_start])
def test_a_collector_that_cannot_be_read_in_full_begins_new_episodes(
    tmp_path, monkeypatch, capsys, lose
):
    """As of a series of TorchRL that keeps a part of it elsewhere."""

    def unreadable(self):
        hidden = copy.copy(self.collector)
        lose(hidden)
        return state_dict(CollectorState(hidden))

    state_dict = CollectorState.state_dict
    with monkeypatch.context() as patch:
        patch.setattr(CollectorState, "state_dict", unreadable)
        with pytest.raises(Died):
            run(tmp_path, callbacks=[DieAt(29)])
    trainer, train, _ = run(tmp_path)
    assert trainer.num_truncated_episodes == 1
    assert [int(row["agent_steps"]) for row in train] == [10, 20, 35]


def test_a_finished_run_goes_on_for_longer(tmp_path):
    _, whole, _ = run(tmp_path / "whole")
    run(tmp_path / "two", "train.steps=30")
    _, longer, evaluations = run(tmp_path / "two")
    assert longer == whole
    # Its last evaluation, at 30, is one that the interval asked for as well
    assert [int(row["agent_steps"]) for row in evaluations] == [15, 30, 40]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("env.task=walker-stand", ("env.task", "walker-stand", "cartpole-swingup")),
        ("train.batch_size=9", ("train.batch_size", "9", "8")),
        ("train.lr=0.001", ("train.lr", "0.001", "0.0003")),
        ("loss.discount=0.9", ("loss.discount", "0.9", "0.95")),
        ("resume=nowhere", ("resume", "nowhere", "auto, a checkpoint, or the folder of a run")),
        ("train.max_skipped_updates=0", ("train.max_skipped_updates", "0", "at least 1")),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(finished, override, words):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        begin(finished, override)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


# How long a run goes on, where it lies, and what it does beside learning
MAY_CHANGE = {"output_dir", "compile", "threads", "train.steps", "train.max_skipped_updates"}
MAY_CHANGE |= {"eval.interval", "eval.episodes", "eval.video"}
MAY_CHANGE |= {"checkpoint.interval", "checkpoint.keep", "logger.backend", "logger.project"}
MAY_CHANGE |= {"logger.entity", "logger.group", "logger.name", "logger.tags", "logger.artifact"}
MAY_CHANGE |= {"env.timeout", "eval.num_envs", "eval.mode", "data"}
MAY_CHANGE |= {"collector.actors", "collector.sync_interval"}


def test_every_setting_of_learning_stays(finished):
    config, _ = settle(configure(f"output_dir={finished}", "resume=auto"))
    keys = {key for key, _ in leaves(OmegaConf.to_container(config))} - {"resume"}
    assert keys > MAY_CHANGE
    for key in keys:
        other = OmegaConf.create(OmegaConf.to_container(config))
        OmegaConf.update(other, key, "another")
        if key in MAY_CHANGE:
            assert resolve_resume(other) == config.resume
        else:
            with pytest.raises(ValueError, match=f"^{key} is 'another', but .* in the run to be"):
                resolve_resume(other)


def test_an_automatic_number_of_iterations_stays_automatic(tmp_path):
    overrides = ("planner.iterations=auto", "train.steps=20", "eval.episodes=0")
    run(tmp_path, *overrides)
    trainer = begin(tmp_path, *overrides)
    assert trainer.resume.name.endswith("20.torchrl")
    assert trainer.planner.iterations == 6


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("run")
    run(output_dir)
    return output_dir


def test_a_path_is_as_good_as_auto(finished, tmp_path):
    newest = max((finished / "checkpoints").glob("checkpoint-*"))
    for path in (newest, newest.parent, finished):
        settled, _ = settle(configure(f"output_dir={tmp_path}", f"resume={path}"))
        assert (settled.resume, settled.output_dir) == (str(newest), str(finished))


def test_a_run_is_never_overwritten(finished):
    with pytest.raises(FileExistsError, match=r"already holds a run.*resume=auto"):
        begin(finished, "resume=null")


@pytest.mark.parametrize("part", ["checkpoint", "replay", "no replay", "cut"])
def test_a_damaged_file_is_refused_before_anything_is_loaded(finished, tmp_path, part):
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
        trainer = begin(tmp_path)
        weights = {k: v.clone() for k, v in trainer.update.loss.state_dict().items()}
        try:
            trainer.train()
        finally:
            assert same(weights, trainer.update.loss.state_dict())
    assert path.name in str(error.value) and "\n" not in str(error.value)
    assert tables(tmp_path) == rows_before


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_an_older_checkpoint_gives_up_what_came_later(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    older = min((tmp_path / "checkpoints").glob("checkpoint-*"))
    assert older.stem.endswith("25")
    trainer = runs.make(configure(f"resume={older}"))
    trainer.callbacks.append(DieAtTheBeginning())
    with pytest.raises(Died):
        trainer.train()
    assert [path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")] == [older.name]
    assert [row["agent_steps"] for row in rows(tmp_path / "train.csv")] == ["10", "20"]
    assert [row["agent_steps"] for row in rows(tmp_path / "eval.csv")] == ["15"]


@pytest.fixture
def saved(tmp_path):
    """Three checkpoints of a replay whose ring wrapped: their folder, replay log and network."""
    network, log = torch.nn.Linear(2, 1), ReplayLog(make(capacity=8), tmp_path / "replay")
    for number in range(1, 4):
        log.replay.extend(numbered(6, number))
        save_run(tmp_path, number, {"network": network}, {}, log, metadata={}, keep_last=3)
    return tmp_path, log, network


def checkpoints(folder):
    return sorted(folder.glob("checkpoint-*"))


def test_every_checkpoint_that_is_kept_has_its_replay_files(saved):
    folder, log, network = saved
    log.replay.extend(numbered(6, 4))
    save_run(folder, 4, {"network": network}, {}, log, metadata={}, keep_last=2)
    older, newest = (
        {Segment(*segment).name for segment in read_metadata(path)["segments"]}
        for path in checkpoints(folder)
    )
    assert older - newest  # the newest does not need them any more
    assert {path.name for path in (folder / "replay").iterdir()} == older | newest


def test_the_checkpoints_before_the_one_resumed_stay(saved):
    folder, _, network = saved
    first, middle, _ = checkpoints(folder)
    resume_run(middle, {"network": network}, {}, ReplayLog(make(capacity=8), folder / "replay"))
    assert checkpoints(folder) == [first, middle]


def test_rows_are_cut_off_after_all_else_has_loaded(tmp_path):
    replay_log = ReplayLog(make(), tmp_path / "checkpoints/replay")
    record = RunRecord()
    files = CsvFiles(tmp_path, record.train_columns)
    network = torch.nn.Linear(2, 1)
    settings = {"metadata": {}, "keep_last": 1}
    checkpoint = save_run(
        tmp_path / "checkpoints", 0, {"network": network}, {"files": files}, replay_log, **settings
    )
    end = {"step": 20, "agent_steps": 10, "returns": [1.0], "lengths": [10]}
    files.on_episode(None, record.episodes(**end)[0])
    files.on_evaluation(None, record.evaluation(**end))
    before = tables(tmp_path)
    with pytest.raises(CheckpointError, match="component 'network'"):
        resume_run(checkpoint, {"network": torch.nn.Linear(3, 1)}, {"files": files}, replay_log)
    assert tables(tmp_path) == before
    assert [len(table) for table in before] == [1, 1]
    resume_run(checkpoint, {"network": network}, {"files": files}, replay_log)
    assert tables(tmp_path) == [[], []]


def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on(tmp_path, monkeypatch):
    save = torch.save

    def full(state, path, *args, **kwargs):
        if any((tmp_path / "checkpoints").glob("checkpoint-*25.torchrl")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(state, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with (
        pytest.warns(UserWarning, match="could not be saved") as said,
        pytest.raises(OSError, match="No space left on device"),
    ):
        run(tmp_path, "checkpoint.interval=5", "checkpoint.keep=1")
    said = [str(one.message) for one in said if "could not be saved" in str(one.message)]
    assert len(said) == 2 and all("No space left on device" in sentence for sentence in said)
    monkeypatch.undo()
    _, *resumed = run(tmp_path, "checkpoint.interval=5", "checkpoint.keep=1")
    _, *whole = run(tmp_path / "whole", "checkpoint.interval=5", "checkpoint.keep=1")
    assert resumed == whole


def test_skipped_updates_are_counted_and_end_a_run(tmp_path, monkeypatch):
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
        run(tmp_path, "train.max_skipped_updates=4", "train.steps=60")
    assert len(calls) == 26 + 4
    table = rows(tmp_path / "train.csv")
    assert [row["skipped_updates"] for row in table] == ["", "", "5.0"]
    assert float(table[2]["loss_value"]) > 0
    assert sorted(path.stem[-2:] for path in (tmp_path / "checkpoints").glob("ch*")) == ["00", "25"]


class Kill:
    def __init__(self):
        self.others = set(multiprocessing.active_children())

    def on_collect(self, trainer, data):
        if trainer.counters.agent_steps == 25:
            (child,) = set(multiprocessing.active_children()) - self.others
            os.kill(child.pid, signal.SIGKILL)


def test_a_dead_process_ends_a_run_with_a_checkpoint(tmp_path):
    settings = ["env.workers=process", "eval.episodes=0"]
    with pytest.raises(CollectionError, match=r"processes of the environments ended .*exit code"):
        run(tmp_path, *settings, callbacks=[Kill()])
    assert max((tmp_path / "checkpoints").glob("checkpoint-*")).stem.endswith("25")
    trainer, *_ = run(tmp_path, *settings)
    assert trainer.replay.num_steps == 40
    # Each episode has one transition more, for the observation that it begins with
    assert trainer.replay.num_transitions == 11 + 11 + 6 + 11
