"""A run that was stopped and resumed is the run that was not stopped."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal

import pytest
import test_example
import torch
from omegaconf import OmegaConf
from test_example import configure, rows, without_times
from test_replay_log import make, numbered
from tiny import seeded
from torchrl.checkpoint import CheckpointError

from torchrl_tdmpc.checkpoints import ReplayLog, Segment, read_metadata, resume_run, save_run
from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.recording import RunLog
from torchrl_tdmpc.trainers import TDMPC2Update

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


def snapshots(output_dir):
    """Each line holds the environment step it was taken at."""
    path = output_dir / "multi_gamma.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def die_at(monkeypatch, example, agent_steps):
    """Die when so many agent steps are made, after the row of an episode that ends there."""
    log_episodes = example.log_episodes

    def dying(log, progress, data, now, task):
        log_episodes(log, progress, data, now, task)
        if now >= agent_steps:
            raise Died

    monkeypatch.setattr(example, "log_episodes", dying)


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
    assert snapshots(tmp_path / "stopped") == snapshots(tmp_path / "whole")
    ours, theirs = resumed.update.loss.state_dict(), whole.update.loss.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (seeded(resumed.replay.sample) == seeded(whole.replay.sample)).all()


@pytest.mark.parametrize("call", [7, 31], ids=["making up for the random warm-up", "later"])
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


def test_an_interrupt_ends_an_evaluation_without_a_row(example, finished, tmp_path, monkeypatch):
    evaluate, calls = example.evaluate, []

    def interrupted(*args, on_step, **kwargs):
        def on_third_decision():
            calls.append(1)
            if len(calls) == 3:
                signal.raise_signal(signal.SIGINT)
            on_step()

        return evaluate(*args, on_step=on_third_decision, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(example, "evaluate", interrupted)
        _, train, evaluations = run(example, tmp_path)
    assert len(calls) == 3 and evaluations == []
    assert [row["agent_steps"] for row in train] == ["10"]
    assert max((tmp_path / "checkpoints").glob("checkpoint-*")).stem.endswith("15")
    disturb()
    *_, evaluations = run(example, tmp_path, "train.steps=20")  # which makes up for it
    assert evaluations[0] == tables(finished)[1][0]


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
    # At 25 agent steps two episodes of 10 had ended; the third has 5 steps and no row
    assert [int(row["agent_steps"]) for row in train] == [10, 20, 35]
    assert agent.replay.num_steps == 40
    assert agent.replay.num_transitions == 10 + 10 + 5 + 10
    assert agent.replay.num_pending == 5
    done = agent.replay.written(0)["next", "done"].flatten().nonzero().flatten()
    assert done.tolist() == [9, 19, 24, 34]


def test_a_finished_run_goes_on_for_longer(example, tmp_path):
    _, whole, _ = run(example, tmp_path / "whole")
    run(example, tmp_path / "two", "train.steps=30")
    _, longer, evaluations = run(example, tmp_path / "two")
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
def test_what_does_not_fit_is_refused_in_one_sentence(example, finished, override, words):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        begin(example, finished, override)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


# How long a run goes on, where it lies, and what it does beside learning
MAY_CHANGE = {"output_dir", "compile", "threads", "train.steps", "train.max_skipped_updates"}
MAY_CHANGE |= {"eval.interval", "eval.episodes", "eval.video"}
MAY_CHANGE |= {"checkpoint.interval", "checkpoint.keep", "logger.backend", "logger.project"}


def test_every_setting_of_learning_stays(example, finished):
    from settings import leaves, resolve_resume  # of the example

    config, _ = example.settle(configure(f"output_dir={finished}", "resume=auto"))
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


def test_an_automatic_number_of_iterations_stays_automatic(example, tmp_path):
    overrides = ("planner.iterations=auto", "train.steps=20", "eval.episodes=0")
    run(example, tmp_path, *overrides)
    config, _, agent, _ = begin(example, tmp_path, *overrides)
    assert config.resume.endswith("20.torchrl")
    assert agent.planner.iterations == 6


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
    assert [row["agent_steps"] for row in rows(tmp_path / "train.csv")] == ["10", "20"]
    assert [row["agent_steps"] for row in rows(tmp_path / "eval.csv")] == ["15"]


@pytest.fixture
def saved(tmp_path):
    """Three checkpoints of a replay whose ring wrapped: their folder, replay log and network."""
    network, log = torch.nn.Linear(2, 1), ReplayLog(make(capacity=8), tmp_path / "replay")
    for number in range(1, 4):
        log.replay.extend(numbered(6, number))
        save_run(tmp_path, number, {"network": network}, log, metadata={}, keep_last=3)
    return tmp_path, log, network


def checkpoints(folder):
    return sorted(folder.glob("checkpoint-*"))


def test_every_checkpoint_that_is_kept_has_its_replay_files(saved):
    folder, log, network = saved
    log.replay.extend(numbered(6, 4))
    save_run(folder, 4, {"network": network}, log, metadata={}, keep_last=2)
    older, newest = (
        {Segment(*segment).name for segment in read_metadata(path)["segments"]}
        for path in checkpoints(folder)
    )
    assert older - newest  # the newest does not need them any more
    assert {path.name for path in (folder / "replay").iterdir()} == older | newest


def test_the_checkpoints_before_the_one_resumed_stay(saved):
    folder, _, network = saved
    first, middle, _ = checkpoints(folder)
    resume_run(middle, {"network": network}, ReplayLog(make(capacity=8), folder / "replay"))
    assert checkpoints(folder) == [first, middle]


def test_rows_are_cut_off_after_all_else_has_loaded(tmp_path):
    replay_log = ReplayLog(make(), tmp_path / "checkpoints/replay")
    with RunLog(tmp_path) as log:
        parts = {"log": log, "network": torch.nn.Linear(2, 1)}
        save_run(tmp_path / "checkpoints", 0, parts, replay_log, metadata={}, keep_last=1)
        log.episodes(step=20, agent_steps=10, returns=[1.0], lengths=[10])
        log.evaluation(step=20, agent_steps=10, returns=[1.0], lengths=[10])
        before = tables(tmp_path)
        parts["network"] = torch.nn.Linear(3, 1)
        (checkpoint,) = checkpoints(tmp_path / "checkpoints")
        with pytest.raises(CheckpointError, match="component 'network'"):
            resume_run(checkpoint, parts, replay_log)
        assert tables(tmp_path) == before
    assert [len(table) for table in before] == [1, 1]


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
        run(example, tmp_path, "train.max_skipped_updates=4", "train.steps=60")
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
    assert agent.replay.num_steps == 40
    assert agent.replay.num_transitions == 10 + 10 + 5 + 10
