"""The settings of a run of either mode: online on one task, or offline on several."""

from __future__ import annotations

import os

import torch
from omegaconf import DictConfig, OmegaConf

from torchrl_tdmpc.cli.fine_tuning import RHO, is_official, settle_online
from torchrl_tdmpc.cli.parts import make_callbacks, make_loss, make_planner, make_update
from torchrl_tdmpc.cli.settings import (
    check_ranges,
    check_types,
    default_settings,
    leaves,
    name_run,
    naming,
    resolve,
    resolve_resume,
    settle_compile,
)
from torchrl_tdmpc.data import EpisodeFiles, EpisodeStream
from torchrl_tdmpc.envs import Task, TaskSet, load_tasks, seed_generators, unknown
from torchrl_tdmpc.planners import default_iterations
from torchrl_tdmpc.recording import check_backend
from torchrl_tdmpc.trainers import OfflineTrainer

__all__ = ["MODES", "make_offline_trainer", "resolve_run", "settle_run"]

MODES = ("online", "offline")
# Settings of one mode alone
ONLINE = (
    *("env.backend", "env.pixels", "env.num_envs", "env.workers", "env.episode_length"),
    *("env.action_repeat", "env.observation_keys", "env.kwargs"),
    "env.extra_keys",
    *("collector.mode", "collector.actors", "collector.sync_interval"),
    *(
        "train.seed_steps",
        "train.utd",
        "replay.load",
        "replay.capacity",
        "replay.device",
        "eval.mode",
        "eval.video",
    ),
)
OFFLINE = ("data", "env.tasks", "env.success_key", "model.task_dim")


def settle_run(config: DictConfig) -> tuple[DictConfig, Task | TaskSet]:
    """What is trained on, and the configuration with every ``auto`` replaced.

    Raises:
        ValueError: settings that do not fit together or are out of their range.
    """
    check_types(config)
    if not _is_offline(config):
        return settle_online(config)
    settled, tasks = resolve_run(config)
    with naming("logger"):
        check_backend(config.logger.backend)
    if settled.data is None:
        raise ValueError("data is null; with mode=offline it must be the folder of a data set.")
    settled.resume = resolve_resume(settled)
    name_run(settled)
    return settled, tasks


def resolve_run(config: DictConfig) -> tuple[DictConfig, Task | TaskSet]:
    """What is evaluated, and the configuration for it; see :func:`resolve`.

    Raises:
        ValueError: a setting that does not exist, is out of its range or belongs to another mode.
    """
    check_types(config)
    if not _is_offline(config):
        return resolve(config)
    check_ranges(config)
    if config.env.tasks is None:
        raise ValueError("env.tasks is null; with mode=offline it must be mt30 or a list of names.")
    if config.multi_gamma.enabled:
        raise ValueError(
            "multi_gamma.enabled is true; auxiliary value heads are for one task, and mode=offline "
            "trains on several."
        )
    names = config.env.tasks
    with naming("env"):
        names = names if isinstance(names, str) else list(names)
        tasks = load_tasks(names, success_key=config.env.success_key)
    if config.env.task not in (default_settings()["env"]["task"], tasks.name):
        raise ValueError(f"env.task is {config.env.task!r}; with mode=offline set env.tasks alone.")
    config = OmegaConf.merge(config, {"env": {"task": tasks.name, "episodic": False}})
    settled = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    for key in ("output_dir", "resume", "data"):
        if settled[key] not in (None, "auto"):
            settled[key] = os.path.expanduser(settled[key])
    automatic = {
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "loss.discount": None,  # each task has its own
        "loss.rho": RHO,
        "planner.iterations": default_iterations(tasks.action_dim),
    }
    for key, value in automatic.items():
        if OmegaConf.select(config, key) == "auto":
            OmegaConf.update(settled, key, value)
    settle_compile(settled)
    return settled, tasks


def _is_offline(config: DictConfig) -> bool:
    """Whether the mode is offline; no setting of the other mode is given.

    Raises:
        ValueError: an unknown mode, or a setting that has no effect in it.
    """
    if config.mode not in MODES:
        raise unknown("mode", config.mode, MODES)
    defaults = dict(leaves(default_settings()))
    given = dict(leaves(OmegaConf.to_container(config)))
    without_effect = OFFLINE if config.mode == "online" else ONLINE
    if config.mode == "online" and is_official(config.resume):  # whose tasks they name
        without_effect = [key for key in OFFLINE if key != "env.tasks"]
    for key in without_effect:
        if given.get(key, defaults[key]) != defaults[key]:
            raise ValueError(
                f"{key} is {given[key]!r}, which has no effect with mode={config.mode}; leave it "
                "out."
            )
    return config.mode == "offline"


def make_offline_trainer(config: DictConfig, tasks: TaskSet) -> OfflineTrainer:
    """The trainer of a settled configuration, with every part made."""
    with naming("planner", "train"):
        data = EpisodeStream(
            EpisodeFiles(config.data),
            tasks.names,
            observation_dims=tasks.observation_dims,
            action_dims=tasks.action_dims,
            horizon=config.planner.horizon,
            batch_size=config.train.batch_size,
            seed=config.seed,
            device=config.device,
        )
    seed_generators(config.seed)
    loss = make_loss(config, tasks)
    update = make_update(config, loss)
    return OfflineTrainer(
        tasks,
        data,
        update=update,
        planner=make_planner(config, tasks, loss),
        callbacks=make_callbacks(config, update),
        output_dir=config.output_dir,
        steps=config.train.steps,
        model=OmegaConf.to_container(config.model),
        eval_interval=config.eval.interval,
        eval_episodes=config.eval.episodes,
        eval_num_envs=config.eval.num_envs,
        env_timeout=config.env.timeout,
        checkpoint_interval=config.checkpoint.interval,
        checkpoint_keep=config.checkpoint.keep,
        max_skipped_updates=config.train.max_skipped_updates,
        seed=config.seed,
        device=config.device,
        resume=config.resume,
        config=OmegaConf.to_container(config),
    )
