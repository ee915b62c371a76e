"""The planner and the update of this package."""

from __future__ import annotations

from benchmarks.speed.contender import (
    ACTION,
    AUXILIARY_DISCOUNTS,
    DISCOUNT,
    OBSERVATION,
    PLANNER,
    Contender,
    count,
)
from torchrl_tdmpc import (
    AuxiliaryValueHeads,
    MultiGammaValueLoss,
    TDMPC2Loss,
    TDMPC2Planner,
    make_networks,
)
from torchrl_tdmpc.modules import MODEL_SIZES, Execution
from torchrl_tdmpc.trainers import TDMPC2Update


def make(size: int, setting: str) -> Contender:
    """Build planner and update for a model size and a setting such as ``default-bfloat16``."""
    execution = Execution(*setting.split("-"))
    networks = make_networks((OBSERVATION,), ACTION, MODEL_SIZES[size])
    planner = TDMPC2Planner(*networks, discount=DISCOUNT, execution=execution, **PLANNER)
    update = TDMPC2Update(TDMPC2Loss(*networks, discount=DISCOUNT), execution=execution)
    return Contender(planner, update, count(*networks))


def make_update_with_heads(size: int, setting: str) -> tuple[TDMPC2Update, int]:
    """The update with five auxiliary value heads, and how many weights these have."""
    networks = make_networks((OBSERVATION,), ACTION, MODEL_SIZES[size])
    two_hot = networks[0].two_hot
    heads = AuxiliaryValueHeads(
        networks[0].latent_dim, len(AUXILIARY_DISCOUNTS), two_hot.num_bins, "joint"
    )
    loss = TDMPC2Loss(*networks, discount=DISCOUNT)
    heads_loss = MultiGammaValueLoss(heads, [DISCOUNT, *AUXILIARY_DISCOUNTS], two_hot=two_hot)
    update = TDMPC2Update(loss, [heads_loss], execution=Execution(*setting.split("-")))
    return update, count(heads)
