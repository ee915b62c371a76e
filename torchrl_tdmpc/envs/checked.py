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

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict.get("action")
        # NaN fails this comparison too
        if not all(-BOUND <= number <= BOUND for number in action.tolist()):
            raise NonFiniteError(
                f"task {self.task_name!r} was given the action {action.tolist()}; it must be "
                "finite and in [-1, 1]."
            )
        data = super()._step(tensordict)
        self._check_observation(data, "step()")
        reward = data.get("reward")
        if reward.shape != (1,):
            if reward.numel() != 1:
                raise breach(
                    self.task_name, "a reward must be one number", f"it is {described(reward)}"
                )
            data.set("reward", reward := reward.reshape(1))
        if reward.dtype != torch.float32:
            data.set("reward", reward := reward.float())
        if not math.isfinite(reward.item()):
            raise self._not_finite("reward", "step()")
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
            raise self._not_finite("observation", by)

    def _not_finite(self, key: str, by: str) -> NonFiniteError:
        return NonFiniteError(
            f"task {self.task_name!r} gives NaN or infinity as its {key} by {by}."
        )


def _is_finite(observation: Tensor) -> bool:
    """Whether every number of a float32 vector is finite, which their sum tells fast."""
    if observation.numel() <= FEW:
        return math.isfinite(sum(observation.tolist()))
    # In float32 the sum may be infinite where the numbers are not
    return math.isfinite(observation.sum().item()) or bool(observation.isfinite().all())
