"""What is minimised: the TD-MPC2 loss."""

from torchrl_tdmpc.objectives.tdmpc2 import TDMPC2Loss

__all__ = ["TDMPC2Loss"]
