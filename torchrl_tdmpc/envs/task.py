"""What a task is, whichever backend it comes from."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

from tensordict import NestedKey
from torchrl.envs import EnvBase


@dataclass(frozen=True)
class ModelTasks:
    """The tasks that one model is of, by their index in it.

    Attributes:
        names: what they are called.
        observation_dims: each task's own number of observed numbers.
        action_dims: each task's own number of action dimensions.
        discounts: each task's own discount.
        embedding_dim: size of the model's task embedding.

    Examples:
        >>> one = ModelTasks(("cup-catch",), (8,), (2,), (0.99,), 96)
        >>> one.adding("cartpole-swingup", 5, 1, 0.99).names
        ('cup-catch', 'cartpole-swingup')
    """

    names: tuple[str, ...]
    observation_dims: tuple[int, ...]
    action_dims: tuple[int, ...]
    discounts: tuple[float, ...]
    embedding_dim: int

    def adding(
        self, name: str, observation_dim: int, action_dim: int, discount: float
    ) -> ModelTasks:
        """The same with one more at the end."""
        return ModelTasks(
            (*self.names, name),
            (*self.observation_dims, observation_dim),
            (*self.action_dims, action_dim),
            (*self.discounts, discount),
            self.embedding_dim,
        )


@dataclass(frozen=True)
class Task:
    """One named task: its limits, and how to make an environment that poses it.

    Attributes:
        name: the task's name within its backend, in the published spelling.
        backend: where the task comes from, such as ``"dmcontrol"``.
        episode_length: time limit of an episode, in agent steps. An episode that reaches it
            is truncated, not terminated.
        action_repeat: environment steps that one agent step takes.
        observation_shape: shape of one ``observation``: ``(D,)`` for a vector,
            ``(9, 64, 64)`` for frames.
        action_dim: size of one ``action``, A.
        make: makes one environment of batch size ``[]`` from a seed, or ``num_envs`` at once. It
            reads ``action`` (float32, in [-1, 1]) and writes ``observation`` (float32, or uint8 if
            it is frames), ``reward`` (float32), ``done``, ``terminated`` and ``truncated``.
        frame_channels: channels of one frame, where an observation is a stack of
            frames, newest last; None for vectors.
        episodic: whether an episode may terminate, rather than only reach its time limit.
        discount_cap: largest discount that the heuristic gives; published per suite.
        rho: decay of the weight of later steps in the rollout; published per suite.
        extra_keys: further entries that a step writes below ``"next"``, one number each: a
            ``success``. The replay stores them, and rows of episodes carry their last values.
        success_key: the one of ``extra_keys`` that is 1 where the task was achieved; None where
            returns alone tell.
        num_envs: of environments that are a batch by nature: the N of the batch size ``[N]`` that
            ``make`` gives; None of those that are made one by one.
        index: where the environments are padded for a model of several tasks: the index of this
            one, which they write as ``task``.
        model_tasks: the tasks of the model that it is padded for.
    """

    name: str
    backend: str
    episode_length: int
    action_repeat: int
    observation_shape: tuple[int, ...]
    action_dim: int
    make: Callable[[int], EnvBase]
    frame_channels: int | None = None
    episodic: bool = True
    discount_cap: float = 0.995
    rho: float = 0.5
    extra_keys: tuple[NestedKey, ...] = ()
    success_key: NestedKey | None = None
    num_envs: int | None = None
    index: int | None = None
    model_tasks: ModelTasks | None = None

    @property
    def extra_names(self) -> dict[str, NestedKey]:
        """The name of each of ``extra_keys`` in rows and columns."""
        return names_of(self.extra_keys)


class Facts(NamedTuple):
    """What one environment tells of its task.

    The published defaults are those of the DeepMind Control Suite.
    """

    time_limit: float | None = None  #: environment steps; None or infinity where none is declared
    episodic: bool = True  #: see :class:`Task`
    discount_cap: float = 0.995  #: see :class:`Task`
    rho: float = 0.5  #: see :class:`Task`


def names_of(keys: Iterable[NestedKey]) -> dict[str, NestedKey]:
    """What entries are called in rows and columns.

    Examples:
        >>> names_of(["success", ("info", "force")])
        {'success': 'success', 'info.force': ('info', 'force')}
    """
    return {key if isinstance(key, str) else ".".join(key): key for key in keys}


def unknown(key: str, value: str, choices: Iterable[str], listed: str | None = None) -> ValueError:
    """The error for a name that is none of the choices, nearest names first.

    Args:
        key: the setting that carries the name.
        value: the name given.
        choices: the names that would have been right.
        listed: where they are to be read; None lists them.

    Returns:
        To be raised by the caller.

    Examples:
        >>> print(unknown("backend", "dmcontrl", ["dmcontrol"]))
        backend 'dmcontrl' is unknown (did you mean dmcontrol?); choose from dmcontrol.
    """
    choices = list(choices)
    near = difflib.get_close_matches(str(value), choices)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    return ValueError(
        f"{key} {value!r} is unknown{hint}; choose from {listed or ', '.join(choices)}."
    )


def import_named(module: str, task: str) -> ModuleType:
    """Import the module that the name of a task begins with.

    Raises:
        ValueError: Python does not find it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise
        raise ValueError(
            f"task {task!r} names the module {error.name!r}, which Python does not find; "
            "PYTHONPATH must hold its folder."
        ) from None


def resolve_num_envs(task: Task, requested: int | None, key: str = "num_envs") -> int:
    """How many environments of a task are stepped together.

    Args:
        task: what they pose.
        requested: the number asked for; None takes 1, or as many as a batch of the task has.
        key: what the number is called, for the message.

    Returns:
        The number.

    Raises:
        ValueError: the environments are a batch of another number.
    """
    if task.num_envs is None:
        return 1 if requested is None else requested
    if requested not in (None, task.num_envs):
        raise ValueError(
            f"{key} is {requested}, but the environments of task {task.name!r} are a batch of "
            f"{task.num_envs}; choose {task.num_envs}, or leave it out."
        )
    return task.num_envs


def resolve_episode_length(task: str, declared: int | None, requested: int | None) -> int:
    """The time limit that holds, in agent steps.

    Args:
        task: the task's name, for the messages.
        declared: the limit that the environment itself declares.
        requested: the limit asked for (``episode_length``); it may shorten the
            declared one, never lengthen it.

    Returns:
        The requested limit, or else the declared one.

    Raises:
        ValueError: if there is no limit at all, or the requested one is not within
            ``1 .. declared``.

    Examples:
        >>> resolve_episode_length("cartpole-swingup", 500, None)
        500
        >>> resolve_episode_length("cartpole-swingup", 500, 100)
        100
    """
    if requested is None:
        if declared is None:
            raise ValueError(
                f"episode_length is None, but task {task!r} declares no time limit; "
                "choose the number of agent steps after which an episode is truncated."
            )
        return declared
    if requested < 1 or (declared is not None and requested > declared):
        choices = "at least 1" if declared is None else f"from 1 to {declared}"
        raise ValueError(
            f"episode_length {requested} does not fit task {task!r}; choose {choices} agent steps."
        )
    return requested
