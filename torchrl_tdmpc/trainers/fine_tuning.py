"""A model of several tasks, as a run on one of them begins with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchrl.checkpoint import CheckpointError

from torchrl_tdmpc.checkpoints import (
    find_checkpoint,
    load_checkpoint,
    load_official,
    num_official_tasks,
    official_size,
    read_metadata,
)
from torchrl_tdmpc.envs import ModelTasks, Task, TaskSet, place_task
from torchrl_tdmpc.objectives import TDMPC2Loss
from torchrl_tdmpc.trainers.agent import recorded_agent, recorded_tasks, task_discounts
from torchrl_tdmpc.trainers.schedule import discount_heuristic

__all__ = ["Pretrained", "load_pretrained", "place_in_model"]


class Pretrained(NamedTuple):
    """What is known of a model of several tasks before its weights are loaded."""

    path: Path  #: of its checkpoint
    tasks: ModelTasks  #: that it is of
    model: dict[str, Any]  #: settings of :func:`~torchrl_tdmpc.trainers.build_networks`

    @classmethod
    def read(
        cls,
        path: str | Path,
        tasks: TaskSet | None = None,
        settings: Mapping[str, float] | None = None,
    ) -> Pretrained:
        """Look a checkpoint up.

        Args:
            path: of a run on several tasks, its folder, or an official file (``.pt``).
            tasks: those of an official file, which does not name them; None for a run.
            settings: what an official file does not tell of its model: ``simnorm_dim``, ``vmin``,
                ``vmax`` and ``dropout``.

        Raises:
            CheckpointError: it is damaged, of one task, or its networks cannot be built.
            FileNotFoundError: there is none.
            ValueError: an official file that does not fit its ``tasks``.
        """
        if Path(path).suffix == ".pt":
            return cls._read_official(Path(path), tasks, dict(settings or {}))
        checkpoint = find_checkpoint(str(path), path)
        record = recorded_agent(checkpoint, read_metadata(checkpoint))
        of_model = recorded_tasks(checkpoint, record)
        if of_model is None:
            raise CheckpointError(f"{checkpoint} is of one task; it must be of several.")
        if record["model"] is None:
            raise CheckpointError(
                f"the networks of {checkpoint} were built by its run's own code; make them again "
                "and load them with load_checkpoint."
            )
        return cls(checkpoint, of_model, {**record["model"], "task_dim": None})

    @classmethod
    def _read_official(
        cls, path: Path, tasks: TaskSet | None, settings: dict[str, float]
    ) -> Pretrained:
        if not (number := num_official_tasks(path)):
            raise CheckpointError(f"{path} is of one task; it must be of several.")
        if tasks is None or len(tasks.names) != number:
            given = "None" if tasks is None else f"{len(tasks.names)} tasks"
            raise ValueError(
                f"tasks is {given}; it must name the {number} tasks of {path}, by their index."
            )
        agent = load_official(
            path, discount=task_discounts(tasks), action_dims=tasks.action_dims, **settings
        )
        context = agent.loss.world_model.task_context
        theirs = context.action_masks.sum(1).int().tolist()
        if (*agent.observation_shape, theirs) != (*tasks.observation_shape, tasks.action_dims):
            raise ValueError(
                f"{path} observes {agent.observation_shape[0]} numbers and acts with {theirs}; its "
                f"tasks observe {tasks.observation_shape[0]} and act with {tasks.action_dims}."
            )
        policy_prior = agent.loss.policy_prior
        model = {
            **asdict(official_size(path)),
            "num_bins": agent.loss.world_model.two_hot.num_bins,
            "log_std_min": policy_prior.log_std_min,
            "log_std_max": policy_prior.log_std_max,
            **settings,
        }
        of_model = tasks.for_model(task_discounts(tasks), context.embedding_dim)
        return cls(path, of_model, model)


def place_in_model(task: Task, model_tasks: ModelTasks) -> Task:
    """A task as a model of several sees it; see :func:`~torchrl_tdmpc.envs.place_task`.

    A task that is new to the model has the discount of its own length.
    """
    discount = discount_heuristic(task.episode_length, task.discount_cap)
    return place_task(task, model_tasks, discount)


def load_pretrained(
    path: str | Path,
    loss: TDMPC2Loss,
    model_tasks: ModelTasks,
    settings: Mapping[str, float] | None = None,
) -> None:
    """Give a loss the weights of a checkpoint of several tasks, targets and value scale too.

    Rows of tasks that the checkpoint is not of stay as they are in ``loss``.

    Args:
        path: see :meth:`Pretrained.read`.
        loss: whose networks are of these or more tasks.
        model_tasks: the tasks of ``loss``, of which those of the checkpoint are the first.
        settings: see :meth:`Pretrained.read`.

    Raises:
        CheckpointError: the checkpoint is damaged or does not fit.
    """
    first_tasks = FirstTasks(loss)
    if Path(path).suffix != ".pt":
        load_checkpoint(find_checkpoint(str(path), path), {"loss": first_tasks})
        return
    number = num_official_tasks(path)
    agent = load_official(
        path,
        discount=model_tasks.discounts[:number],
        action_dims=model_tasks.action_dims[:number],
        **(settings or {}),
    )
    first_tasks.load_state_dict(agent.loss.state_dict())


class FirstTasks:
    """A loss that takes the state of one of fewer tasks: the first rows of its tables.

    Args:
        loss: of a model of several tasks.
    """

    def __init__(self, loss: TDMPC2Loss):
        self.loss = loss

    def state_dict(self) -> dict[str, Tensor]:
        """That of the loss."""
        return self.loss.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over every entry; of the tables, the rows that there are."""
        state, own = dict(state), self.state_dict()
        for name in state:
            if ".task_context." in name:
                rows = state[name].to(own[name].device)
                state[name] = torch.cat([rows, own[name][len(rows) :]])
        self.loss.load_state_dict(state)
