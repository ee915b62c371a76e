"""The fish among walls, which it swims through, but not for a reward."""

from __future__ import annotations

from itertools import product
from xml.etree import ElementTree

import numpy as np
from dm_control.suite import fish

from torchrl_tdmpc.envs.custom.body import Body, WithReward
from torchrl_tdmpc.envs.custom.shaping import down

__all__ = ["FISH"]

WALL = 0.15  # distance of each wall's centre from the middle, in x and in y, m


class Fish(WithReward, fish.Swim):
    """dm_control's swimming fish, whose target is near no wall."""

    def initialize_episode(self, physics: fish.Physics) -> None:
        """Draw pose and target until the target is near no wall."""
        super().initialize_episode(physics)
        while is_near_wall(physics.named.model.geom_pos["target"], 0.08):
            super().initialize_episode(physics)


def is_near_wall(position: np.ndarray, distance: float) -> bool:
    """Whether x or y of a position is so near to a wall's, as published: in stripes of the arena.

    Args:
        position: x, y and perhaps more, m.
        distance: m.
    """
    return bool((np.abs(np.abs(position[:2]) - WALL) < distance).any())


def swimming(physics: fish.Physics) -> float:
    """1 if the mouth is at the target and the torso upright; 0 near a wall."""
    if is_near_wall(physics.named.data.xpos["torso"], 0.06):
        return 0.0
    distance = np.linalg.norm(physics.mouth_to_target())
    radii = physics.named.model.geom_size[["mouth", "target"], 0].sum()
    return (7 * down(distance, radii, 2 * radii) + (physics.upright() + 1) / 2) / 8


def make_physics() -> fish.Physics:
    """dm_control's fish and four walls to be seen: in its model nothing collides."""
    xml, assets = fish.get_model_and_assets()
    model = ElementTree.fromstring(xml)
    shape = {"type": "box", "size": ".05 .05 .1", "material": "decoration"}
    for number, (x, y) in enumerate(product((-WALL, WALL), repeat=2)):
        place = {"name": f"wall{number}", "pos": f"{x} {y} .1"}
        ElementTree.SubElement(model.find("worldbody"), "geom", **place, **shape)
    return fish.Physics.from_xml_string(ElementTree.tostring(model), assets)


FISH = Body(
    make_physics=make_physics,
    make_task=Fish,
    control_timestep=0.04,
    rewards={"fish-obstacles": swimming},
)
