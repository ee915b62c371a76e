"""The environment that an agent sees: the first check of its action, the last of what comes."""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_tdmpc.envs.contract import NonFiniteError, breach, described
from torchrl_tdmpc.envs.limit import Limit
from torchrl_tdmpc.envs.memory import Memory, read_memory, write_memory

BOUND = 1 + 1e-6  # an action may be beyond [-1, 1] by rounding
FEW = 100  # numbers that Python adds faster than torch does


class CheckedEnv(TransformedEnv):
    """Refuses actions outside [-1, 1], and what is not finite or not of the shapes promised.

    Args:
        env: what is below; transforms that it has already stay its own.
        name: the task's name, for the messages.

    Attributes:
        limit: what episodes are compared with; None compares nothing.
    """

    def __init__(self, env: EnvBase, name: str):
        super().__init__(env, auto_unwrap=False)
        self.task_name = name
        self.limit: Limit | None = None
        self._shape: torch.Size | None = None
        self._reward_shape = torch.Size([*self.batch_size, 1])

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict.get("action")
        if not _is_within(action):
            where = _first_wrong(action.abs() <= BOUND, self.batch_dims)
            raise self._at(
                where,
                f"task {self.task_name!r} was given the action {action[where].tolist()}; it must "
                "be finite and in [-1, 1].",
            )
        data = super()._step(tensordict)
        self._check_observation(data, "step()")
        reward = data.get("reward")
        if reward.shape != self._reward_shape:
            if reward.numel() != self._reward_shape.numel():
                raise breach(
                    self.task_name, "a reward must be one number", f"it is {described(reward)}"
                )
            data.set("reward", reward := reward.reshape(self._reward_shape))
        if reward.dtype != torch.float32:
            data.set("reward", reward := reward.float())
        if not _is_finite(reward):
            raise self._not_finite("reward", reward, "step()")
        if self.limit is not None:
            self.limit.count(data)
        return data

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        data = super()._reset(tensordict, **kwargs)
        if self.limit is not None:
            self.limit.begin()
        self._check_observation(data, "reset()")
        return data

    def state_dict(self, *args: Any, **kwargs: Any) -> Memory:
        """What is remembered across episodes; see :func:`read_memory`."""
        return read_memory(self.base_env)

    def load_state_dict(self, state_dict: Memory, **kwargs: Any) -> None:
        """Remember what another environment did."""
        write_memory(self.base_env, state_dict)

    def _check_observation(self, data: TensorDictBase, by: str) -> None:
        observation = data.get("observation")
        if self._shape is None:
            self._shape = self.observation_spec["observation"].shape
        if observation.shape != self._shape:
            raise breach(
                self.task_name,
                f"an observation must be of shape {tuple(self._shape)}, as its spec says",
                f"it is of shape {tuple(observation.shape)} by {by}",
            )
        if not observation.dtype.is_floating_point:
            return
        if observation.dtype != torch.float32:
            data.set("observation", observation := observation.float())
        if not _is_finite(observation):
            raise self._not_finite("observation", observation, by)

    def _not_finite(self, key: str, value: Tensor, by: str) -> NonFiniteError:
        return self._at(
            _first_wrong(value.isfinite(), self.batch_dims),
            f"task {self.task_name!r} gives NaN or infinity as its {key} by {by}.",
        )

    def _at(self, where: tuple[int, ...], message: str) -> NonFiniteError:
        """An error that carries the number of its environment, where there is a batch of them."""
        error = NonFiniteError(message)
        if where:
            (error.environment,) = where
        return error


def _first_wrong(is_right: Tensor, batch_dims: int) -> tuple[int, ...]:
    """The place in the batch of the first environment that has a wrong number; () without batch."""
    return tuple((~is_right).nonzero()[0, :batch_dims].tolist())


def _is_within(action: Tensor) -> bool:
    """Whether every number is in [-1, 1]; NaN is not."""
    if action.numel() <= FEW:
        return all(-BOUND <= number <= BOUND for number in action.flatten().tolist())
    return bool((action.abs() <= BOUND).all())


def _is_finite(values: Tensor) -> bool:
    """Whether every number of a float32 tensor is finite, which their sum tells fast."""
    if values.numel() <= FEW:
        return math.isfinite(sum(values.flatten().tolist()))
    # In float32 the sum may be infinite where the numbers are not
    return math.isfinite(values.sum().item()) or bool(values.isfinite().all())
