"""The parts of a run that are made where none are given."""

from __future__ import annotations

from typing import Any

import torch
from torchrl.collectors import Collector
from torchrl.envs import Compose, RewardSum, StepCounter, TransformedEnv

from torchrl_tdmpc.envs import Task, kill_workers, make_env
from torchrl_tdmpc.objectives import TDMPC2Loss
from torchrl_tdmpc.planners import TDMPC2Planner
from torchrl_tdmpc.recording import say_waiting
from torchrl_tdmpc.trainers.agent import Networks
from torchrl_tdmpc.trainers.failures import CollectionError, summary, who_failed
from torchrl_tdmpc.trainers.patience import Patience
from torchrl_tdmpc.trainers.schedule import discount_heuristic

__all__ = ["make_loss", "make_planner", "refuse_conflicts", "start_collector"]


def make_loss(task: Task, networks: Networks, device: torch.device) -> TDMPC2Loss:
    """The published objective of these networks, with the discount of the task's length."""
    networks = [network.to(device) for network in networks]
    discount = None  # where each task of a model has its own
    if task.model_tasks is None:
        discount = discount_heuristic(task.episode_length, task.discount_cap)
    return TDMPC2Loss(*networks, discount=discount, rho=task.rho).to(device)


def make_planner(loss: TDMPC2Loss) -> TDMPC2Planner:
    """The published planner, with the networks of a loss."""
    networks = loss.world_model, loss.policy_prior, loss.q_ensemble
    return TDMPC2Planner(*networks, discount=loss.discount)


def start_collector(
    task: Task,
    planner: TDMPC2Planner,
    *,
    num_envs: int,
    workers: str,
    env_timeout: float | None,
    random_steps: int,
    seed: int,
    device: torch.device,
) -> Collector:
    """Start environments of a task, and what steps them: one agent step in each at a time.

    Raises:
        CollectionError: an environment failed, or gave no answer in time.
    """
    env = make_env(task, num_envs=num_envs, seed=seed, device=device, workers=workers)

    def on_wait(seconds: float) -> None:
        say_waiting(seconds, f"{int(env.ready.sum())} of {num_envs} are ready")

    try:
        with Patience(env_timeout, on_wait) as patience, patience.waiting(planner):
            return Collector(
                TransformedEnv(env, Compose(RewardSum(), StepCounter())),
                planner,
                frames_per_batch=num_envs,
                init_random_frames=random_steps,
                auto_register_policy_transforms=True,
            )
    except Exception as error:
        who, error = who_failed(env, error)
        kill_workers(env)
        raise CollectionError(f"{who} at the start ({summary(error)}).") from error


def refuse_conflicts(**parts: Any) -> None:
    """Refuse a part that another one holds already, so that it would be left out.

    Args:
        parts: ``update``, ``loss``, ``auxiliary`` and ``networks``, as the trainer was given them.

    Raises:
        ValueError: two of them exclude each other.
    """
    for whole, held in (("update", ("loss", "auxiliary", "networks")), ("loss", ("networks",))):
        for part in held if parts[whole] is not None else ():
            if parts[part] is not None and parts[part] != ():
                raise ValueError(f"{part} is given beside {whole}, which holds its own; leave one.")
