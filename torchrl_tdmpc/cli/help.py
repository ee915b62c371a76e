"""What ``--help`` prints, for a person who has not seen this package or Hydra before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torchrl_tdmpc.cli.settings import DEFAULTS, default_settings, leaves

__all__ = ["DATASET_EXAMPLES", "REPORT_EXAMPLES", "asks_for_help", "evaluate_help", "train_help"]

TRAIN_SETTINGS = {
    "env.backend": "source of the task: dmcontrol, gym, or function (your own environment)",
    "env.task": "walker-stand (dmcontrol), Hopper-v5 (gym), my_module:make_env (function)",
    "train.steps": "length of the run in agent steps; one is one action of the agent",
    "seed": "another seed repeats the run with other random numbers",
    "model.size": "size of the networks in million parameters: 1, 5, 19, 48 or 317",
    "env.num_envs": "environments that are stepped together",
    "device": "cpu, cuda, or auto: cuda where there is one",
    "compile": "off, default (a minute of waiting, then faster), max, or auto",
    "output_dir": "folder that the run writes into; by default outputs/TASK/TIME_SEED",
    "resume": "checkpoint or folder of a run to go on from; auto: newest of output_dir",
}

EVALUATE_SETTINGS = {
    "checkpoint=PATH": "a run's output_dir, a checkpoint, or a .pt file of the official code",
    "eval.episodes=10": "episodes to evaluate",
    "video=true": "write an mp4 of the first episode",
    "output_dir=FOLDER": "where the mp4 is written, if not beside the checkpoint",
    "env.task=NAME": "the task; only for an official file and for a task that is a function",
    "env.tasks=mt30": "the tasks of an official file of several tasks: mt30, or [NAME, NAME]",
    "planner.mpc=false": "act with the policy prior alone, without planning",
    "seed=7": "start the episodes from other initial states",
    "device=cpu": "cpu or cuda",
}

DATASET_EXAMPLES = """\
examples:
  tdmpc2-dataset export outputs/walker data/walker
  tdmpc2-dataset show data/walker
  tdmpc2-dataset join data/walker data/cup --to data/both
  tdmpc2-dataset split data/both data/each

A data set is a folder of .pt files in the format of the official data sets.
To begin a run with one:
  tdmpc2-train env.task=walker-stand replay.load=data/walker train.seed_steps=0

tdmpc2-dataset COMMAND --help explains a command."""

REPORT_EXAMPLES = """\
examples:
  tdmpc2-report outputs/study
  tdmpc2-report outputs/study --output outputs/study --references official.csv

Runs that differ in their seed alone become one row and one line,
with their mean and a 95% interval."""


def asks_for_help(arguments: Iterable[str]) -> bool:
    """Whether a command line has ``--help`` in it."""
    return not {"-h", "--help"}.isdisjoint(arguments)


def columns(rows: Mapping[str, str]) -> str:
    """Two columns, the second one aligned.

    Examples:
        >>> print(columns({"seed=1": "of the run", "device=auto": "cpu or cuda"}))
          seed=1       of the run
          device=auto  cpu or cuda
    """
    width = max(map(len, rows))
    return "\n".join(f"  {left:{width}}  {right}" for left, right in rows.items())


def train_help() -> str:
    """What ``tdmpc2-train --help`` prints; the defaults are those of the configuration file."""
    defaults = dict(leaves(default_settings()))
    rows = {}
    for key, meaning in TRAIN_SETTINGS.items():
        default = "null" if defaults[key] is None else str(defaults[key])
        rows[key if "$" in default else f"{key}={default}"] = meaning
    return f"""\
tdmpc2-train: train a TD-MPC2 agent on a task and write curves and checkpoints into a folder.

usage: tdmpc2-train [SETTING=VALUE ...]

Without a setting it trains on {defaults["env.task"]}. The last line that it prints says where the
files are. Ctrl-C saves a checkpoint and ends the run.

settings that matter most, with their defaults:
{columns(rows)}

examples:
  tdmpc2-train env.task=walker-stand train.steps=50_000 output_dir=outputs/walker
  tdmpc2-train env.backend=gym env.task=Hopper-v5 train.steps=500_000 seed=2
  tdmpc2-train env.task=walker-stand train.steps=80_000 output_dir=outputs/walker resume=auto

more:
  tdmpc2-train --cfg job                   print every setting with its value, and train nothing
  tdmpc2-train -m seed=1,2,3               train one run for each value (a sweep)
  tdmpc2-train --hydra-help                options of Hydra, which reads the command line
  tdmpc2-evaluate checkpoint=FOLDER        evaluate a run
  {DEFAULTS}
      every setting with its meaning
  docs/training.md in the repository
      settings, files and error messages explained"""


def evaluate_help() -> str:
    """What ``tdmpc2-evaluate --help`` prints."""
    return f"""\
tdmpc2-evaluate: run episodes with a trained agent and print their returns.

usage: tdmpc2-evaluate checkpoint=PATH [SETTING=VALUE ...]

settings that matter most; the values are examples:
{columns(EVALUATE_SETTINGS)}

What is not given is taken from the run's own configuration.

examples:
  tdmpc2-evaluate checkpoint=outputs/walker
  tdmpc2-evaluate checkpoint=outputs/walker eval.episodes=10 video=true
  tdmpc2-evaluate checkpoint=walker-walk-1.pt env.task=walker-walk

more:
  {DEFAULTS}
      every setting with its meaning
  docs/evaluating.md in the repository
      videos, official checkpoints, evaluation from Python"""
