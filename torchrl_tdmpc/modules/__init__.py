"""What computes: layers, two-hot coding, world model, policy prior, Q ensemble, value scale."""

from torchrl_tdmpc.modules.context import Context, TaskContext
from torchrl_tdmpc.modules.execution import Execution, missing_for_compilation
from torchrl_tdmpc.modules.fit import refuse_misfit
from torchrl_tdmpc.modules.layers import (
    MLP,
    Linear,
    NormedLinear,
    SimNorm,
    mish,
    mlp,
    norm_mish,
    official_order,
)
from torchrl_tdmpc.modules.networks import MODEL_SIZES, ModelSize, make_networks, model_size
from torchrl_tdmpc.modules.pixel_encoder import PixelEncoder
from torchrl_tdmpc.modules.policy_prior import PolicyPrior, PolicySample
from torchrl_tdmpc.modules.q_ensemble import QEnsemble
from torchrl_tdmpc.modules.two_hot import SymlogTwoHot, symexp, symlog
from torchrl_tdmpc.modules.value_heads import AuxiliaryValueHeads
from torchrl_tdmpc.modules.value_scale import RunningPercentileScale
from torchrl_tdmpc.modules.world_model import TDMPC2WorldModel

__all__ = [
    "AuxiliaryValueHeads",
    "Context",
    "Execution",
    "Linear",
    "MLP",
    "MODEL_SIZES",
    "ModelSize",
    "NormedLinear",
    "PixelEncoder",
    "PolicyPrior",
    "PolicySample",
    "QEnsemble",
    "RunningPercentileScale",
    "SimNorm",
    "SymlogTwoHot",
    "TDMPC2WorldModel",
    "TaskContext",
    "make_networks",
    "missing_for_compilation",
    "mish",
    "mlp",
    "model_size",
    "norm_mish",
    "official_order",
    "refuse_misfit",
    "symexp",
    "symlog",
]
