"""The tasks of the DeepMind Control Suite."""

from __future__ import annotations

import functools
import math

import numpy as np
from torchrl.envs import (
    ActionScaling,
    CatTensors,
    DMControlWrapper,
    DoubleToFloat,
    EnvBase,
    FlattenObservation,
    StepCounter,
    TransformedEnv,
)

from torchrl_tdmpc.envs.rendering import choose_renderer
from torchrl_tdmpc.envs.task import Task, resolve_episode_length, unknown

ACTION_REPEAT = 2

# The published names shorten two domains.
_PUBLISHED_DOMAINS = {"ball_in_cup": "cup", "point_mass": "pointmass"}


def dmcontrol_task(name: str, episode_length: int | None = None) -> Task:
    """A task of the DeepMind Control Suite, with two environment steps to a decision.

    Args:
        name (str): domain and task joined by a dash, as published: ``"cartpole-swingup"``,
            ``"cup-catch"``, ``"finger-turn-easy"``. Dashes, underscores and case are not told
            apart, and the suite's own domain names (``ball_in_cup``, ``point_mass``) hold as well.
        episode_length (int, optional): truncates episodes earlier than the suite does; decisions.

    Returns:
        Task: the task. One dm_control environment is built, after the name is known to be good, to
        read the time limit and the action bounds.

    Raises:
        ImportError: if dm_control is not installed.
        ValueError: if the task is unknown or has unbounded actions, or if ``episode_length`` does
            not fit its time limit.

    Examples:
        >>> dmcontrol_task("cup-catch").episode_length
        500
    """
    published, names = _task_names()
    if _plain(name) not in names:
        raise unknown("env.task", name, published)
    domain, task = names[_plain(name)]
    name = published_name(domain, task)

    env = _suite().load(domain, task)
    spec = env.action_spec()
    if not (_bounded(spec.minimum) & _bounded(spec.maximum)).all():
        raise ValueError(f"env.task {name!r} has unbounded actions; choose a task with bounds.")
    limit = env._step_limit  # environment steps; the suite has no public name for it
    declared = None if math.isinf(limit) else math.ceil(math.ceil(limit) / ACTION_REPEAT)
    length = resolve_episode_length(name, declared, episode_length)
    return Task(
        name=name,
        backend="dmcontrol",
        episode_length=length,
        action_repeat=ACTION_REPEAT,
        observation_shape=(sum(math.prod(obs.shape) for obs in env.observation_spec().values()),),
        action_dim=math.prod(spec.shape),
        make=functools.partial(
            _make, domain, task, max_steps=None if length == declared else length
        ),
    )


def published_name(domain: str, task: str) -> str:
    """The published name of a task of the suite.

    Examples:
        >>> published_name("ball_in_cup", "catch")
        'cup-catch'
    """
    return f"{_PUBLISHED_DOMAINS.get(domain, domain)}-{task}".replace("_", "-")


def _make(domain: str, task: str, seed: int, *, max_steps: int | None) -> EnvBase:
    """One environment. Its initial states come from a generator of its own."""
    base = DMControlWrapper(
        _suite().load(domain, task, task_kwargs={"random": seed}), frame_skip=ACTION_REPEAT
    )
    specs = dict(base.observation_spec.items())
    env = TransformedEnv(base)
    if matrices := [key for key, spec in specs.items() if spec.ndim == 2]:
        env.append_transform(FlattenObservation(-2, -1, in_keys=matrices))
    env.append_transform(CatTensors([*specs], "observation", sort=False))
    env.append_transform(DoubleToFloat())
    low, high = env.action_spec.space.low, env.action_spec.space.high
    if not ((low == -1) & (high == 1)).all():
        env.append_transform(ActionScaling())
    if max_steps is not None:
        env.append_transform(StepCounter(max_steps, step_count_key="_step_count"))
    return env


def _task_names() -> tuple[list[str], dict[str, tuple[str, str]]]:
    """The published names, and (domain, task) under every name that is understood, made plain."""
    tasks = _suite().ALL_TASKS
    published = {_plain(published_name(*task)): task for task in tasks}
    own = {_plain("-".join(task)): task for task in tasks}
    return [published_name(*task) for task in tasks], own | published


def _plain(name: str) -> str:
    return name.replace("_", "-").lower()


def _bounded(bounds: np.ndarray) -> np.ndarray:
    return np.abs(bounds) < 1e10  # MuJoCo writes "no limit" as its largest value, 1e10


def _suite():
    choose_renderer()
    try:
        from dm_control import suite
    except ModuleNotFoundError as error:
        if error.name != "dm_control":
            raise
        raise ImportError(
            "env.backend 'dmcontrol' needs dm_control: pip install 'torchrl_tdmpc[dmc]'."
        ) from error
    return suite
