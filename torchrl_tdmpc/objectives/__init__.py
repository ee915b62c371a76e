"""What is minimised: the TD-MPC2 loss, and auxiliary value losses at other discounts."""

from torchrl_tdmpc.objectives.multi_gamma import MultiGammaValueLoss
from torchrl_tdmpc.objectives.multi_gamma_config import MultiGammaConfig
from torchrl_tdmpc.objectives.tdmpc2 import TDMPC2Loss

__all__ = ["MultiGammaConfig", "MultiGammaValueLoss", "TDMPC2Loss"]
