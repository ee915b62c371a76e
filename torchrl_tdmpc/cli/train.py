"""Train an agent: ``tdmpc2-train env.task=walker-stand seed=2``.

Every setting, with its meaning, stands in ``config/tdmpc2_multigamma.yaml``.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from torchrl_tdmpc.checkpoints import find_checkpoint
from torchrl_tdmpc.cli import sweeps
from torchrl_tdmpc.cli.failures import in_one_sentence, wants_traceback
from torchrl_tdmpc.cli.help import asks_for_help, train_help
from torchrl_tdmpc.cli.modes import make_offline_trainer, settle_run
from torchrl_tdmpc.cli.parts import make_trainer, set_up_torch
from torchrl_tdmpc.cli.settings import DEFAULTS, refuse_unknown_keys, why_not_compiled
from torchrl_tdmpc.envs import Task, TaskSet
from torchrl_tdmpc.recording import write_config
from torchrl_tdmpc.trainers import OfflineTrainer, OnlineTrainer, count_parameters

__all__ = ["OfflineReport", "OnlineReport", "Report", "main", "train"]


class Report:
    """Callback that tells the person who started a run what it is."""

    def __init__(self, config: DictConfig):
        self.config = config

    def on_begin(self, trainer: OnlineTrainer | OfflineTrainer) -> None:
        """Say how large the networks are, and what is resumed; write ``config.yaml``."""
        parameters = count_parameters(trainer.update)
        print(", ".join(f"{part} {count:,}" for part, count in parameters.items()), "parameters")
        if self.config.compile != "off":
            print("compiling: the first updates and agent steps take up to a few minutes")
        record = {**OmegaConf.to_container(self.config), "parameters": parameters}
        write_config(trainer.output_dir, record)
        if trainer.resume is not None:
            print(f"resumed {trainer.resume}")
        elif self.config.resume is not None:
            print(f"begins with the model {self.config.resume}")


class OfflineReport(Report):
    """The same of a run on stored episodes, and where its files are."""

    def on_begin(self, trainer: OfflineTrainer) -> None:
        """Say what there is to learn from."""
        super().on_begin(trainer)
        data = trainer.data
        for name, episodes, steps in zip(data.tasks, data.num_episodes, data.episode_lengths):
            print(f"{name}: {episodes} episodes of {steps} agent steps")

    def on_end(self, trainer: OfflineTrainer) -> None:
        """Say what lies where."""
        print(
            f"{trainer.counters.updates} updates. In {trainer.output_dir}: eval.csv, train.csv, "
            "config.yaml, checkpoints/"
        )


class OnlineReport(Report):
    """The same of a run that acts, and where its files are."""

    def on_begin(self, trainer: OnlineTrainer) -> None:
        """Say which episodes could not be gone on with."""
        super().on_begin(trainer)
        if num_open := trainer.num_truncated_episodes:
            print(f"{num_open} unfinished episodes are truncated: the environments begin new ones")

    def on_end(self, trainer: OnlineTrainer) -> None:
        """Say what lies where."""
        agent_steps, replay = trainer.counters.agent_steps, trainer.replay
        print(
            f"{agent_steps} agent steps ({agent_steps * trainer.task.action_repeat} environment "
            f"steps). In {trainer.output_dir}: eval.csv, train.csv, returns.png, config.yaml, "
            "checkpoints/" + (", videos/" if self.config.eval.video else "")
        )
        if replay.num_short_episodes:
            print(
                f"{replay.num_short_episodes} episodes were shorter than planner.horizon "
                f"({replay.horizon} agent steps) and not learned from."
            )


Trainer = OnlineTrainer | OfflineTrainer
Compose = Callable[[DictConfig, Task], OnlineTrainer]


def train(config: DictConfig, compose: Compose = make_trainer) -> Trainer:
    """Train as a configuration says.

    Args:
        config: the configuration, as Hydra composes it.
        compose: from a configuration without ``auto`` and its task to the trainer of an online run.

    Raises:
        CheckpointError: a checkpoint to resume is damaged or does not fit.
        CollectionError: the environments failed.
        FloatingPointError: too many updates in a row were not finite.
        ImportError: a package that a setting needs is not installed.
        OSError: a file cannot be read or written.
        ReplayError: what the environments sent cannot be learned from.
        ValueError: a setting is wrong.
    """
    is_auto, chooses_compile = config.resume == "auto", config.compile == "auto"
    config, task = settle_run(config)
    if chooses_compile and config.compile == "off":
        print(f"not compiled: {why_not_compiled(config)}")
    set_up_torch(config)
    is_offline = isinstance(task, TaskSet)
    if not is_offline and config.env.num_envs > 1:
        print(f"starting {config.env.num_envs} environments", flush=True)
    trainer = make_offline_trainer(config, task) if is_offline else compose(config, task)
    if is_auto and find_checkpoint("auto", trainer.output_dir) != trainer.resume:
        raise FileExistsError(
            f"another process wrote to output_dir {config.output_dir!r} while this one started; "
            "start again."
        )
    trainer.callbacks.append(OfflineReport(config) if is_offline else OnlineReport(config))
    trainer.train()
    return trainer


def train_one_of_many(config: DictConfig, compose: Compose, failures: Path) -> None:
    """Train one run of a sweep, unless it is finished; the sweep goes on after one that fails.

    Args:
        config: the run's configuration.
        compose: see :func:`train`.
        failures: a folder that gets a file with the error, because runs that go on side by side
            are processes of their own.

    Raises:
        KeyboardInterrupt: the run was interrupted, and with it the sweep.
    """
    config = sweeps.place_run(config)
    try:
        config.resume = sweeps.resume_of(config)
        if sweeps.is_finished(config):
            print(f"finished: {config.output_dir}")
            return
        print(f"run: {config.output_dir}")
        trainer = train(config, compose)
    except Exception as error:
        if wants_traceback():
            traceback.print_exc()
        told = f"{config.output_dir}: {error}"
        print(f"failed: {told}", file=sys.stderr)
        if not failures.exists():  # a job on another machine, whose launcher tells the error
            raise
        handle, _ = tempfile.mkstemp(dir=failures)
        with open(handle, "w", encoding="utf-8") as file:
            file.write(told)
        return
    if trainer.interrupt.requested:
        raise KeyboardInterrupt


def main(compose: Compose = make_trainer) -> None:
    """The console script ``tdmpc2-train``: what is wrong, it says in one sentence.

    Args:
        compose: see :func:`train`.
    """
    if asks_for_help(sys.argv[1:]):
        print(train_help())
        return
    warnings.filterwarnings("ignore", message=".*DISPLAY environment variable is missing")
    logging.getLogger("torchrl").setLevel(logging.WARNING)

    failures = tempfile.TemporaryDirectory()

    @hydra.main(version_base="1.3", config_path=str(DEFAULTS.parent), config_name=DEFAULTS.stem)
    def run(config: DictConfig) -> None:
        if sweeps.is_sweep():
            train_one_of_many(config, compose, Path(failures.name))
            return
        with in_one_sentence():
            train(config, compose)

    with in_one_sentence():
        refuse_unknown_keys(sys.argv[1:])
    sys.argv[1:] = [with_home(argument) for argument in sys.argv[1:]]
    with failures as folder:
        run()
        told = [path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())]
    if told:
        raise SystemExit("\n".join([f"error: {len(told)} of the runs failed.", *told]))


def with_home(argument: str) -> str:
    """Write out the home folder that a path begins with, which Hydra's grammar does not know."""
    key, _, value = argument.partition("=")
    return f"{key}={os.path.expanduser(value)}" if value.startswith("~") else argument


if __name__ == "__main__":
    main()
