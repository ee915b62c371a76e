"""TD-MPC2 (arXiv 2310.16828) as TorchRL parts."""

from torchrl_tdmpc.modules import (
    AuxiliaryValueHeads,
    NormedLinear,
    PixelEncoder,
    PolicyPrior,
    QEnsemble,
    RunningPercentileScale,
    SimNorm,
    SymlogTwoHot,
    TDMPC2WorldModel,
    make_networks,
)
from torchrl_tdmpc.objectives import MultiGammaConfig, MultiGammaValueLoss, TDMPC2Loss
from torchrl_tdmpc.planners import LatentEnv, TDMPC2Planner

__all__ = [
    "AuxiliaryValueHeads",
    "LatentEnv",
    "MultiGammaConfig",
    "MultiGammaValueLoss",
    "NormedLinear",
    "PixelEncoder",
    "PolicyPrior",
    "QEnsemble",
    "RunningPercentileScale",
    "SimNorm",
    "SymlogTwoHot",
    "TDMPC2Loss",
    "TDMPC2Planner",
    "TDMPC2WorldModel",
    "make_networks",
]
