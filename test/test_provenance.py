"""config.yaml says where a result comes from."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import types
from pathlib import Path

import torch
import yaml

from torchrl_tdmpc.recording import provenance, write_config


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_config_names_versions_and_commit(tmp_path, monkeypatch):
    package = tmp_path / "checkout" / "package"
    package.mkdir(parents=True)
    (package / "provenance.py").write_text("a = 1\n")
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package"))
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
    (package / "provenance.py").write_text("a = 2\n")
    assert commit() == git(package, "rev-parse", "HEAD") + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert commit() is None  # no git


def test_config_names_the_machine(tmp_path, monkeypatch):
    written = yaml.safe_load(write_config(tmp_path, {}).read_text())["machine"]
    processors = {
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    assert {written["processor"]} == processors
    assert written["cores"] == len(os.sched_getaffinity(0))
    has_avx2 = " avx2 " in Path("/proc/cpuinfo").read_text()
    assert ("avx2" in written["instructions"].split()) == has_avx2
    assert written["gpu"] is None
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    machine = yaml.safe_load(write_config(tmp_path, {}).read_text())["machine"]
    assert machine == {**written, "cores": 1, "gpu": "a GPU"}


def test_a_version_is_that_of_what_runs(tmp_path, monkeypatch):
    """Also where the distribution has another name, or a version without the build."""
    renamed = types.ModuleType("renamed_module")
    renamed.__version__ = torch.torch_version.TorchVersion("1.2.3+cu130")  # yaml knows only str
    monkeypatch.setitem(sys.modules, "renamed_module", renamed)
    monkeypatch.setattr(provenance, "PACKAGES", ("renamed-module", "pytest-xdist"))
    versions = yaml.safe_load(write_config(tmp_path, {}).read_text())["versions"]
    del versions["python"]
    xdist = importlib.metadata.version("pytest-xdist")
    assert versions == {"renamed-module": "1.2.3+cu130", "pytest-xdist": xdist}
