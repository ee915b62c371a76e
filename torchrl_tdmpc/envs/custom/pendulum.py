"""The pendulum: round and round."""

from __future__ import annotations

from dm_control.suite import pendulum

from torchrl_tdmpc.envs.custom.body import Body, WithReward
from torchrl_tdmpc.envs.custom.shaping import clip

__all__ = ["PENDULUM"]


class Pendulum(WithReward, pendulum.SwingUp):
    """dm_control's pendulum, whose episodes begin at rest at any angle."""


PENDULUM = Body(
    make_physics=lambda: pendulum.Physics.from_xml_string(*pendulum.get_model_and_assets()),
    make_task=Pendulum,
    control_timestep=0.02,
    # 1 from 9 rad/s on, in either direction
    rewards={"pendulum-spin": lambda physics: clip(abs(physics.named.data.qvel["hinge"][0]) / 9)},
)
