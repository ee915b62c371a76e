"""Several tasks for one model: which they are, and environments of them that look alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tensordict import NestedKey

from torchrl_tdmpc.envs.factory import load_task
from torchrl_tdmpc.envs.padding import SUCCESS, pad_task, refuse_padding
from torchrl_tdmpc.envs.task import ModelTasks, Task, names_of, unknown

__all__ = ["MT30", "TaskSet", "load_tasks"]

#: the 30 tasks of DMControl that a published data set has, in the order of their indices
MT30 = (
    *("walker-stand", "walker-walk", "walker-run", "cheetah-run", "reacher-easy", "reacher-hard"),
    *("acrobot-swingup", "pendulum-swingup", "cartpole-balance", "cartpole-balance-sparse"),
    *("cartpole-swingup", "cartpole-swingup-sparse", "cup-catch", "finger-spin"),
    *("finger-turn-easy", "finger-turn-hard", "fish-swim", "hopper-stand", "hopper-hop"),
    *("walker-walk-backwards", "walker-run-backwards", "cheetah-run-backwards"),
    *("cheetah-run-front", "cheetah-run-back", "cheetah-jump", "hopper-hop-backwards"),
    *("reacher-three-easy", "reacher-three-hard", "cup-spin", "pendulum-spin"),
)
NOT_HERE = {"mw-": "Meta-World", "myo-": "MyoSuite", "ms-": "ManiSkill"}  # by the names' beginnings


@dataclass(frozen=True)
class TaskSet:
    """Several tasks, and what they are for one model.

    Observations are padded with zeros to the widest, actions to the widest too; an environment
    takes the first of them. Episode length, action repeat and discount remain each task's own.

    Attributes:
        name: of the set, for titles.
        tasks: the tasks as they are alone; a task's index is its place here.

    Raises:
        ValueError: no task, one that is there twice, or one that is observed as pixels.

    Examples:
        >>> tasks = load_tasks(["cartpole-swingup", "cup-catch"])
        >>> tasks.observation_shape, tasks.action_dim, tasks.action_dims
        ((8,), 2, [1, 2])
    """

    name: str
    tasks: tuple[Task, ...]

    def __post_init__(self):
        names = self.names
        if not names:
            raise ValueError("tasks is empty; it must name at least one.")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"tasks names {twice[0]} twice; each must be there once.")
        for task in self.tasks:
            try:
                refuse_padding(task)
            except ValueError as error:
                raise ValueError(f"tasks has {error}") from None

    @property
    def names(self) -> list[str]:
        """The tasks' names, by index."""
        return [task.name for task in self.tasks]

    @property
    def observation_dims(self) -> list[int]:
        """Each task's own number of observed numbers."""
        return [task.observation_shape[0] for task in self.tasks]

    @property
    def action_dims(self) -> list[int]:
        """Each task's own number of action dimensions."""
        return [task.action_dim for task in self.tasks]

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Of a padded observation."""
        return (max(self.observation_dims),)

    @property
    def action_dim(self) -> int:
        """Of a padded action."""
        return max(self.action_dims)

    @property
    def extra_keys(self) -> tuple[NestedKey, ...]:
        """The further entries that every task has, and ``success`` if any tells of it.

        A task that does not tell has NaN there.
        """
        first, *others = (task.extra_keys for task in self.tasks)
        common = [key for key in first if all(key in keys for keys in others)]
        if any(task.success_key is not None for task in self.tasks):
            common.append(SUCCESS)
        return tuple(dict.fromkeys(common))

    @property
    def extra_names(self) -> dict[str, NestedKey]:
        """The name of each of ``extra_keys`` in rows and columns."""
        return names_of(self.extra_keys)

    @property
    def episode_length(self) -> int:
        """The longest."""
        return max(task.episode_length for task in self.tasks)

    def for_model(self, discounts: Sequence[float], embedding_dim: int) -> ModelTasks:
        """The same as what a model is of.

        Args:
            discounts: one for each task.
            embedding_dim: size of the task embedding.
        """
        columns = (self.names, self.observation_dims, self.action_dims, discounts)
        return ModelTasks(*map(tuple, columns), embedding_dim)

    @property
    def padded(self) -> tuple[Task, ...]:
        """The tasks with environments that look alike, whose entry ``task`` is the index.

        Such environments may be stepped together; a model of several tasks predicts no
        terminations, so they count as not episodic.
        """
        return tuple(
            pad_task(task, index, self.observation_shape[0], self.action_dim, self.extra_keys)
            for index, task in enumerate(self.tasks)
        )


def load_tasks(names: str | Sequence[str], *, success_key: NestedKey | None = None) -> TaskSet:
    """Look several tasks up by their names, or a published set by its own.

    Args:
        names: ``"mt30"``, or a name for each task. One that ends like ``-v1`` is an id of
            Gymnasium, one with a colon the import path of a function, any other is of DMControl.
        success_key: of those that are not of DMControl; see :func:`make_task`.

    Raises:
        ImportError: the tasks, or some, are of a suite that is not there.
        ValueError: an unknown name, or tasks that do not go together.

    Examples:
        >>> load_tasks(["walker-stand", "cup-catch", "Pendulum-v1"]).observation_shape
        (24,)
    """
    if isinstance(names, str):
        if names == "mt80":
            raise ImportError(
                "tasks is mt80, 50 tasks of which are of Meta-World, whose environments this "
                "version cannot make; choose mt30 or a list of names."
            )
        if names != "mt30":
            raise unknown("tasks", names, ["mt30", "mt80"], listed="mt30, mt80 or a list of names")
        return TaskSet(names, tuple(load_task("dmcontrol", name) for name in MT30))
    for name in names:
        for beginning, suite in NOT_HERE.items():
            if name.startswith(beginning):
                raise ImportError(
                    f"tasks has {name}, which is of {suite}; give the import path of a function "
                    "that makes its environment, package.module:function."
                )
    tasks = tuple(_load(name, success_key) for name in names)
    joined = "+".join(task.name for task in tasks)
    return TaskSet(joined if len(tasks) <= 3 else f"{len(tasks)}-tasks", tasks)


def _load(name: str, success_key: NestedKey | None) -> Task:
    """A task of the suite that its name shows."""
    backend = "function" if ":" in name else "dmcontrol"
    if re.search(r"-v\d+$", name):
        backend = "gym"
    try:
        if backend == "dmcontrol":
            return load_task(backend, name)
        return load_task(backend, name, success_key=success_key)
    except (ImportError, ValueError) as error:
        raise type(error)(f"tasks has {name}: {error}") from error
