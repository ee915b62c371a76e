"""The cheetah: backwards, on one foot, jumping, turning over."""

from __future__ import annotations

from dm_control.suite import cheetah

from torchrl_tdmpc.envs.custom.body import Body, WithReward
from torchrl_tdmpc.envs.custom.shaping import clip, down, up

__all__ = ["CHEETAH"]


class Cheetah(WithReward, cheetah.Cheetah):
    """dm_control's cheetah, whose episodes begin once it has come to the floor."""


def height(physics: cheetah.Physics, body: str) -> float:
    """Height of a body's origin, m: of a foot, its ankle."""
    return physics.named.data.xpos[body, "z"]


def spin(physics: cheetah.Physics) -> float:
    """Angular momentum of the whole body about its mass centre, kg m²/s; forwards is positive."""
    return physics.named.data.subtree_angmom["torso", 1]


def standing(physics: cheetah.Physics, foot: str) -> float:
    """1 if the torso and this foot are high, and the body is at rest."""
    mean = (height(physics, "torso") + height(physics, foot)) / 2
    return (5 * up(mean, 1.2, 0.6) + clip(2 - abs(physics.speed()) / 0.5)) / 6


def raised(physics: cheetah.Physics, foot: str) -> float:
    """1 if this foot and the torso are high."""
    foot, torso = height(physics, foot), height(physics, "torso")
    return (3 * up(foot, 1.2, 0.6) + 2 * up(torso, 1.2, 0.6)) / 5


def running(physics: cheetah.Physics) -> float:
    """1 from 6 m/s forwards on."""
    return (5 * clip(physics.speed() / 6) + 1) / 6


def lying(physics: cheetah.Physics) -> float:
    """1 if the torso and the feet are at the floor."""
    torso = height(physics, "torso")
    feet = (height(physics, "bfoot") + height(physics, "ffoot")) / 2
    return (3 * clip(2 - torso / 0.25) + clip(2 - feet / 0.25)) / 4


def legs_up(physics: cheetah.Physics) -> float:
    """On the back, the back foot up."""
    torso = height(physics, "torso")
    return (5 * down(torso, 0.25, 0.125) + raised(physics, "bfoot")) / 6


CHEETAH = Body(
    make_physics=lambda: cheetah.Physics.from_xml_string(*cheetah.get_model_and_assets()),
    make_task=Cheetah,
    control_timestep=0.01,
    rewards={
        "cheetah-run-backwards": lambda physics: clip(-physics.speed() / 8),
        "cheetah-stand-front": lambda physics: standing(physics, "bfoot"),
        "cheetah-stand-back": lambda physics: standing(physics, "ffoot"),
        "cheetah-jump": lambda physics: (
            (standing(physics, "bfoot") + standing(physics, "ffoot")) / 2
        ),
        "cheetah-run-front": lambda physics: raised(physics, "bfoot") * running(physics),
        "cheetah-run-back": lambda physics: raised(physics, "ffoot") * running(physics),
        "cheetah-lie-down": lying,
        "cheetah-legs-up": legs_up,
        "cheetah-flip": lambda physics: (
            (2 * clip(spin(physics) / 8) + clip(physics.speed() / 10)) / 3
        ),
        "cheetah-flip-backwards": lambda physics: (
            (2 * clip(-spin(physics) / 8) + clip(-physics.speed() / 8)) / 3
        ),
    },
)
