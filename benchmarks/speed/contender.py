"""What is timed in the same way on both sides, and the input that both get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase

OBSERVATION, ACTION, HORIZON, BATCH = 17, 6, 3, 256
PLANNER = {"horizon": HORIZON, "num_samples": 512, "num_elites": 64, "iterations": 6}
DISCOUNT = 0.99
AUXILIARY_DISCOUNTS = [0.9, 0.95, 0.97, 0.98, 0.995]


class Contender(NamedTuple):
    """One implementation, ready to plan and to learn."""

    planner: Callable[[TensorDictBase], TensorDictBase]
    update: Callable[[TensorDictBase], Any]
    parameters: int


def planner_input(planner: Callable, num_envs: int) -> TensorDict:
    """What a collector hands to the planner in the midst of an episode."""
    data = TensorDict(
        observation=torch.randn(num_envs, OBSERVATION),
        is_init=torch.zeros(num_envs, 1, dtype=torch.bool),
        batch_size=num_envs,
    )
    warm_start = planner.in_keys[-1]  # last on both sides
    return data.set(warm_start, torch.zeros(num_envs, HORIZON, ACTION))


def make_batch() -> TensorDict:
    """Slices ``[BATCH, HORIZON]`` as the replay buffer hands them out."""
    following = TensorDict(
        observation=torch.randn(BATCH, HORIZON, OBSERVATION),
        reward=torch.rand(BATCH, HORIZON, 1),
        terminated=torch.zeros(BATCH, HORIZON, 1, dtype=torch.bool),
        done=torch.zeros(BATCH, HORIZON, 1, dtype=torch.bool),
    )
    return TensorDict(
        observation=torch.randn(BATCH, HORIZON, OBSERVATION),
        action=torch.rand(BATCH, HORIZON, ACTION) * 2 - 1,
        next=following,
    ).auto_batch_size_(2)


def count(*modules: torch.nn.Module) -> int:
    """Weights that are trained."""
    return sum(p.numel() for module in modules for p in module.parameters())
