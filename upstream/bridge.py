"""Weights between TorchRL's ``TdMpc2*`` modules and ours.

Both follow the published networks, so an agent that one of them trained acts in the other. The
names differ, and so does the order of the latent's features: a simplex of TorchRL's latent is made
of neighbours, one of ours is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchrl_tdmpc import TDMPC2Loss
from torchrl_tdmpc.checkpoints import official_weights
from torchrl_tdmpc.checkpoints.official_entries import reorder_latent
from torchrl_tdmpc.modules import official_order

if TYPE_CHECKING:  # TorchRL has it from 0.15 on
    from torchrl.objectives import TdMpc2Loss


def from_torchrl(theirs: TdMpc2Loss, ours: TDMPC2Loss) -> None:
    """Copy the weights, the target Q-functions and the value scale of TorchRL's loss into ours.

    Args:
        theirs: of modules that TorchRL's ``TdMpc2WorldModelConfig``, ``TdMpc2PolicyPriorConfig``
            and ``TdMpc2QEnsembleConfig`` made.
        ours: of :func:`~torchrl_tdmpc.make_networks` of the same sizes.

    Raises:
        ValueError: the networks differ; the sentence says where.
    """
    _copy(theirs, ours, back=False)


def to_torchrl(ours: TDMPC2Loss, theirs: TdMpc2Loss) -> None:
    """Copy the weights, the target Q-functions and the value scale of our loss into TorchRL's.

    Args:
        ours: of :func:`~torchrl_tdmpc.make_networks`, for one task, without a termination head.
        theirs: of TorchRL's modules of the same sizes.

    Raises:
        ValueError: the networks differ; the sentence says where.
    """
    _copy(theirs, ours, back=True)


def _copy(theirs: TdMpc2Loss, ours: TDMPC2Loss, *, back: bool) -> None:
    """Copy into ours, or ``back`` into theirs, once both were seen to fit."""
    of_theirs, of_ours = _torchrl_weights(theirs), official_weights(ours)
    order = official_order(
        ours.world_model.latent_dim, _simnorm_dim(ours.world_model.dynamics)
    )
    for name in sorted(of_theirs.keys() | of_ours.keys()):
        if name not in of_theirs or name not in of_ours:
            owner = "TorchRL's loss" if name in of_theirs else "our loss"
            raise ValueError(f"{name} is a weight of {owner} alone.")
        if of_theirs[name].shape != of_ours[name].shape:
            shapes = f"{list(of_theirs[name].shape)} and {list(of_ours[name].shape)}"
            raise ValueError(
                f"{name} has the shapes {shapes} in TorchRL's loss and in ours."
            )
    groups = (
        _simnorm_dim(theirs.world_model.dynamics),
        _simnorm_dim(ours.world_model.dynamics),
    )
    if groups[0] != groups[1]:
        raise ValueError(
            f"a simplex has {groups[0]} features in TorchRL's loss, {groups[1]} here."
        )
    source, target = (of_ours, of_theirs) if back else (of_theirs, of_ours)
    source = reorder_latent(source, order.argsort() if back else order)
    with torch.no_grad():
        for name, weight in source.items():
            target[name].copy_(weight)
        scales = theirs.scale.value, ours.value_scale.value
        scales[not back].copy_(scales[back].view_as(scales[not back]))


def _torchrl_weights(theirs: TdMpc2Loss) -> dict[str, Tensor]:
    """The weights of TorchRL's loss by the names of the official implementation; not copies."""
    parts = {
        "_encoder.state": theirs.world_model.encoder.module,
        "_dynamics": theirs.world_model.dynamics.module,
        "_reward": theirs.world_model.reward_head.module,
        "_pi": theirs.policy_prior.module.network,
    }
    weights = {}
    for part, network in parts.items():
        layer = -1
        for module in network:
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                layer += isinstance(module, nn.Linear)
                norm = "ln." * isinstance(module, nn.LayerNorm)
                for name, weight in module.named_parameters():
                    weights[f"{part}.{layer}.{norm}{name}"] = weight
    stacked = {
        "_Qs.params": theirs.q_ensemble.q_params,
        "_target_Qs_params": theirs.q_ensemble.target_q_params,
    }
    for part, params in stacked.items():
        layer = -1
        for number in sorted(params.keys(), key=int):
            is_linear = (
                params[number, "weight"].dim() == 3
            )  # [Q, out, in]; a norm has [Q, features]
            layer += is_linear
            for name in ("weight", "bias"):
                leaf = params.data[number, name]
                weights[f"{part}.{layer}.{'' if is_linear else 'ln.'}{name}"] = leaf
    return weights


def _simnorm_dim(dynamics: nn.Module) -> int:
    """Features of a simplex of the latent: the last layer that has a ``dim``, in both libraries."""
    return [module.dim for module in dynamics.modules() if hasattr(module, "dim")][-1]
