"""A body of dm_control that poses tasks with rewards of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dm_control import mujoco
from dm_control.rl import control

__all__ = ["Body", "Reward", "make_environment"]

STEPS = 1000  # environment steps of an episode, in every task

Reward = Callable[[Any], float]  # of the body's physics, as they are after an environment step


@dataclass(frozen=True, eq=False)
class Body:
    """What the tasks of one body share, and the reward of each.

    Attributes:
        make_physics: builds the model.
        make_task: given ``random`` and ``reward``; says where an episode begins, and what is
            observed.
        control_timestep: of an environment step, seconds.
        rewards: by the published names of the tasks.
    """

    make_physics: Callable[[], mujoco.Physics]
    make_task: Callable[..., control.Task]
    control_timestep: float
    rewards: Mapping[str, Reward]


class WithReward:
    """A task of dm_control whose reward is a function of the physics; mixed into its class.

    Args:
        reward: the function.
    """

    def __init__(self, *args: Any, reward: Reward, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.reward = reward

    def get_reward(self, physics: mujoco.Physics) -> float:
        """The reward of the state that a step led to."""
        return self.reward(physics)


def make_environment(body: Body, name: str, random: int) -> control.Environment:
    """dm_control's environment of one task.

    Args:
        body: whose task it is.
        name: the task's published name.
        random: seed of its initial states.

    Examples:
        >>> from torchrl_tdmpc.envs.custom import TASKS
        >>> env = make_environment(TASKS["pendulum-spin"], "pendulum-spin", random=1)
        >>> env.action_spec().shape
        (1,)
    """
    return control.Environment(
        body.make_physics(),
        body.make_task(random=random, reward=body.rewards[name]),
        time_limit=round(STEPS * body.control_timestep),
        control_timestep=body.control_timestep,
    )
