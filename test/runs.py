"""Runs of the command line's configuration on tiny networks and short episodes."""

from __future__ import annotations

import csv

from hydra import compose, initialize_config_dir

from torchrl_tdmpc.cli.modes import make_offline_trainer, settle_run
from torchrl_tdmpc.cli.parts import make_trainer
from torchrl_tdmpc.cli.settings import DEFAULTS
from torchrl_tdmpc.cli.train import train
from torchrl_tdmpc.data import join_datasets, stored_episodes, write_episodes
from torchrl_tdmpc.envs import load_tasks, make_env
from torchrl_tdmpc.trainers import build_replay

TINY = [
    "device=cpu",
    "env.task=cartpole-swingup",
    "env.episode_length=10",
    "train.seed_steps=20",
    "train.steps=40",
    "train.batch_size=8",
    "model.enc_dim=16",
    "model.mlp_dim=16",
    "model.latent_dim=16",
    "planner.num_samples=16",
    "planner.num_elites=4",
    "planner.num_pi_trajs=2",
    "planner.iterations=2",
    "eval.interval=15",
    "eval.episodes=2",
    "checkpoint.interval=25",
]
# What is small in a run on stored episodes
TINY_OFFLINE = [
    "mode=offline",
    "env.tasks=[walks:pendulum,walks:car]",
    *(setting for setting in TINY if not setting.startswith(("env.", "train.se"))),
]
TIMES = ("ms_per_step", "peak_memory_mib", "seconds")


def configure(*overrides):
    """The configuration as Hydra composes it."""
    with initialize_config_dir(str(DEFAULTS.parent), version_base="1.3"):
        return compose(DEFAULTS.stem, [*TINY, *overrides])


def make(config):
    """The trainer of a configuration."""
    return make_trainer(*settle_run(config))


def configure_offline(*overrides):
    """The configuration of a run on stored episodes, as Hydra composes it."""
    with initialize_config_dir(str(DEFAULTS.parent), version_base="1.3"):
        return compose(DEFAULTS.stem, [*TINY_OFFLINE, *overrides])


def make_offline(config):
    """Its trainer."""
    return make_offline_trainer(*settle_run(config))


def stored_walks(folder, num_episodes=3):
    """A data set of random episodes of the tasks of such a run."""
    tasks = load_tasks(["walks:pendulum", "walks:car"]).tasks
    for task in tasks:
        replay = build_replay(task, horizon=2, steps=num_episodes * task.episode_length)
        env = make_env(task, num_envs=num_episodes, seed=1)
        replay.extend(env.rollout(task.episode_length, break_when_any_done=False))
        write_episodes(folder / task.name, stored_episodes(replay), [task.name])
    join_datasets([folder / task.name for task in tasks], folder / "both")
    return folder / "both"


def run(output_dir, *overrides, callbacks=()):
    """Train; returns the trainer and the rows of train.csv and eval.csv."""

    def compose_trainer(config, task):
        trainer = make_trainer(config, task)
        for callback in callbacks:
            trainer.callbacks.append(callback)
        return trainer

    trainer = train(configure(f"output_dir={output_dir}", *overrides), compose_trainer)
    return trainer, rows(output_dir / "train.csv"), rows(output_dir / "eval.csv")


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(table):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in table]
