"""What a run writes: rows, averages, forwarded scalars, configuration and picture."""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import math
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
import yaml
from matplotlib.image import imread
from tensordict import TensorDict

from torchrl_tdmpc.training import logging as run_logging
from torchrl_tdmpc.training.logging import RunLog, write_config
from torchrl_tdmpc.training.plotting import plot_returns


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def metrics(**values: float) -> TensorDict:
    return TensorDict({name: torch.tensor(value) for name, value in values.items()})


def test_train_rows_hold_averages_since_the_last_row(tmp_path):
    log = RunLog(tmp_path, metrics=["loss_value", "entropy"])
    log.episodes(step=1000, decisions=500, returns=[1 / 3], lengths=[500])  # seed phase
    log.update(metrics(loss_value=1.0, entropy=-2.0))
    log.update(metrics(loss_value=2.0))
    assert log.episodes(step=1500, decisions=750, returns=[], lengths=[]) == []
    log.update(metrics(loss_value=6.0, entropy=-3.0))
    log.episodes(step=2000, decisions=1000, returns=torch.tensor([5.0, 7.0]), lengths=[250, 240])
    log.episodes(step=3000, decisions=1500, returns=[9.0], lengths=[500])

    rows = read(tmp_path / "train.csv")  # before close: rows are on disk as they are written
    assert list(rows[0])[:7] == [
        *("step", "decisions", "episode", "return", "length"),
        *("loss_value", "entropy"),
    ]
    assert [row["episode"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["step"] for row in rows] == ["1000", "2000", "2000", "3000"]
    assert [row["return"] for row in rows] == [repr(1 / 3), "5.0", "7.0", "9.0"]
    assert [row["length"] for row in rows] == ["500", "250", "240", "500"]
    assert [row["loss_value"] for row in rows] == ["", "3.0", "3.0", ""]
    assert [row["entropy"] for row in rows] == ["", "-2.5", "-2.5", ""]
    assert all(float(row["peak_memory_mib"]) > 50 for row in rows)
    log.close()


def test_metrics_are_not_aliased_and_keep_nan(tmp_path):
    log = RunLog(tmp_path, metrics=["loss_value", "grad_norm_model"])
    buffer = metrics(loss_value=1.0, grad_norm_model=math.nan)  # a graph reuses its output
    log.update(buffer)
    buffer["loss_value"].fill_(3.0)
    log.update(buffer)
    log.episodes(step=2, decisions=1, returns=[0.0], lengths=[1])
    row = read(tmp_path / "train.csv")[0]
    assert (row["loss_value"], row["grad_norm_model"]) == ("2.0", "nan")


def test_metrics_in_half_precision_are_averaged_in_full(tmp_path):
    log = RunLog(tmp_path, metrics=["loss_value"])
    for _ in range(1000):  # a bfloat16 sum of ones stops at 256
        log.update(TensorDict(loss_value=torch.ones((), dtype=torch.bfloat16)))
    assert log.episodes(step=2, decisions=1, returns=[0.0], lengths=[1])[0]["loss_value"] == 1.0


def test_metrics_must_be_declared_scalars(tmp_path):
    log = RunLog(tmp_path, metrics=["loss_value"])
    with pytest.raises(ValueError, match=r"'loss_extra' was not declared.*\['loss_value'\]"):
        log.update(metrics(loss_extra=1.0))
    with pytest.raises(ValueError, match=r"'loss_value' has shape \[2\]"):
        log.update(TensorDict(loss_value=torch.zeros(2)))
    with pytest.raises(ValueError, match=r"\['return'\] are named like other columns"):
        RunLog(tmp_path / "other", metrics=["loss_value", "return"])


def test_evaluation_rows(tmp_path):
    log = RunLog(tmp_path, seed=7)
    assert read(tmp_path / "eval.csv") == []
    log.evaluation(step=2000, decisions=1000, returns=[10.0, 20.0, 40.0], lengths=[500, 500, 200])
    log.evaluation(step=4000, decisions=2000, returns=[3.0], lengths=[500])
    header = (tmp_path / "eval.csv").read_text().splitlines()[0]
    assert header.startswith("step,reward,seed,")
    first, last = read(tmp_path / "eval.csv")
    assert (first["step"], first["decisions"], first["seed"]) == ("2000", "1000", "7")
    assert float(first["reward"]) == pytest.approx(70 / 3, rel=1e-12)
    assert float(first["reward_std"]) == pytest.approx(math.sqrt(1400 / 9), rel=1e-12)
    assert (first["episodes"], first["length"]) == ("3", "400.0")
    assert (last["reward"], last["reward_std"]) == ("3.0", "0.0")


def test_milliseconds_per_step_leave_pauses_out(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    log = RunLog(tmp_path)
    now += 2.0
    first = log.episodes(step=1000, decisions=500, returns=[0.0], lengths=[500])[0]
    now += 3.0
    with log.pause():
        now += 50.0
    last = log.episodes(step=1500, decisions=750, returns=[0.0], lengths=[250])[0]
    assert (first["ms_per_step"], first["seconds"]) == (2.0, 2.0)
    assert (last["ms_per_step"], last["seconds"]) == (6.0, 55.0)


def test_a_directory_holds_one_run(tmp_path):
    with RunLog(tmp_path) as log:
        log.episodes(step=2, decisions=1, returns=[1.0], lengths=[1])
    before = (tmp_path / "train.csv").read_text()
    with pytest.raises(FileExistsError, match=f"output_dir '{tmp_path}' already holds a run"):
        RunLog(tmp_path)
    assert (tmp_path / "train.csv").read_text() == before


def test_backend_is_checked_before_anything_is_made(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"logger\.backend is 'mlflow'.*csv, tensorboard, wandb"):
        RunLog(tmp_path / "run", backend="mlflow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'torchrl_tdmpc\[wandb\]'"):
        RunLog(tmp_path / "run", backend="wandb")
    assert not (tmp_path / "run").exists()


def write_rows(log: RunLog) -> None:
    log.update(metrics(loss_value=0.25))
    log.episodes(step=1000, decisions=500, returns=[12.5], lengths=[500])
    log.evaluation(step=1000, decisions=500, returns=[10.0, 20.0], lengths=[500, 500])


def test_tensorboard_receives_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, metrics=["loss_value"], backend="tensorboard") as log:
        write_rows(log)
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


def test_wandb_runs_offline_without_an_account(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    # In a process of its own, as a run is: wandb's service writes until its process ends
    code = (
        "import sys, torch; from tensordict import TensorDict;"
        "from torchrl_tdmpc.training.logging import RunLog;"
        "log = RunLog(sys.argv[1], metrics=['loss_value'], backend='wandb');"
        "log.update(TensorDict(loss_value=torch.tensor(0.25)));"
        "log.episodes(step=4, decisions=2, returns=[1.5], lengths=[2]);"
        "log.evaluation(step=4, decisions=2, returns=[1.0, 2.0], lengths=[2, 2]);"
        "log.close()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    (record,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = record.read_bytes()
    for name in (b"train/return", b"train/loss_value", b"eval/reward"):
        assert name in content
    assert read(tmp_path / "train.csv")[0]["loss_value"] == "0.25"


def test_importing_the_modules_loads_nothing_optional():
    code = (
        "import sys, torchrl_tdmpc.training.logging, torchrl_tdmpc.training.checkpoint;"
        "print({'hydra', 'wandb', 'yaml', 'matplotlib'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_config_names_versions_and_commit(tmp_path, monkeypatch):
    package = tmp_path / "checkout" / "package"
    package.mkdir(parents=True)
    (package / "logging.py").write_text("a = 1\n")
    monkeypatch.setattr(run_logging, "__file__", str(package / "logging.py"))
    monkeypatch.setattr(run_logging, "PACKAGES", ("torch", "no-such-package"))
    config = {"env": {"task": "walker-stand"}, "optim": {"lr": 3e-4, "eps": 1e-5}, "seed": 1}

    def commit() -> str | None:
        record = yaml.safe_load(write_config(tmp_path, config).read_text())
        assert {key: record[key] for key in config} == config
        assert list(record["versions"]) == ["python", "torch"]
        assert record["versions"]["torch"] == torch.__version__
        return record["commit"]

    assert commit() is None  # no repository
    git(tmp_path, "init", "--quiet")
    assert commit() is None  # a repository that does not hold the package
    git(package, "add", ".")
    git(package, "commit", "--quiet", "--message", "first")
    assert commit() == git(package, "rev-parse", "HEAD")
    (package / "logging.py").write_text("a = 2\n")
    assert commit() == git(package, "rev-parse", "HEAD") + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert commit() is None  # no git


def test_a_version_is_that_of_what_runs(tmp_path, monkeypatch):
    """Also where the distribution has another name, or a version without the build."""
    renamed = types.ModuleType("renamed_module")
    renamed.__version__ = torch.torch_version.TorchVersion("1.2.3+cu130")  # yaml knows only str
    monkeypatch.setitem(sys.modules, "renamed_module", renamed)
    monkeypatch.setattr(run_logging, "PACKAGES", ("renamed-module", "pytest-xdist"))
    versions = yaml.safe_load(write_config(tmp_path, {}).read_text())["versions"]
    del versions["python"]
    xdist = importlib.metadata.version("pytest-xdist")
    assert versions == {"renamed-module": "1.2.3+cu130", "pytest-xdist": xdist}


def fake_run(directory: Path, *, seed: int, evaluations: int, episodes: int = 20) -> Path:
    generator = torch.Generator().manual_seed(seed)
    with RunLog(directory, seed=seed) as log:
        for episode in range(1, episodes + 1):
            level = 900 * (1 - math.exp(-episode / 6))
            noise = 60 * torch.randn(6, generator=generator)
            step = 1000 * episode
            log.episodes(step=step, decisions=step // 2, returns=[level + noise[0]], lengths=[500])
            if episode <= evaluations:
                log.evaluation(
                    step=step, decisions=step // 2, returns=level + noise[1:], lengths=[500] * 5
                )
    return directory


@pytest.mark.parametrize(("episodes", "evaluations"), [(20, 20), (5, 0), (0, 0)])
def test_picture_of_one_run(tmp_path, episodes, evaluations):
    run = fake_run(tmp_path / "run", seed=1, episodes=episodes, evaluations=evaluations)
    path = plot_returns(run, title="walker-stand, 1M parameters, seed 1")
    assert path == run / "returns.png"
    pixels = imread(path)[..., :3]
    blue = (pixels[..., 2] - pixels[..., 0]) > 0.15  # the first colour: points, line and band
    assert pixels.shape[1] >= 900
    assert blue.any() == (episodes > 0)


def test_picture_of_several_runs(tmp_path):
    runs = [fake_run(tmp_path / f"seed{seed}", seed=seed, evaluations=20) for seed in (1, 2)]
    path = plot_returns(*runs, title="two seeds", path=tmp_path / "both.png")
    pixels = imread(path)[..., :3]
    assert ((pixels[..., 2] - pixels[..., 0]) > 0.15).any()  # blue
    assert ((pixels[..., 0] - pixels[..., 2]) > 0.5).any()  # orange
    assert not (runs[0] / "returns.png").exists()
