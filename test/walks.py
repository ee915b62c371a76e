"""A cheap task for whole runs: a point in the plane that actions move."""

from __future__ import annotations

import gymnasium
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase


class Walk(EnvBase):
    """Rewards the nearness of the origin; it begins anywhere, and ends at its time limit only."""

    def __init__(self, size=0.3):
        super().__init__(batch_size=())
        self.size = size  # of a step
        self.num_episodes = 0
        self.generator = torch.Generator()
        self.observation_spec = Composite(observation=Unbounded((3,)))
        self.action_spec = Bounded(-1.0, 1.0, (2,))
        self.reward_spec = Unbounded((1,))

    def _reset(self, tensordict=None):
        self.position = torch.randn(2, generator=self.generator)
        self.left = self._length()
        self.num_episodes += 1
        return self._observe()

    def _length(self):
        return 10**6

    def _step(self, tensordict):
        self.position = self.position + self.size * tensordict["action"]
        self.left -= 1
        ended = torch.tensor([self.left == 0])
        reward = 1.0 - self.position.abs().mean().reshape(1)
        return self._observe().update({"reward": reward, "terminated": ended, "done": ended})

    def _observe(self):
        near = 1.0 / (1.0 + self.position.square().sum().reshape(1))
        return TensorDict(observation=torch.cat([self.position, near]))

    def _set_seed(self, seed):
        self.generator.manual_seed(seed)


class MarkedWalk(Walk):
    """It also says whether the point is near the origin."""

    def __init__(self, size=0.3):
        super().__init__(size)
        self.observation_spec["is_near"] = Unbounded((1,))

    def _observe(self):
        data = super()._observe()
        return data.set("is_near", (data["observation"][2:] > 0.5).float())


class EndingWalk(Walk):
    """Its episodes terminate after three to eight steps."""

    def _length(self):
        return int(torch.randint(3, 9, (), generator=self.generator))


class ShortAndLongWalk(Walk):
    """Its episodes terminate after three and eight steps in turn."""

    def _length(self):
        return 3 if self.num_episodes % 2 == 0 else 8


def pendulum():
    """Three numbers are observed, one acts, and an episode has six steps."""
    return gymnasium.make("Pendulum-v1", max_episode_steps=6)


def car():
    """Two numbers are observed, one acts, and an episode has five steps."""
    return gymnasium.make("MountainCarContinuous-v0", max_episode_steps=5)


class Upright(gymnasium.Wrapper):
    """Tells, as MetaWorld does, whether a step succeeded: the last one of an episode."""

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, {**info, "success": float(truncated)}


def upright():
    """The pendulum, whose episodes all succeed."""
    return Upright(pendulum())
