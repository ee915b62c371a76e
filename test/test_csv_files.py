"""train.csv and eval.csv: what is on disk, and how a resumed run goes on with it."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path

import pytest
from tiny_heads import tiny_heads_loss

from torchrl_tdmpc.recording import (
    CsvFiles,
    RunRecord,
    ValueHeadSnapshots,
    plot_returns,
    write_config,
)
from torchrl_tdmpc.recording.rows import EVAL_COLUMNS

COLUMNS = ("step", "return", "loss_value")


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(files, step):
    files.on_episode(None, {"step": step, "return": 1.0})
    evaluation = RunRecord().evaluation(step=step, agent_steps=1, returns=[1.0], lengths=[1])
    files.on_evaluation(None, evaluation)


def test_rows_are_on_disk_as_they_are_written_in_full_precision(tmp_path):
    files = CsvFiles(tmp_path / "new", COLUMNS)
    assert (tmp_path / "new/eval.csv").read_text() == ",".join(EVAL_COLUMNS) + "\n"
    files.on_episode(None, {"step": 1000, "return": 1 / 3})
    files.on_episode(None, {"step": 2000, "return": 7.0, "loss_value": math.nan})
    text = (tmp_path / "new/train.csv").read_text()
    assert text == f"step,return,loss_value\n1000,{1 / 3!r},\n2000,7.0,nan\n"
    write(files, 3000)
    (row,) = read(tmp_path / "new/eval.csv")
    assert (row["step"], row["reward"], row["episodes"]) == ("3000", "1.0", "1")
    files.on_end(None)


def test_a_column_that_was_not_declared_is_refused(tmp_path):
    files = CsvFiles(tmp_path, COLUMNS)
    with pytest.raises(ValueError, match="loss_extra"):
        files.on_episode(None, {"step": 1000, "loss_extra": 1.0})


def test_a_directory_holds_one_run(tmp_path):
    files = CsvFiles(tmp_path, COLUMNS)
    CsvFiles(tmp_path, COLUMNS)  # no row yet: nothing is lost
    write(files, 2)
    before = (tmp_path / "train.csv").read_text()
    with pytest.raises(
        FileExistsError, match=f"output_dir '{tmp_path}' holds the train.csv of a run"
    ):
        CsvFiles(tmp_path, COLUMNS)
    assert (tmp_path / "train.csv").read_text() == before


def test_a_directory_with_a_checkpoint_holds_a_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/checkpoint-000000000000.torchrl").touch()
    with pytest.raises(FileExistsError, match="already holds a run"):
        CsvFiles(tmp_path, COLUMNS)
    assert not (tmp_path / "train.csv").exists()


def test_a_file_that_lost_rows_is_not_gone_on_with(tmp_path):
    files = CsvFiles(tmp_path, COLUMNS)
    write(files, 2)
    state = files.state_dict()
    size = state["train.csv"]
    assert size == (tmp_path / "train.csv").stat().st_size
    os.truncate(tmp_path / "train.csv", size - 1)
    files = CsvFiles(tmp_path, COLUMNS, resume=True)
    with pytest.raises(ValueError, match=f"has {size - 1} bytes; it had {size} at the checkpoint"):
        files.load_state_dict(state)


def test_a_file_of_other_columns_is_not_gone_on_with(tmp_path):
    CsvFiles(tmp_path, COLUMNS)
    with pytest.raises(ValueError, match=r"train\.csv has other columns"):
        CsvFiles(tmp_path, COLUMNS[:2], resume=True)


def test_a_missing_file_is_not_gone_on_with(tmp_path):
    with pytest.raises(ValueError, match=r"train\.csv is missing; a run is resumed in the folder"):
        CsvFiles(tmp_path, COLUMNS, resume=True)


def test_a_resume_cuts_off_what_came_after_the_checkpoint(tmp_path):
    files = CsvFiles(tmp_path, COLUMNS)
    snapshots = ValueHeadSnapshots(tmp_path, tiny_heads_loss(), seed=0)
    assert snapshots.state_dict() == {"size": 0}

    def write_all(files, step):
        write(files, step)
        with snapshots.path.open("a") as file:
            file.write(json.dumps({"step": step}) + "\n")

    write_all(files, 10)
    states = files.state_dict(), snapshots.state_dict()
    write_all(files, 20)
    files.on_end(None)
    files = CsvFiles(tmp_path, COLUMNS, resume=True)
    for callback, state in zip((files, snapshots), states, strict=True):
        callback.load_state_dict(state)
    for step in (20, 30):
        write_all(files, step)
    for name in ("train.csv", "eval.csv"):
        assert [row["step"] for row in read(tmp_path / name)] == ["10", "20", "30"]
    lines = (tmp_path / "multi_gamma.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 30]


@pytest.mark.parametrize("name", ["train.csv", "eval.csv", "config.yaml"])
def test_a_file_of_the_users_own_is_not_written_over(tmp_path, name):
    (tmp_path / name).write_text("name,age\n")
    with pytest.raises(FileExistsError, match=rf"holds a {name} that no run wrote"):
        CsvFiles(tmp_path, COLUMNS)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "name,age\n"


def test_a_file_that_an_ended_run_left_is_written_anew(tmp_path):
    write_config(tmp_path, {"seed": 1})
    CsvFiles(tmp_path, COLUMNS).on_end(None)
    (tmp_path / "train.csv").write_text("")  # a full disk keeps the name
    CsvFiles(tmp_path, COLUMNS).on_end(None)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_with_the_file(tmp_path):
    files = CsvFiles(tmp_path, COLUMNS)
    files._eval.file = Path("/dev/full").open("w")  # noqa: SIM115
    files._eval._writer = csv.DictWriter(files._eval.file, EVAL_COLUMNS)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/eval\.csv'"):
        files.on_evaluation(None, {"step": 1})
    for name in ("config.yaml", "returns.png"):
        (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/config\.yaml'"):
        write_config(tmp_path, {"seed": 1})
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/returns\.png'"):
        plot_returns(tmp_path)
