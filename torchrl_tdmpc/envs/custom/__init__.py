"""The official implementation's own tasks of DMControl: 28 further tasks of seven bodies.

Written from a description of what they compute. A body's file holds a reward for each of its tasks,
and what else differs from dm_control: where an episode begins, or the model. The package imports
dm_control, so import it only where that is there.
"""

from __future__ import annotations

from torchrl_tdmpc.envs.custom import cheetah, cup, fish, hopper, pendulum, reacher, walker
from torchrl_tdmpc.envs.custom.body import Body, make_environment

__all__ = ["BODIES", "Body", "TASKS", "make_environment"]

BODIES: tuple[Body, ...] = (
    walker.WALKER,
    cheetah.CHEETAH,
    hopper.HOPPER,
    *reacher.REACHERS,
    cup.CUP,
    pendulum.PENDULUM,
    fish.FISH,
)
#: the body of each task, by the task's published name
TASKS: dict[str, Body] = {name: body for body in BODIES for name in body.rewards}
