"""An agent from a task and settings, and an agent that acts with what was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.checkpoint import CheckpointError
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_tdmpc.checkpoints import find_checkpoint, load_checkpoint, read_metadata
from torchrl_tdmpc.envs import Task, TaskSet
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
        observation_shape: shape of one observation: ``(D,)``, or ``(C, 64, 64)`` for frames.

    Examples:
        >>> from torchrl_tdmpc.envs import load_task
        >>> task = load_task("dmcontrol", "cartpole-swingup")
        >>> planner = TDMPC2Planner(*build_networks(task, {"size": 1}), discount=0.99)
        >>> agent = Agent(planner, task.observation_shape)
        >>> agent.act(np.zeros(5)).shape, agent.act(torch.zeros(5)).shape
        ((1,), torch.Size([1]))
    """

    def __init__(self, planner: TDMPC2Planner, observation_shape: Sequence[int]):
        self.planner = planner
        self.observation_shape = tuple(observation_shape)
        self._mean: Tensor | None = None  # [N, H, A], the warm start of the next plan

    @overload
    def act(self, observation: np.ndarray, *, explore: bool = False) -> np.ndarray: ...

    @overload
    def act(self, observation: Tensor, *, explore: bool = False) -> Tensor: ...

    def act(
        self, observation: np.ndarray | Tensor, *, explore: bool = False
    ) -> np.ndarray | Tensor:
        """Choose an action for one observation, or for each one of a batch.

        Args:
            observation: ``[*observation_shape]`` or ``[N, *observation_shape]``. Numbers become
                float32; frames are uint8.
            explore: whether the action is perturbed, as in training.

        Returns:
            ``[A]`` or ``[N, A]``, in [-1, 1]: a NumPy array for a NumPy array, a tensor for a
            tensor.

        Raises:
            ValueError: another shape, or another number of observations than in the last call.
        """
        device = next(self.planner.parameters()).device
        batch = torch.as_tensor(observation).to(device)
        batch = batch if batch.dtype == torch.uint8 else batch.float()
        is_one = batch.shape == self.observation_shape
        batch = batch.unsqueeze(0) if is_one else batch
        if batch.shape[1:] != self.observation_shape:
            raise ValueError(
                f"the observation has shape {list(batch.shape)}; this agent observes "
                f"{list(self.observation_shape)}, or a batch of it."
            )
        if self._mean is None:
            horizon, action_dim = self.planner.horizon, self.planner.action_dim
            self._mean = torch.zeros(len(batch), horizon, action_dim, device=device)
        if len(self._mean) != len(batch):
            raise ValueError(
                f"this agent acted for {len(self._mean)} environments and now gets "
                f"{len(batch)} observations; call reset() in between."
            )
        observation_key, mean_key = self.planner.in_keys
        data = TensorDict({observation_key: batch, mean_key: self._mean}, batch_size=len(batch))
        mode = ExplorationType.RANDOM if explore else ExplorationType.DETERMINISTIC
        with set_exploration_type(mode):
            data = self.planner(data)
        self._mean = data["next", mean_key]
        action = data[self.planner.action_key]
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
        return _build(task.observation_shape, task.action_dim, task.episodic, model)
    task_dim = model.get("task_dim")
    if task_dim is None:
        is_small = task.name == "mt30" and model.get("size", 1) not in (1, 317)
        task_dim = 64 if is_small else 96
    context = TaskContext(task.action_dims, task_discounts(task), task_dim)
    return _build(task.observation_shape, task.action_dim, False, model, context)


def task_discounts(tasks: TaskSet) -> list[float]:
    """Each task's own discount, by the published heuristic."""
    return [discount_heuristic(task.episode_length, task.discount_cap) for task in tasks.tasks]


def _build(
    observation_shape: Sequence[int],
    action_dim: int,
    episodic: bool,
    model: Mapping[str, Any],
    task_context: TaskContext | None = None,
) -> Networks:
    model = {"size": 1, **model}
    model.pop("task_dim", None)
    sizes = {f.name: model.pop(f.name) for f in fields(ModelSize) if f.name in model}
    support = {f.name: model.pop(f.name) for f in fields(SymlogTwoHot) if f.name in model}
    return make_networks(
        tuple(observation_shape),
        action_dim,
        model_size(model.pop("size"), **sizes),
        episodic=episodic,
        task_context=task_context,
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
    return {
        "observation_shape": list(task.observation_shape),
        "action_dim": task.action_dim,
        "tasks": task.names if isinstance(task, TaskSet) else None,
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


def load_agent(
    path: str | Path,
    *,
    networks: tuple[nn.Module, nn.Module, nn.Module] | None = None,
    device: torch.device | str = "cpu",
    execution: Execution = Execution(),
) -> Agent:
    """An agent that acts with the weights of a checkpoint.

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
    if record.get("tasks"):
        raise CheckpointError(
            f"{checkpoint} is of the tasks {', '.join(record['tasks'])}; it is evaluated by "
            "tdmpc2-evaluate, and an Agent acts on one task."
        )
    if networks is None and record["model"] is None:
        raise CheckpointError(
            f"the networks of {checkpoint} were built by its run's own code; build them again and "
            "give them as networks=(world_model, policy_prior, q_ensemble)."
        )
    shape = record["observation_shape"]
    if networks is None:
        networks = _build(shape, record["action_dim"], record["episodic"], record["model"])
    networks = [network.to(device) for network in networks]
    loss = TDMPC2Loss(*networks, discount=record["planner"]["discount"]).to(device)
    load_checkpoint(checkpoint, {"loss": loss}, map_location=device)
    planner = TDMPC2Planner(*networks, execution=execution, **record["planner"])
    return Agent(planner, shape)
