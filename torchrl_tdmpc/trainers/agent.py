"""An agent from a task and settings, and an agent that acts with what was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.checkpoint import CheckpointError
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_tdmpc.checkpoints import find_checkpoint, load_checkpoint, read_metadata
from torchrl_tdmpc.envs import ModelTasks, Task, TaskSet, unknown
from torchrl_tdmpc.modules import (
    Execution,
    ModelSize,
    PolicyPrior,
    QEnsemble,
    SymlogTwoHot,
    TaskContext,
    TDMPC2WorldModel,
    make_networks,
    model_size,
)
from torchrl_tdmpc.objectives import TDMPC2Loss
from torchrl_tdmpc.planners import TDMPC2Planner
from torchrl_tdmpc.trainers.schedule import discount_heuristic

__all__ = [
    "Agent",
    "build_networks",
    "describe_agent",
    "load_agent",
    "recorded_agent",
    "recorded_tasks",
    "task_discounts",
]

Networks = tuple[TDMPC2WorldModel, PolicyPrior, QEnsemble]
PLANNER_SETTINGS = (
    *("discount", "horizon", "iterations", "num_samples", "num_elites", "num_pi_trajs"),
    *("min_std", "max_std", "temperature", "mpc"),
)


class Agent:
    """A planner that remembers its own warm start: observations in, actions out.

    Args:
        planner: what acts.
        observation_shape: shape of one observation: ``(D,)``, or ``(C, 64, 64)`` for frames. Of a
            model of several tasks, that of a padded one.
        tasks: those of a model of several; None for a model of one.
        task: the name of the one that it acts in unless told otherwise; None asks for it.

    Examples:
        >>> from torchrl_tdmpc.envs import load_task
        >>> task = load_task("dmcontrol", "cartpole-swingup")
        >>> planner = TDMPC2Planner(*build_networks(task, {"size": 1}), discount=0.99)
        >>> agent = Agent(planner, task.observation_shape)
        >>> agent.act(np.zeros(5)).shape, agent.act(torch.zeros(5)).shape
        ((1,), torch.Size([1]))
    """

    def __init__(
        self,
        planner: TDMPC2Planner,
        observation_shape: Sequence[int],
        tasks: ModelTasks | None = None,
        task: str | None = None,
    ):
        self.planner = planner
        self.observation_shape = tuple(observation_shape)
        self.tasks = tasks
        self.task = task
        self._mean: Tensor | None = None  # [N, H, A], the warm start of the next plan

    @overload
    def act(self, observation: np.ndarray, *, explore: bool = False) -> np.ndarray: ...

    @overload
    def act(self, observation: Tensor, *, explore: bool = False) -> Tensor: ...

    def act(
        self,
        observation: np.ndarray | Tensor,
        *,
        task: str | Sequence[str] | None = None,
        explore: bool = False,
    ) -> np.ndarray | Tensor:
        """Choose an action for one observation, or for each one of a batch.

        Args:
            observation: ``[*observation_shape]`` or ``[N, *observation_shape]``. Numbers become
                float32; frames are uint8.
            task: of a model of several tasks, the name of the one that all observations are of:
                they have as many numbers, and actions as many dimensions, as in that task alone.
                Or a name for each observation: then observations and actions are padded with zeros
                to the widest.
            explore: whether the action is perturbed, as in training.

        Returns:
            ``[A]`` or ``[N, A]``, in [-1, 1]: a NumPy array for a NumPy array, a tensor for a
            tensor.

        Raises:
            ValueError: another shape, or another number of observations than in the last call; a
                task that the model is not of, or none.
        """
        device = next(self.planner.parameters()).device
        batch = torch.as_tensor(observation).to(device)
        batch = batch if batch.dtype == torch.uint8 else batch.float()
        indices, shape, action_dim = self._of_tasks(self.task if task is None else task)
        is_one = batch.shape == shape
        batch = batch.unsqueeze(0) if is_one else batch
        if batch.shape[1:] != shape:
            raise ValueError(
                f"the observation has shape {list(batch.shape)}; this agent observes "
                f"{list(shape)}, or a batch of it."
            )
        if shape != self.observation_shape:
            batch = F.pad(batch, (0, self.observation_shape[0] - shape[0]))
        if self._mean is None:
            size = self.planner.horizon, self.planner.action_dim
            self._mean = torch.zeros(len(batch), *size, device=device)
        if len(self._mean) != len(batch):
            raise ValueError(
                f"this agent acted for {len(self._mean)} environments and now gets "
                f"{len(batch)} observations; call reset() in between."
            )
        observation_key, mean_key, *task_keys = self.planner.in_keys
        data = TensorDict({observation_key: batch, mean_key: self._mean}, batch_size=len(batch))
        if len(indices) not in (0, 1, len(batch)):
            raise ValueError(
                f"task has {len(indices)} names for {len(batch)} observations; it must be one "
                "name, or one for each."
            )
        for key in task_keys:
            data[key] = torch.tensor(indices, device=device).expand(len(batch))
        mode = ExplorationType.RANDOM if explore else ExplorationType.DETERMINISTIC
        with set_exploration_type(mode):
            data = self.planner(data)
        self._mean = data["next", mean_key]
        action = data[self.planner.action_key][..., :action_dim]
        action = action[0] if is_one else action
        return action if isinstance(observation, Tensor) else action.cpu().numpy()

    def reset(self, which: Sequence[bool] | Tensor | None = None) -> None:
        """Forget the warm start, as at the start of an episode.

        Args:
            which: a boolean for each environment of the batch: those whose episode ended. None
                forgets all of them, and the next batch may have another size.

        Raises:
            ValueError: not one boolean for each environment.
        """
        if which is None:
            self._mean = None
        elif self._mean is not None:
            ended = torch.as_tensor(which, dtype=torch.bool, device=self._mean.device)
            if ended.shape != self._mean.shape[:1]:
                raise ValueError(
                    f"which has shape {list(ended.shape)}; this agent acted for "
                    f"{len(self._mean)} environments, and each needs one boolean."
                )
            self._mean = self._mean.masked_fill(ended.view(-1, 1, 1), 0.0)

    def _of_tasks(self, task: str | Sequence[str] | None) -> tuple[list[int], tuple[int, ...], int]:
        """The indices of tasks, and an observation's shape and an action's size among them."""
        shape, action_dim = self.observation_shape, self.planner.action_dim
        if self.tasks is None:
            if task is not None:
                raise ValueError(f"task is {task!r}; this agent is of one task, so leave it out.")
            return [], shape, action_dim
        names = self.tasks.names
        if task is None:
            raise ValueError(
                f"task is None; it must say which of {', '.join(names)} the observation is of."
            )
        given = [task] if isinstance(task, str) else list(task)
        for name in given:
            if name not in names:
                raise unknown("task", name, names)
        indices = [names.index(name) for name in given]
        if isinstance(task, str):
            shape = (self.tasks.observation_dims[indices[0]],)
            action_dim = self.tasks.action_dims[indices[0]]
        return indices, shape, action_dim


def build_networks(task: Task | TaskSet, model: Mapping[str, Any]) -> Networks:
    """Build the networks of a task, or of several, from flat settings.

    Args:
        task: gives the shapes, and whether episodes may terminate.
        model: ``size`` in million parameters, fields of :class:`~torchrl_tdmpc.modules.ModelSize`
            and :class:`~torchrl_tdmpc.SymlogTwoHot`, and keyword arguments of
            :func:`~torchrl_tdmpc.make_networks`. With several tasks also ``task_dim``, the size of
            the task embedding; None takes the published one.

    Raises:
        ValueError: a setting out of its range.

    Examples:
        >>> from torchrl_tdmpc.envs import load_tasks
        >>> tasks = load_tasks(["cartpole-swingup", "cup-catch"])
        >>> world_model, *_ = build_networks(tasks, {"size": 1})
        >>> world_model.task_context.embedding.shape
        torch.Size([2, 96])
    """
    if isinstance(task, Task):
        if model.get("task_dim") is not None:
            raise ValueError(f"task_dim is {model['task_dim']}; it must be None for one task.")
        tasks = task.model_tasks
    else:
        task_dim = model.get("task_dim")
        if task_dim is None:
            is_small = task.name == "mt30" and model.get("size", 1) not in (1, 317)
            task_dim = 64 if is_small else 96
        tasks = task.for_model(task_discounts(task), task_dim)
    episodic = isinstance(task, Task) and task.episodic
    return _build(task.observation_shape, task.action_dim, episodic, model, tasks)


def task_discounts(tasks: TaskSet) -> list[float]:
    """Each task's own discount, by the published heuristic."""
    return [discount_heuristic(task.episode_length, task.discount_cap) for task in tasks.tasks]


