"""The hopper: backwards, turning over."""

from __future__ import annotations

from dm_control.suite import hopper

from torchrl_tdmpc.envs.custom.body import Body, WithReward
from torchrl_tdmpc.envs.custom.shaping import clip

__all__ = ["HOPPER"]


class Hopper(WithReward, hopper.Hopper):
    """dm_control's hopper, whose episodes begin in any pose."""


def hop_backwards(physics: hopper.Physics) -> float:
    """1 from 1 m/s backwards on, and 0 if the torso is not above the foot."""
    is_standing = 0.6 <= physics.height() <= 2
    return is_standing * clip(-physics.speed())


def spin(physics: hopper.Physics) -> float:
    """Angular momentum of the whole body about its mass centre, kg m²/s; forwards is positive."""
    return physics.named.data.subtree_angmom["torso", 1]


HOPPER = Body(
    make_physics=lambda: hopper.Physics.from_xml_string(*hopper.get_model_and_assets()),
    make_task=lambda **settings: Hopper(hopping=True, **settings),
    control_timestep=0.02,
    rewards={
        "hopper-hop-backwards": hop_backwards,
        "hopper-flip": lambda physics: clip((spin(physics) - 2.5) / 2.5),
        "hopper-flip-backwards": lambda physics: clip((-spin(physics) - 2.5) / 2.5),
    },
)
