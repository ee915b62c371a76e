"""The ball in a cup: out of it, and fast."""

from __future__ import annotations

import numpy as np
from dm_control.suite import ball_in_cup

from torchrl_tdmpc.envs.custom.body import Body, WithReward
from torchrl_tdmpc.envs.custom.shaping import clip

__all__ = ["CUP"]

ANYWHERE = 0.1  # probability that an episode does not begin with the ball in the cup


class Cup(WithReward, ball_in_cup.BallInCup):
    """dm_control's ball in a cup, whose ball is in the cup when most episodes begin."""

    def initialize_episode(self, physics: ball_in_cup.Physics) -> None:
        """Place the ball until it touches nothing, and is in the cup unless it may be anywhere."""
        is_anywhere = self.random.uniform() < ANYWHERE
        is_placed = False
        while not is_placed:
            physics.named.data.qpos["ball_x"] = self.random.uniform(-0.2, 0.2)
            physics.named.data.qpos["ball_z"] = self.random.uniform(0.2, 0.5)
            physics.after_reset()
            is_placed = physics.data.ncon == 0 and (is_anywhere or bool(physics.in_target()))
        self.after_step(physics)


def spinning(physics: ball_in_cup.Physics) -> float:
    """1 if the ball is far from the target and fast; 0 in the target."""
    if physics.in_target():
        return 0.0
    distance = np.linalg.norm(physics.ball_to_target())
    speed = np.linalg.norm(physics.named.data.qvel[["ball_x", "ball_z"]])
    return (clip(2 * distance) + 2 * clip(speed / 6)) / 3


CUP = Body(
    make_physics=lambda: ball_in_cup.Physics.from_xml_string(*ball_in_cup.get_model_and_assets()),
    make_task=Cup,
    control_timestep=0.02,
    rewards={"cup-spin": spinning},
)