def _build(
    observation_shape: Sequence[int],
    action_dim: int,
    episodic: bool,
    model: Mapping[str, Any],
    tasks: ModelTasks | None = None,
) -> Networks:
    context = None
    if tasks is not None:
        context = TaskContext(tasks.action_dims, tasks.discounts, tasks.embedding_dim)
    model = {"size": 1, **model}
    model.pop("task_dim", None)
    sizes = {f.name: model.pop(f.name) for f in fields(ModelSize) if f.name in model}
    support = {f.name: model.pop(f.name) for f in fields(SymlogTwoHot) if f.name in model}
    return make_networks(
        tuple(observation_shape),
        action_dim,
        model_size(model.pop("size"), **sizes),
        episodic=episodic,
        task_context=context,
        two_hot=SymlogTwoHot(**support),
        **model,
    )


def describe_agent(
    task: Task | TaskSet, planner: TDMPC2Planner, model: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What :func:`load_agent` rebuilds an agent from, for a checkpoint's metadata.

    Args:
        task: what it was trained on.
        planner: what acts.
        model: as for :func:`build_networks`; None for networks that were made otherwise.
    """
    tasks = task.model_tasks if isinstance(task, Task) else task
    context = planner.world_model.task_context
    tables = None
    if tasks is not None:
        tables = {
            "observation_dims": list(tasks.observation_dims),
            "action_dims": list(tasks.action_dims),
            "discounts": context.discounts.tolist(),
            "embedding_dim": context.embedding_dim,
        }
    return {
        "observation_shape": list(task.observation_shape),
        "action_dim": task.action_dim,
        "tasks": None if tasks is None else list(tasks.names),
        "tables": tables,
        "index": task.index if isinstance(task, Task) else None,
        "episodic": planner.world_model.episodic,
        "model": None if model is None else dict(model),
        "planner": {name: getattr(planner, name) for name in PLANNER_SETTINGS},
    }


def recorded_agent(path: str | Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`describe_agent` wrote into a checkpoint.

    Args:
        path: the checkpoint's, for the message.
        metadata: the checkpoint's.

    Raises:
        CheckpointError: it is absent, or of another form.
    """
    record = metadata.get("agent")
    if record is None:
        raise CheckpointError(f"{path} says nothing of its agent; it must be of a run.")
    tasks = record.get("tasks") if isinstance(record, dict) else 0
    are_names = isinstance(tasks, list) and all(isinstance(name, str) for name in tasks)
    if not (are_names or tasks is None):
        raise CheckpointError(f"{path} describes its agent as no run does.")
    return record


def recorded_tasks(path: str | Path, record: Mapping[str, Any]) -> ModelTasks | None:
    """The tasks of the model that :func:`describe_agent` wrote of; None for one task.

    Args:
        path: the checkpoint's, for the message.
        record: from :func:`recorded_agent`.

    Raises:
        CheckpointError: it is of another form.
    """
    if not record.get("tasks"):
        return None
    try:
        tables = dict(record["tables"])
        embedding_dim = int(tables.pop("embedding_dim"))
        columns = {name: tuple(column) for name, column in tables.items()}
        tasks = ModelTasks(tuple(record["tasks"]), embedding_dim=embedding_dim, **columns)
        if {len(column) for column in columns.values()} != {len(tasks.names)}:
            raise ValueError("its tables have other numbers of tasks")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} describes its agent as no run does.") from error
    return tasks


