"""Environments of one task as a model of several sees them: padded, and with the task's index."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tensordict import NestedKey, TensorDictBase
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase, StepCounter, Transform

from torchrl_tdmpc.envs.task import ModelTasks, Task

__all__ = ["SUCCESS", "pad_task", "place_task", "refuse_padding"]

SUCCESS = "success"


def place_task(task: Task, model_tasks: ModelTasks, discount: float) -> Task:
    """A task as a model of several sees it, under its own name or as one more.

    Args:
        task: the task alone.
        model_tasks: those that the model is of so far.
        discount: of the task, if the model is not of it.

    Returns:
        The task with padded environments, and with the ``model_tasks`` that it is now among.

    Raises:
        ValueError: the task does not fit into the model.

    Examples:
        >>> from torchrl_tdmpc.envs import load_task
        >>> of_model = ModelTasks(("cup-catch",), (8,), (2,), (0.99,), 96)
        >>> task = place_task(load_task("dmcontrol", "cartpole-swingup"), of_model, 0.99)
        >>> task.index, task.observation_shape, task.action_dim, task.model_tasks.names
        (1, (8,), 2, ('cup-catch', 'cartpole-swingup'))
    """
    try:
        refuse_padding(task)
    except ValueError as error:
        raise ValueError(f"task is {error}") from None
    own = task.observation_shape[0], task.action_dim
    widest = max(model_tasks.observation_dims), max(model_tasks.action_dims)
    if task.name not in model_tasks.names:
        if own[0] > widest[0] or own[1] > widest[1]:
            raise ValueError(
                f"task {task.name} observes {own[0]} numbers and acts with {own[1]}; the model "
                f"takes at most {widest[0]} and {widest[1]}."
            )
        model_tasks = model_tasks.adding(task.name, *own, discount)
    index = model_tasks.names.index(task.name)
    of_model = model_tasks.observation_dims[index], model_tasks.action_dims[index]
    if own != of_model:
        raise ValueError(
            f"task {task.name} observes {own[0]} numbers and acts with {own[1]}; in the model it "
            f"has {of_model[0]} and {of_model[1]}."
        )
    padded = pad_task(task, index, *widest, task.extra_keys)
    return dataclasses.replace(padded, model_tasks=model_tasks)


def pad_task(
    task: Task,
    index: int,
    observation_dim: int,
    action_dim: int,
    extra_keys: Sequence[NestedKey],
) -> Task:
    """A task whose environments are padded and write ``task``, its index.

    A model of several tasks predicts no terminations, so it counts as not episodic.

    Args:
        task: the task alone.
        index: in the model.
        observation_dim: to which observations are widened by zeros.
        action_dim: of the actions, of which the environment takes the first ones.
        extra_keys: the further entries that are kept.
    """
    return dataclasses.replace(
        task,
        observation_shape=(observation_dim,),
        action_dim=action_dim,
        make=functools.partial(
            _make_padded, task, index, observation_dim, action_dim, tuple(extra_keys)
        ),
        episodic=False,
        extra_keys=tuple(extra_keys),
        index=index,
    )


def refuse_padding(task: Task) -> None:
    """Refuse a task that cannot be one of several.

    Raises:
        ValueError: it is observed as pixels, or a batch by nature; the sentence begins with its
            name.
    """
    if len(task.observation_shape) != 1:
        raise ValueError(
            f"{task.name}, whose observations have shape {list(task.observation_shape)}; each task "
            "of a model of several must be observed as a vector."
        )
    if task.num_envs is not None:
        raise ValueError(
            f"{task.name}, whose environments are a batch of {task.num_envs}; those of a model of "
            "several tasks must be made one by one."
        )


class Pad(Transform):
    """Widens observations by zeros, cuts actions, and writes the index of the task.

    Further entries that other tasks lack are left out.

    Args:
        task: the task alone.
        index: of the task.
        observation_dim: of a padded observation.
        action_dim: of a padded action.
        extra_keys: further entries that the environment shall have.
    """

    invertible = True

    def __init__(
        self,
        task: Task,
        index: int,
        observation_dim: int,
        action_dim: int,
        extra_keys: Sequence[NestedKey],
    ):
        super().__init__()
        self.own_action_dim, self.action_dim = task.action_dim, action_dim
        self.observation_dim = observation_dim
        self.index = index
        self.success_key = task.success_key
        self.writes_success = SUCCESS in extra_keys and (
            task.success_key is not None or SUCCESS not in task.extra_keys
        )
        self.left_out = [key for key in task.extra_keys if key not in extra_keys]

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        observation = next_tensordict["observation"]
        missing = self.observation_dim - observation.shape[-1]
        next_tensordict["observation"] = F.pad(observation, (0, missing))
        next_tensordict["task"] = torch.tensor([self.index])
        if self.writes_success:
            success = torch.tensor([math.nan])
            if self.success_key is not None:
                success = next_tensordict[self.success_key].float().reshape(1)
            next_tensordict[SUCCESS] = success
        return next_tensordict.exclude(*self.left_out)

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return self._call(tensordict_reset)

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict.get("action", None)
        if action is not None:  # as it is at a reset
            tensordict.set("action", action[..., : self.own_action_dim])
        return tensordict

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """The padded observation, and the task's index."""
        observation_spec["observation"] = Unbounded((self.observation_dim,))
        observation_spec["task"] = Unbounded((1,), dtype=torch.int64)
        if self.writes_success:
            observation_spec[SUCCESS] = Unbounded((1,))
        for key in self.left_out:
            del observation_spec[key]
        return observation_spec

    def transform_action_spec(self, action_spec: Composite) -> Composite:
        """The padded action."""
        action_spec["action"] = Bounded(-1.0, 1.0, (self.action_dim,))
        return action_spec


def _make_padded(
    task: Task,
    index: int,
    observation_dim: int,
    action_dim: int,
    extra_keys: Sequence[NestedKey],
    seed: int,
) -> EnvBase:
    """One environment of a task, with the same entries as those of the others."""
    env = task.make(seed)
    env.append_transform(Pad(task, index, observation_dim, action_dim, extra_keys))
    if "_step_count" not in env.observation_spec.keys():  # noqa: SIM118
        env.append_transform(StepCounter(step_count_key="_step_count"))
    return env
