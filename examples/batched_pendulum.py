"""Pendulums that step together in one tensor, as the environments of a GPU simulator do.

They are Gymnasium's Pendulum-v1. Train on 64 of them, with an update after every tenth agent step:

    PYTHONPATH=examples python examples/tdmpc2_multigamma.py env.backend=function \
        env.task=batched_pendulum:BatchedPendulum 'env.kwargs={num_envs: 64}' \
        env.episode_length=200 env.episodic=false train.utd=0.1 train.steps=50_000 \
        eval.interval=12_800 eval.episodes=64
"""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

SECONDS = 0.05  # of a step
FASTEST = 8.0  # radians a second
STRONGEST = 2.0  # newton metres


class BatchedPendulum(EnvBase):
    """N pendulums that are to be swung up and held there; nothing ends their episodes.

    Args:
        num_envs: N.
        device: where they are computed.

    Attributes:
        state: angle (0 is up, in radians) and velocity (radians a second), ``[N, 2]``.
    """

    def __init__(self, num_envs: int = 64, device: str = "cpu"):
        super().__init__(batch_size=(num_envs,), device=device)
        self.observation_spec = Composite(
            observation=Unbounded((num_envs, 3)), shape=(num_envs,), device=device
        )
        self.action_spec = Bounded(-STRONGEST, STRONGEST, (num_envs, 1), device=device)
        self.reward_spec = Unbounded((num_envs, 1), device=device)
        self.generator = torch.Generator(device)
        self.state = torch.zeros(num_envs, 2, device=device)

    def _set_seed(self, seed: int | None) -> None:
        self.generator.manual_seed(seed)

    def _reset(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        begins = None if tensordict is None else tensordict.get("_reset", None)
        drawn = self._draw()
        # Only the pendulums that are asked for begin a new episode
        self.state = drawn if begins is None else torch.where(begins, drawn, self.state)
        return self._observe()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        angle, velocity = self.state.unbind(-1)
        torque = tensordict["action"].squeeze(-1)
        from_top = (angle + math.pi).remainder(2 * math.pi) - math.pi
        cost = from_top**2 + 0.1 * velocity**2 + 0.001 * torque**2
        velocity = velocity + (15 * angle.sin() + 3 * torque) * SECONDS
        velocity = velocity.clamp(-FASTEST, FASTEST)
        self.state = torch.stack([angle + velocity * SECONDS, velocity], -1)
        ended = self._ended()
        flags = {"reward": -cost.unsqueeze(-1), "terminated": ended, "done": ended}
        return self._observe().update(flags)

    def _draw(self) -> Tensor:
        """Where episodes begin, ``[N, 2]``."""
        unit = torch.rand(self.state.shape, generator=self.generator, device=self.device) * 2 - 1
        return unit * torch.tensor([math.pi, 1.0], device=self.device)

    def _ended(self) -> Tensor:
        """Whether a pendulum terminates here, ``[N, 1]``: none ever does."""
        return torch.zeros_like(self.state[:, :1], dtype=torch.bool)

    def _observe(self) -> TensorDictBase:
        angle, velocity = self.state.unbind(-1)
        observation = torch.stack([angle.cos(), angle.sin(), velocity], -1)
        return TensorDict(observation=observation, batch_size=self.batch_size, device=self.device)
