"""Reachers with three and four links, in place of dm_control's two."""

from __future__ import annotations

import functools
from xml.etree import ElementTree

from dm_control.suite import reacher

from torchrl_tdmpc.envs.custom.body import Body, WithReward

__all__ = ["REACHERS"]

LAST_CAPSULE = 0.1  # m; it reaches beyond the finger


class Reacher(WithReward, reacher.Reacher):
    """dm_control's reacher, whose joints and target are anywhere when an episode begins."""


def make_physics(joints: list[str], length: float) -> reacher.Physics:
    """dm_control's reacher with an arm of other links; the finger is at the end of the last.

    Args:
        joints: a link for each, from the root on.
        length: of a link, m.
    """
    xml, assets = reacher.get_model_and_assets()
    model = ElementTree.fromstring(xml)
    world, motors = model.find("worldbody"), model.find("actuator")
    finger = world.find(".//body[@name='finger']")
    world.remove(world.find("body[@name='arm']"))
    for motor in list(motors):
        motors.remove(motor)
    place, parent = "0 0 .01", world
    for joint in joints:
        is_first, is_last = joint == joints[0], joint == joints[-1]
        link = ElementTree.SubElement(parent, "body", name=f"link_{joint}", pos=place)
        end = LAST_CAPSULE if is_last else length
        shape = {"type": "capsule", "fromto": f"0 0 0 {end} 0 0", "size": ".01"}
        ElementTree.SubElement(link, "geom", name=f"link_{joint}", material="self", **shape)
        limits = {} if is_first else {"limited": "true", "range": "-80 80"}
        ElementTree.SubElement(link, "joint", name=joint, **limits)
        ElementTree.SubElement(motors, "motor", name=joint, joint=joint)
        place, parent = f"{length} 0 0", link
    finger.set("pos", place)
    parent.append(finger)
    return reacher.Physics.from_xml_string(ElementTree.tostring(model), assets)


def touching(physics: reacher.Physics) -> float:
    """1 if the finger touches the target."""
    radii = physics.named.model.geom_size[["target", "finger"], 0].sum()
    return float(physics.finger_to_target_dist() <= radii)


def reachers(links: str, joints: list[str], length: float) -> tuple[Body, ...]:
    """An easy and a hard task for one arm; the target is small in the hard one."""
    return tuple(
        Body(
            make_physics=functools.partial(make_physics, joints, length),
            make_task=functools.partial(Reacher, target_radius),
            control_timestep=0.02,
            rewards={f"reacher-{links}-{difficulty}": touching},
        )
        for difficulty, target_radius in (("easy", 0.05), ("hard", 0.015))
    )


REACHERS = (
    *reachers("three", ["shoulder0", "shoulder1", "wrist"], 0.09),
    *reachers("four", ["shoulder0", "shoulder1", "shoulder2", "wrist"], 0.06),
)