def load_agent(
    path: str | Path,
    *,
    networks: tuple[nn.Module, nn.Module, nn.Module] | None = None,
    device: torch.device | str = "cpu",
    execution: Execution = Execution(),
) -> Agent:
    """An agent that acts with the weights of a checkpoint.

    An agent of several tasks is told at each call which its observations are of; one that was
    trained on further in one of them acts in that one unless told otherwise.

    Args:
        path: a checkpoint of a run, or the run's folder: its newest checkpoint.
        networks: world model, policy prior and Q ensemble to load into, for a run whose networks
            were its user's own.
        device: where it computes.
        execution: how it plans.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        CheckpointError: the file is damaged, not of a run, or its networks cannot be rebuilt.
    """
    checkpoint = find_checkpoint(str(path), path)
    record = recorded_agent(checkpoint, read_metadata(checkpoint))
    tasks = recorded_tasks(checkpoint, record)
    if networks is None and record["model"] is None:
        raise CheckpointError(
            f"the networks of {checkpoint} were built by its run's own code; build them again and "
            "give them as networks=(world_model, policy_prior, q_ensemble)."
        )
    shape = record["observation_shape"]
    if networks is None:
        model, episodic = record["model"], record["episodic"]
        networks = _build(shape, record["action_dim"], episodic, model, tasks)
    networks = [network.to(device) for network in networks]
    loss = TDMPC2Loss(*networks, discount=record["planner"]["discount"]).to(device)
    load_checkpoint(checkpoint, {"loss": loss}, map_location=device)
    planner = TDMPC2Planner(*networks, execution=execution, **record["planner"])
    index = record.get("index")
    return Agent(planner, shape, tasks, None if index is None else tasks.names[index])
