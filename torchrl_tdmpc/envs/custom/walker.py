"""The walker: backwards, upside down, lying."""

from __future__ import annotations

from dm_control.suite import walker

from torchrl_tdmpc.envs.custom.body import Body, WithReward
from torchrl_tdmpc.envs.custom.shaping import clip, down, up

__all__ = ["WALKER"]


class Walker(WithReward, walker.PlanarWalker):
    """dm_control's walker, whose episodes begin in any pose."""


def height(physics: walker.Physics, *bodies: str) -> float:
    """Mean height of the origins of some bodies, m."""
    return sum(physics.named.data.xpos[body, "z"] for body in bodies) / len(bodies)


def thighs(physics: walker.Physics) -> float:
    """Mean height of the thighs, m."""
    return height(physics, "left_thigh", "right_thigh")


def feet(physics: walker.Physics) -> float:
    """Mean height of the feet, m."""
    return height(physics, "left_foot", "right_foot")


def upright(physics: walker.Physics) -> float:
    """1 if the torso is upright, 0 if it is upside down."""
    return (1 + physics.torso_upright()) / 2


def standing(physics: walker.Physics) -> float:
    """1 if the walker stands upright."""
    return (3 * up(physics.torso_height(), 1.2, 0.6) + upright(physics)) / 4


def headstand(physics: walker.Physics) -> float:
    """1 if feet and thighs are high."""
    return (3 * up(feet(physics), 1.1, 0.55) + 2 * up(thighs(physics), 1.0, 0.5)) / 5


def moving(physics: walker.Physics, speed: float) -> float:
    """1 if the mass centre moves at least as fast, m/s, in the direction of its sign."""
    return (5 * clip(physics.horizontal_velocity() / speed) + 1) / 6


def arabesque(physics: walker.Physics) -> float:
    """On the left foot, the right one up, the torso down."""
    torso, left, right = (height(physics, body) for body in ("torso", "left_foot", "right_foot"))
    feet = down(left, 0.08, 0.5) + up(right, 1.0, 0.5)
    return (3 * up(torso, 1.0, 0.5) + feet + 1 - upright(physics)) / 6


def lying(physics: walker.Physics) -> float:
    """5 if the torso and the thighs are at the floor, and the torso is upside down."""
    torso, thigh = down(physics.torso_height(), 0.08, 0.04), down(thighs(physics), 0.08, 0.04)
    return 3 * torso + thigh + 1 - upright(physics)


WALKER = Body(
    make_physics=lambda: walker.Physics.from_xml_string(*walker.get_model_and_assets()),
    make_task=lambda **settings: Walker(move_speed=0, **settings),
    control_timestep=0.025,
    rewards={
        "walker-walk-backwards": lambda physics: standing(physics) * moving(physics, -1),
        "walker-run-backwards": lambda physics: standing(physics) * moving(physics, -8),
        "walker-arabesque": arabesque,
        "walker-lie-down": lambda physics: lying(physics) / 5,
        "walker-legs-up": lambda physics: (lying(physics) + 2 * up(feet(physics), 1.1, 0.55)) / 7,
        "walker-headstand": headstand,
        "walker-flip": lambda physics: headstand(physics) * moving(physics, 6),
        "walker-backflip": lambda physics: headstand(physics) * moving(physics, -6),
    },
)
