"""The rows of a run in TorchRL's loggers."""

from __future__ import annotations

import importlib.util
import os
import struct
import subprocess
import sys

import pytest
import torch
from runs import run
from tensordict import TensorDict

from torchrl_tdmpc.recording import LoggerRows, RunRecord, check_backend, make_logger


def send_rows(logger):
    record, listener = RunRecord(["loss_value"]), LoggerRows(logger)
    record.update(TensorDict(loss_value=torch.tensor(0.25)))
    for row in record.episodes(step=1000, agent_steps=500, returns=[12.5], lengths=[500]):
        listener.on_episode(None, row)
    at = {"step": 1000, "agent_steps": 500}
    listener.on_evaluation(None, record.evaluation(**at, returns=[10.0, 20.0], lengths=[500, 500]))
    listener.on_end(None)


def test_a_backend_is_checked_before_anything_is_made(tmp_path, monkeypatch):
    for check in (check_backend, lambda name: make_logger(name, tmp_path / "run", project="p")):
        with pytest.raises(ValueError, match=r"backend is 'mlflow'.*csv, tensorboard, wandb"):
            check("mlflow")
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda name: None)
            with pytest.raises(ImportError, match=r"pip install 'torchrl_tdmpc\[wandb\]'"):
                check("wandb")
    assert not (tmp_path / "run").exists()
    assert make_logger("csv", tmp_path / "run", project="p") is None


def test_tensorboard_receives_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    send_rows(make_logger("tensorboard", tmp_path, project="p"))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    seen = {
        tag: (event.step, event.value)
        for tag in events.scalars.Keys()
        for event in events.Scalars(tag)
    }
    assert seen["train/return"] == (1000, 12.5)
    assert seen["train/loss_value"] == (1000, 0.25)
    assert seen["eval/reward"] == (1000, 15.0)
    assert not any(tag.endswith("/step") for tag in seen)


def test_wandb_runs_offline_without_an_account(tmp_path):
    # In a process of its own, as a run is: wandb's service writes until its process ends
    code = (
        "import sys; from test_loggers import make_logger, send_rows;"
        "send_rows(make_logger('wandb', sys.argv[1], project='p', name='n'))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "WANDB_API_KEY"}
    environment |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    (record,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = record.read_bytes()
    for name in (b"train/return", b"train/loss_value", b"eval/reward"):
        assert name in content


def read_wandb(path):
    """The records of an offline run, a log in the format of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # the rest of a block that holds no header
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(parts))
            parts = b""
    return records


WANDB_RUN = """
import pathlib, sys
from runs import run
run(pathlib.Path(sys.argv[1]), "logger.backend=wandb", *sys.argv[2:])
"""


def test_wandb_gets_names_the_last_checkpoint_and_the_same_run_after_a_resume(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "WANDB_API_KEY"}
    environment |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    settings = ("logger.group=g", "logger.tags=[a,b]", "logger.entity=team", "logger.artifact=true")
    for further in (("train.steps=24",), ("train.steps=36", "resume=auto")):
        command = [sys.executable, "-c", WANDB_RUN, str(tmp_path), *settings, *further]
        subprocess.run(command, check=True, env=environment)
    first, second = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"), key=os.path.getmtime)
    runs, artifacts = [], []
    for path in (first, second):
        records = read_wandb(path)
        (record,) = (one.run for one in records if one.HasField("run"))
        runs.append(record)
        (artifact,) = (one.artifact for one in records if one.HasField("artifact"))
        artifacts.append([file.path for file in artifact.manifest.contents])
    assert artifacts == [[f"checkpoint-{step:012d}.torchrl"] for step in (24, 36)]
    assert runs[0].run_id == runs[1].run_id
    for record in runs:
        assert record.run_group == "g" and list(record.tags) == ["a", "b"]
        assert (record.entity, record.display_name) == ("team", "cartpole-swingup-seed1")


def test_tensorboard_shows_no_point_twice_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Crash(RuntimeError):
        pass

    class CrashAt:
        def on_collect(self, trainer, data):
            if trainer.counters.agent_steps == 38:
                raise Crash

    arguments = ("logger.backend=tensorboard", "train.steps=50", "checkpoint.interval=24")
    with pytest.raises(Crash):
        run(tmp_path, *arguments, callbacks=[CrashAt()])
    run(tmp_path, *arguments, "resume=auto")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    steps = [event.step for event in events.Scalars("train/return")]
    assert steps == [20, 40, 60, 80, 100]
