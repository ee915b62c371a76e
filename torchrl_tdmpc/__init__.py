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
    TaskContext,
    TDMPC2WorldModel,
    make_networks,
)
from torchrl_tdmpc.objectives import MultiGammaConfig, MultiGammaValueLoss, TDMPC2Loss
from torchrl_tdmpc.planners import LatentEnv, TDMPC2Planner
from torchrl_tdmpc.trainers import (
    Agent,
    OfflineTrainer,
    OnlineTrainer,
    TDMPC2Update,
    evaluate,
    load_agent,
)

__version__ = "0.1.0"  # CITATION.cff and CHANGELOG.md repeat it, and a test compares them

__all__ = [
    "Agent",
    "AuxiliaryValueHeads",
    "LatentEnv",
    "MultiGammaConfig",
    "MultiGammaValueLoss",
    "NormedLinear",
    "OfflineTrainer",
    "OnlineTrainer",
    "PixelEncoder",
    "PolicyPrior",
    "QEnsemble",
    "RunningPercentileScale",
    "SimNorm",
    "SymlogTwoHot",
    "TDMPC2Loss",
    "TDMPC2Planner",
    "TDMPC2Update",
    "TDMPC2WorldModel",
    "TaskContext",
    "evaluate",
    "load_agent",
    "make_networks",
]
