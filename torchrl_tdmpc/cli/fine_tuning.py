"""Online runs on one task that begin with a model of several, and go on with such runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torchrl.checkpoint import CheckpointError

from torchrl_tdmpc.checkpoints import find_checkpoint, read_metadata
from torchrl_tdmpc.cli.settings import (
    check_ranges,
    check_run,
    check_types,
    default_settings,
    name_run,
    naming,
    resolve,
    resolve_resume,
    settle,
)
from torchrl_tdmpc.envs import Task, load_tasks
from torchrl_tdmpc.planners import default_iterations
from torchrl_tdmpc.trainers import (
    Pretrained,
    place_in_model,
    recorded_agent,
)

__all__ = [
    "NOT_OFFICIAL",
    "RHO",
    "begins_with",
    "is_official",
    "place_as_recorded",
    "settle_online",
]

NOT_OFFICIAL = ("simnorm_dim", "vmin", "vmax", "dropout")  # what an official file does not decide
RHO = 0.5  # published for several tasks, of whatever suites


def settle_online(config: DictConfig) -> tuple[DictConfig, Task]:
    """What is trained on online, and the configuration with every ``auto`` replaced.

    Where ``resume`` is a model of several tasks, ``resume`` remains its path: a new run begins with
    its weights. The model's own settings are in place of ``model``, and the task is padded for it.

    Raises:
        CheckpointError: a checkpoint is damaged, or one that no run begins with.
        FileNotFoundError: there is none at the path given.
        ValueError: settings that do not fit together, or to the model.
        ImportError: a package that a setting needs is not installed.
    """
    config = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    if config.resume not in (None, "auto"):
        config.resume = os.path.expanduser(config.resume)
    pretrained = find_model(config)
    if pretrained is None:
        return settle(config)
    settled, task = resolve(adapt(config, pretrained))
    with naming("env"):
        task = place_in_model(task, pretrained.tasks)
    check_run(settled, task)
    if begins_with(settled) is None:
        settled.resume = resolve_resume(settled)
    name_run(settled)
    return settled, task


def is_official(path: str | Path | None) -> bool:
    """Whether a path is that of an official checkpoint, by its ending."""
    return path is not None and Path(path).suffix == ".pt"


def begins_with(config: DictConfig) -> str | None:
    """The model of several tasks that an online run begins with; None for any other run."""
    if config.mode != "online" or config.resume is None:
        return None
    if is_official(config.resume):
        return config.resume
    checkpoint = find_checkpoint(config.resume, config.output_dir)
    is_offline = checkpoint is not None and "updates" in read_metadata(checkpoint)
    return str(checkpoint) if is_offline else None


def find_model(config: DictConfig) -> Pretrained | None:
    """The model of several tasks that ``resume`` leads to; None for a run on one task alone."""
    if config.resume is None:
        return None
    if is_official(config.resume):
        check_types(config)
        if config.env.tasks is None:
            raise ValueError(
                f"env.tasks is null; {config.resume} does not name its tasks, so env.tasks must, "
                "by their index: mt30 or a list of names."
            )
        names = config.env.tasks
        with naming("env"):
            tasks = load_tasks(names if isinstance(names, str) else list(names))
        with naming("env", "loss"):
            return Pretrained.read(config.resume, tasks, not_official(config))
    checkpoint = find_checkpoint(config.resume, config.output_dir)
    record = {} if checkpoint is None else read_metadata(checkpoint).get("agent") or {}
    if not (isinstance(record, dict) and record.get("tasks")):
        return None
    return Pretrained.read(checkpoint)


def not_official(config: DictConfig) -> dict[str, Any]:
    """The settings of a model that an official file does not decide."""
    return {name: config.model[name] for name in NOT_OFFICIAL}


def adapt(config: DictConfig, pretrained: Pretrained) -> DictConfig:
    """The settings of a run on one task with a model of several.

    Raises:
        ValueError: a setting that the model decides otherwise.
    """
    check_types(config)
    check_ranges(config)
    defaults = default_settings()["model"]
    for name, value in OmegaConf.to_container(config.model).items():
        decided = pretrained.model.get(name, defaults[name])
        if value not in (defaults[name], decided):
            raise ValueError(
                f"model.{name} is {value!r}, but {decided!r} in {pretrained.path}; leave it out."
            )
    for key in ("env.pixels", "multi_gamma.enabled"):
        if OmegaConf.select(config, key):
            raise ValueError(
                f"{key} is true; {pretrained.path} is a model of several tasks, which has no such "
                "thing."
            )
    if config.env.episodic is True:
        raise ValueError(
            f"env.episodic is true; {pretrained.path} is a model of several tasks, which predicts "
            "no terminations."
        )
    config = OmegaConf.merge(config, {"model": pretrained.model, "env": {"episodic": False}})
    config.env.tasks = None
    automatic = {
        "loss.discount": None,  # each task has its own
        "loss.rho": RHO,
        "planner.iterations": default_iterations(max(pretrained.tasks.action_dims)),
    }
    for key, value in automatic.items():
        if OmegaConf.select(config, key) == "auto":
            OmegaConf.update(config, key, value)
    return config


def place_as_recorded(task: Task, path: Path, metadata: dict[str, Any]) -> Task:
    """The task of a recorded run, padded if its model is of several.

    Args:
        task: that the configuration names.
        path: of the checkpoint, for the message.
        metadata: of the checkpoint.

    Raises:
        CheckpointError: the model is not of this task.
    """
    if "agent" not in metadata or recorded_agent(path, metadata).get("index") is None:
        return task
    pretrained = Pretrained.read(path)
    if task.name not in pretrained.tasks.names:
        raise CheckpointError(
            f"{path} is of the tasks {', '.join(pretrained.tasks.names)}; env.task is {task.name}."
        )
    return place_in_model(task, pretrained.tasks)
