"""The rows of a run in TorchRL's loggers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
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
        "send_rows(make_logger('wandb', sys.argv[1], project='p'))"
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
