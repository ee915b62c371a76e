"""Many runs from one command: folders, resume, failures, side by side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from joblib.externals.loky import get_reusable_executor
from runs import rows

from torchrl_tdmpc.cli.parts import make_trainer
from torchrl_tdmpc.cli.sweeps import name_of
from torchrl_tdmpc.cli.train import main

SHORT = ["env.episode_length=10", "train.seed_steps=20", "train.batch_size=8", "eval.interval=20"]
NETWORKS = ["model.enc_dim=16", "model.mlp_dim=16", "model.latent_dim=16"]
PLAN = ["planner.num_samples=16", "planner.num_elites=4", "planner.num_pi_trajs=2"]


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """Gives a command line; returns what it printed, and what it ended with."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def command(*arguments, compose=make_trainer):
        argv = ["tdmpc2-train", "-m", *arguments, *SHORT, *NETWORKS, *PLAN]
        monkeypatch.setattr(sys, "argv", argv)
        end = None
        try:
            main(compose)
        except SystemExit as error:
            end = str(error)
        return "".join(capsys.readouterr()), end

    yield command
    torch.set_num_threads(threads)


def folders(path):
    return sorted(one for one in path.iterdir() if one.is_dir())


def test_a_sweep_names_its_folders_resumes_and_tells_failures_at_its_end(sweep, tmp_path):
    settings = ("env.task=cartpole-balance,absent", "seed=1,2", "output_dir=study", "threads=1")
    printed, end = sweep(*settings, "train.steps=30")
    assert end.startswith("error: 2 of the runs failed.") and end.count("'absent' is unknown") == 2
    trained = [one for one in folders(tmp_path / "study") if (one / "eval.csv").exists()]
    assert len(trained) == 2 and printed.count("run: ") == 4
    seeds = {yaml.safe_load((one / "config.yaml").read_text())["seed"] for one in trained}
    assert seeds == {1, 2}
    assert all("env.task=cartpole-balance" in one.name for one in trained)
    assert [rows(one / "eval.csv")[-1]["agent_steps"] for one in trained] == ["30", "30"]

    # The same command again: nothing is trained twice
    before = [(one / "eval.csv").read_bytes() for one in trained]
    printed, _ = sweep(*settings, "train.steps=30")
    assert printed.count("finished: ") == 2
    assert [(one / "eval.csv").read_bytes() for one in trained] == before

    # Longer: the same runs go on, in the same folders
    printed, _ = sweep(*settings, "train.steps=40")
    assert printed.count("resumed ") == 2 and "finished" not in printed
    assert [rows(one / "eval.csv")[-1]["agent_steps"] for one in trained] == ["40", "40"]


def test_an_interrupt_ends_the_sweep_and_the_same_command_goes_on(sweep, tmp_path):
    class Interrupt:
        def on_episode(self, trainer, row):
            if row["agent_steps"] == 30:
                signal.raise_signal(signal.SIGINT)

    def compose(config, task):
        trainer = make_trainer(config, task)
        trainer.callbacks.append(Interrupt())
        return trainer

    settings = ("env.task=cartpole-balance", "seed=1,2", "train.steps=40", "threads=1")
    with pytest.raises(KeyboardInterrupt):
        sweep(*settings, compose=compose)
    (first,) = folders(tmp_path / "outputs/sweeps")
    printed, end = sweep(*settings)
    assert end is None and printed.count("resumed ") == 1
    ends = [rows(one / "eval.csv")[-1]["agent_steps"] for one in folders(first.parent)]
    assert ends == ["40", "40"]


@pytest.mark.parametrize("is_asked_for", [False, True])
def test_a_run_that_fails_shows_its_traceback_on_request(sweep, monkeypatch, is_asked_for):
    def overheat(config, task):
        raise RuntimeError("the motor is hot")

    monkeypatch.setenv("HYDRA_FULL_ERROR", str(int(is_asked_for)))
    printed, end = sweep("env.task=cartpole-balance", "seed=1,2", compose=overheat)
    assert end.startswith("error: 2 of the runs failed.")
    assert printed.count("in overheat") == (2 if is_asked_for else 0)
    assert printed.count(": the motor is hot\n") == (4 if is_asked_for else 2)


def jobs_of(folder):
    """Ids of the processes that submitit started for a sweep in this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (
                b"submitit.core._submit" in (path / "cmdline").read_bytes()
                and (path / "cwd").resolve() == folder
                and path.joinpath("exe").resolve().name.startswith("python")
            ):
                found.append(int(path.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads Linux's /proc")
def test_a_job_that_a_scheduler_preempts_is_saved_and_goes_on(tmp_path):
    sizes = ("env.task=cartpole-balance", "seed=1", "train.steps=120", "threads=1")
    command = (sys.executable, "-m", "torchrl_tdmpc.cli.train", "-m")
    process = subprocess.Popen(
        [*command, "hydra/launcher=submitit_local", *sizes, *SHORT, *NETWORKS, *PLAN],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    episodes, end = tmp_path / "outputs/sweeps", time.monotonic() + 300
    while not [f for f in episodes.glob("*/train.csv") if f.read_text().count("\n") > 4]:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    for job in jobs_of(tmp_path):
        os.kill(job, signal.SIGUSR2)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    (folder,) = [one for one in folders(episodes) if (one / "eval.csv").exists()]
    assert [row["agent_steps"] for row in rows(folder / "eval.csv")][-1] == "120"
    told = "".join(log.read_text() for log in episodes.glob(".submitit/*/*_log.out"))
    assert "this job is preempted" in told and f"resumed {folder.relative_to(tmp_path)}" in told


@pytest.fixture
def no_idle_workers():
    """End the processes that joblib keeps for more work: other tests count their children."""
    yield
    get_reusable_executor().shutdown(wait=True)


def test_runs_go_on_side_by_side(sweep, tmp_path, no_idle_workers):
    settings = ("env.task=cartpole-balance", "seed=1,2", "train.steps=30", "output_dir=study")
    _, end = sweep(*settings, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert end is None
    runs = folders(tmp_path / "study")
    assert [rows(one / "eval.csv")[-1]["agent_steps"] for one in runs] == ["30", "30"]
    for one in runs:
        config = yaml.safe_load((one / "config.yaml").read_text())
        assert config["threads"] == max(1, torch.get_num_threads() // 2)


def test_a_name_does_not_depend_on_order_and_is_a_file_name():
    name = name_of(["+ablation=A2", "env.task=module:function", "output_dir=x/y", "seed=1"])
    assert name == "ablation=A2,env.task=module-function,seed=1"
    assert name == name_of(["seed=1", "+ablation=A2", "threads=2", "env.task=module:function"])
    long = [f"planner.num_samples={number:060d}" for number in range(9)]
    assert len(name_of(long)) < 220 and name_of(long) != name_of([*long, "seed=2"])
