"""``--help`` of the four commands: settings exist, defaults hold, examples are accepted."""

from __future__ import annotations

import re
import shlex
import sys

import pytest
import yaml

from torchrl_tdmpc.cli import dataset, evaluate, report
from torchrl_tdmpc.cli.help import evaluate_help, train_help
from torchrl_tdmpc.cli.settings import default_settings, leaves, refuse_unknown_keys
from torchrl_tdmpc.cli.train import main as train_command


def examples(text, command):
    """The command lines among the examples, each as a list of its arguments."""
    lines = text.partition("examples:")[2].partition("more:")[0].splitlines()
    found = [shlex.split(line)[1:] for line in lines if line.startswith(f"  {command} ")]
    assert len(found) >= 2
    return found


def described_settings(text):
    """From the settings that the help lists to their descriptions."""
    block = text.partition("matter most")[2].partition("\n\n")[0]
    return dict(re.findall(r"^  (\S+) +(.*)$", block, re.MULTILINE))


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["seed=2", "--help"]])
def test_train_shows_its_help_and_trains_nothing(arguments, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tdmpc2-train", *arguments])
    train_command(compose=lambda *_: pytest.fail("trains"))
    assert capsys.readouterr().out == f"{train_help()}\n"


def test_train_help_lists_ten_settings_with_the_defaults_of_the_file():
    defaults = dict(leaves(default_settings()))
    listed = described_settings(train_help())
    assert len(listed) == 10 and "output_dir" in listed  # whose default is a template
    for setting in listed.keys() - {"output_dir"}:
        key, _, default = setting.partition("=")
        assert yaml.safe_load(default) == defaults[key]


def test_settings_of_the_help_exist():
    described = described_settings(evaluate_help())
    assert len(described) > 5
    further = ("checkpoint", "video")
    refuse_unknown_keys(described, further=further, is_hydra=False)
    for arguments in examples(train_help(), "tdmpc2-train"):
        refuse_unknown_keys(arguments)
    for arguments in examples(evaluate_help(), "tdmpc2-evaluate"):
        evaluate.read_arguments(arguments)


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        (dataset, ["export", "show", "join", "split", "tdmpc2-dataset COMMAND --help"]),
        (report, ["--references CSV", "task, step (environment", "report.md", "current folder"]),
    ],
    ids=["dataset", "report"],
)
def test_examples_of_a_parser_are_accepted(command, needed, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(" ".join(words.split()) in " ".join(text.split()) for words in needed)
    name = f"tdmpc2-{command.__name__.rpartition('.')[2]}"
    for arguments in examples(text, name):
        # An argument that the parser refuses ends with code 2; a folder that is absent, in words
        with pytest.raises(SystemExit) as ended:
            command.main(arguments)
        assert str(ended.value.code).startswith("error: "), arguments


@pytest.mark.parametrize("name", ["export", "show", "join", "split"])
def test_each_command_of_data_sets_explains_itself(name, capsys):
    with pytest.raises(SystemExit):
        dataset.main([name, "--help"])
    text = capsys.readouterr().out
    assert f"tdmpc2-dataset {name}" in text
    assert re.search(r"^(Write|Print) .* data set.*\.$", text, re.MULTILINE)
