"""The command line: what it refuses, and in which words."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import TINY, configure, make, rows, run, without_times

import torchrl_tdmpc.cli
from torchrl_tdmpc.cli.settings import refuse_unknown_keys, settle
from torchrl_tdmpc.cli.train import main as train_command
from torchrl_tdmpc.cli.train import with_home

EXAMPLE = Path(__file__).parents[1] / "examples/tdmpc2_multigamma.py"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("env.task=cartpole-swimup", ("env.task", "cartpole-swimup", "cartpole-swingup")),
        ("env.backend=atari", ("env.backend", "atari", "dmcontrol")),
        ("env.num_envs=0", ("env.num_envs", "0", "at least 1")),
        ("model.size=7", ("model.size", "7", "1, 5, 19, 48, 317")),
        ("model.latent_dim=20", ("model.latent_dim", "20", " simnorm_dim = 8")),
        ("planner.num_elites=0", ("planner.num_elites", "0", "from 1 to num_samples = 16")),
        ("planner.num_elites=17", ("planner.num_elites", "17", "from 1 to num_samples = 16")),
        ("planner.horizon=0", ("planner.horizon", "0", "whole number from 1")),
        ("planner.horizon=11", ("planner.horizon", "11", "at most", "10 agent steps")),
        ("loss.discount=1", ("loss.discount", "1", "between 0 and 1")),
        ("loss.discount=0", ("loss.discount", "0", "between 0 and 1")),
        ("train.seed_steps=9", ("train.seed_steps", "9", "at least 10")),
        ("env.num_envs=3", ("train.seed_steps", "20", "at least 30", "3 environments")),
        ("train.steps=19", ("train.steps", "19", "train.seed_steps = 20")),
        ("replay.capacity=2", ("replay.capacity", "2", "at least 4")),
        ("env.num_envs=10001", ("env.num_envs", "10001", "at most 10,000")),
        ("seed=4000000001", ("seed", "4000000001", "at most 4,000,000,000")),
        (f"seed=1{'0' * 400}", ("seed is 1000", "must be finite, and between -1e15 and 1e15")),
        ("train.lr=inf", ("train.lr", "inf", "finite")),
        ("train.lr=nan", ("train.lr", "nan", "finite")),
        ("train.lr=2", ("train.lr", "2", "at most 1")),
        ("loss.rho=1.5", ("loss.rho", "1.5", "at most 1")),
        ("model.vmax=100", ("model.vmax", "100", "[-80, 80]")),
        ("model.log_std_min=-99", ("model.log_std_min", "-99", "[-50, 20]")),
        ("model.dropout=1.0", ("model.dropout", "1.0", "[0, 1)")),
        ("planner.max_std=-1", ("planner.max_std is -1", "positive and at most 100")),
        ("planner.temperature=2e6", ("planner.temperature", "at most 1,000,000")),
        ("model.mlp_dim=100000", ("model.latent_dim is 16, mlp_dim 100000", "would take 160 GB")),
        ("threads=99999", ("threads", "99999", "one for each core")),
        ("output_dir=", ("output_dir is ''", "must have a value")),
        ("~train.lr", ("train.lr is not given",)),
        ("eval.interval=0", ("eval.interval", "0", "at least 1")),
        ("eval.episodes=-1", ("eval.episodes", "-1", "at least 0")),
        ("seed=one", ("seed", "one", "a whole number")),
        ("+model.depth=3", ("model.depth", "3", "no such setting")),
        ("planner.horizon=soon", ("planner.horizon", "soon", "a whole number")),
        ("planner.horizon=2.5", ("planner.horizon", "2.5", "a whole number")),
        ("planner.iterations=many", ("planner.iterations", "many", "auto or a number")),
        ("train.lr=fast", ("train.lr", "fast", "a number")),
        ("planner.mpc=1", ("planner.mpc", "1", "true or false")),
        ("model.latent_dim=big", ("model.latent_dim", "big", "null or a whole number")),
        ("env.extra_keys=[1]", ("env.extra_keys", "[1]", "null or a list of names")),
        ("env.extra_keys=[speed]", ("task 'cartpole-swingup' has no entry 'speed'",)),
        ("resume=[x]", ("resume", "['x']", "null, auto or a path")),
        ("matmul_precision=fast", ("matmul_precision", "fast", "highest, high or medium")),
        ("precision=float16", ("precision", "float16", "float32, bfloat16")),
        ("logger.backend=mlflow", ("logger.backend", "mlflow", "csv, tensorboard, wandb")),
    ],
)
def test_a_bad_setting_is_refused_in_one_sentence(override, words, monkeypatch, tmp_path):
    told = {
        "trainers.parts.make_env": "an environment was made",
        "recording.defaults.CsvFiles": "a run was begun",
    }
    for name, what in told.items():
        monkeypatch.setattr(f"torchrl_tdmpc.{name}", lambda *a, what=what, **k: pytest.fail(what))
    with pytest.raises(ValueError) as error:
        make(configure(f"output_dir={tmp_path / 'run'}", override))
    assert not (tmp_path / "run").exists()
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_settings_at_their_edges_are_accepted():
    shortest = ("train.seed_steps=20", "train.steps=20", "planner.horizon=10")
    config, task = settle(configure("env.num_envs=2", *shortest))
    assert config.planner.horizon == task.episode_length == 10


LONG = ("train.steps=3000", "compile=auto")


@pytest.mark.parametrize(
    ("settings", "compiled"),
    [(LONG, "default"), (("train.steps=2999", "compile=auto"), "off"), (("compile=max",), "max")],
)
def test_a_long_run_compiles_unless_told_otherwise(settings, compiled):
    assert settle(configure(*settings))[0].compile == compiled
    assert settle(configure(*settings, "compile=off"))[0].compile == "off"


@pytest.fixture(params=["compiler", "headers"])
def missing(request, monkeypatch):
    """A machine that cannot compile; what it lacks."""
    if request.param == "headers":
        monkeypatch.setattr("torchrl_tdmpc.modules.execution.get_path", lambda _: "/no/such/folder")
        yield r"the header file Python.h \(package python3-dev\) was not found"
    else:
        with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
            yield r"a C\+\+ compiler \(g\+\+ or clang\+\+\) was not found"


def test_what_compilation_needs_is_named_where_it_is_missing(missing, tmp_path, capsys):
    assert settle(configure(*LONG))[0].compile == "off"
    with pytest.raises(ValueError, match=rf"compile is 'default', but {missing}; choose off or au"):
        settle(configure("compile=default"))

    class Stop:
        def on_begin(self, trainer):
            trainer.stop()

    run(tmp_path, *LONG, callbacks=[Stop()])
    assert re.search(f"not compiled: {missing}; with it the run would be", capsys.readouterr().out)


COMMANDS = {
    "example": lambda: runpy.run_path(str(EXAMPLE), run_name="__main__"),
    "script": torchrl_tdmpc.cli.tdmpc2_train,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_in_that_sentence_alone(tmp_path, monkeypatch, name):
    arguments = ["env.task=walker-stnd", f"output_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["a-command", *arguments])
    with pytest.raises(SystemExit) as error:
        COMMANDS[name]()
    assert str(error.value).startswith("error: env.task 'walker-stnd'")
    assert "walker-stand" in str(error.value)
    assert not (tmp_path / "train.csv").exists()


def test_the_example_composes_what_the_command_does(tmp_path):
    _, *tables = run(tmp_path / "command")
    arguments = [*TINY, f"output_dir={tmp_path / 'example'}"]
    done = subprocess.run(
        [sys.executable, EXAMPLE, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"In {tmp_path / 'example'}: eval.csv, train.csv" in done.stdout
    for name, table in zip(("train.csv", "eval.csv"), tables, strict=True):
        assert without_times(rows(tmp_path / "example" / name)) == without_times(table)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("train.decisions=9", "train.decisions is now called train.steps."),
        ("train.seed_decisions=9", "train.seed_decisions is now called train.seed_steps."),
        ("+train.encoder_lr_scale=1", "train.encoder_lr_scale is now called train.enc_lr_scale."),
        ("planner.num_policy_trajs=9", "planner.num_policy_trajs is now called planner.num_pi_t"),
        ("env.taks=walker-stand", "env.taks is no setting; did you mean env.tasks or env.task?"),
        ("horizon=3", "horizon is no setting"),
        ("~train.lr", "~train.lr would remove a setting; every setting must have a value."),
        ("++zzz.qqq=3", "zzz.qqq is no setting; "),
    ],
)
def test_an_unknown_key_is_refused_before_hydra_reads_it(argument, words, tmp_path, monkeypatch):
    monkeypatch.setattr("hydra.main", lambda **settings: lambda run: pytest.fail)
    monkeypatch.setattr(sys, "argv", ["tdmpc2-train", f"output_dir={tmp_path}", argument])
    with pytest.raises(SystemExit) as error:
        train_command()
    assert str(error.value).startswith(f"error: {words}") and "\n" not in str(error.value)


def test_known_keys_and_options_of_hydra_pass():
    refuse_unknown_keys(
        ["env.task=walker-stand", "+ablation=A2", "hydra.run.dir=x", "--cfg", "job", "-m"]
        + ["--config-name=mine", "multi_gamma={enabled: true}", "hydra/job_logging=none"]
    )


@pytest.mark.parametrize("package", ["hydra", "matplotlib", "tqdm", "yaml"])
@pytest.mark.parametrize("name", ["tdmpc2_train", "tdmpc2_evaluate"])
def test_without_the_extra_it_is_named(package, name, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match=rf"needs {package}: pip install 'torchrl_tdmpc\[cli\]'"):
        getattr(torchrl_tdmpc.cli, name)()


def test_a_home_folder_is_where_the_run_writes_and_resumes(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config, _ = settle(configure("output_dir='~/run'"))
    assert config.output_dir == str(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=f"resume is '{tmp_path}/absent'"):
        settle(configure("resume='~/absent'"))
    # Hydra's grammar has no bare ~, and the shell leaves it behind a =
    assert with_home("output_dir=~/run") == f"output_dir={tmp_path}/run"
    assert with_home("~train.lr") == "~train.lr"
