"""The weights of an agent by their official names, and the two orders of the latent."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from torchrl_tdmpc.modules import PixelEncoder
from torchrl_tdmpc.objectives import TDMPC2Loss

__all__ = ["STATE_LAYER", "official_weights", "reorder_latent"]

STATE_LAYER = re.compile(r"_encoder\.state\.(\d+)\.")


def official_weights(loss: TDMPC2Loss) -> dict[str, Tensor]:
    """The loss's own weights by the names they have in an official checkpoint.

    Args:
        loss: holds the networks and target Q-functions.

    Returns:
        Parameters of all networks (``_encoder.state.0.weight``, ``_pi.2.bias``, ...), Q-functions
        (``_Qs.params.0.ln.weight``, ... ``[Q, ...]``) and their targets (``_target_Qs_params.*``);
        of several tasks also ``_task_emb.weight`` and ``_action_masks``.
        They are not copies: what is written into them is written into the loss. The features of
        the latent are in our order; :func:`reorder_latent` translates.
    """
    world_model = loss.world_model
    is_pixels = isinstance(world_model.encoder, PixelEncoder)
    parts = {
        "_encoder.rgb" if is_pixels else "_encoder.state": world_model.encoder,
        "_dynamics": world_model.dynamics,
        "_reward": world_model.reward_head,
        "_termination": world_model.termination_head,
        "_pi": loss.policy_prior.network,
    }
    weights = {}
    if world_model.task_context is not None:
        weights["_task_emb.weight"] = world_model.task_context.embedding
        weights["_action_masks"] = world_model.task_context.action_masks
    for part, module in parts.items():
        for name, weight in () if module is None else module.named_parameters():
            if part == "_encoder.rgb":  # counted from two steps of preprocessing on
                layer, leaf = name.split(".")
                name = f"{int(layer) + 2}.{leaf}"
            weights[f"{part}.{name}"] = weight
    stacked = {
        "_Qs.params": loss.q_ensemble_params,
        "_target_Qs_params": loss.target_q_ensemble_params,
    }
    for part, params in stacked.items():
        layers = params["params"].items(True, True)
        weights |= {f"{part}.{'.'.join(key)}": weight for key, weight in layers}
    return weights


def reorder_latent(weights: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    """Weights, or gradients, for another order of the latent's features.

    Args:
        weights: by their published names.
        order: int64 ``[L]``. From the published order to ours it is
            :func:`~torchrl_tdmpc.modules.official_order`; back again, that one's ``argsort()``.

    Returns:
        New tensors where the latent goes in or out, the others as they are.
    """
    state_layers = [int(m[1]) for name in weights if (m := STATE_LAYER.match(name))]
    gives_latent = ("_dynamics.2.", f"_encoder.state.{max(state_layers, default=None)}.")
    return {
        name: _reorder(
            weight,
            order,
            rows=name.startswith(gives_latent),
            columns=name.endswith(".0.weight") and not name.startswith("_encoder."),
        )
        for name, weight in weights.items()
    }


def _reorder(weight: Tensor, order: Tensor, *, rows: bool, columns: bool) -> Tensor:
    """A weight whose outputs, or whose first inputs, are the latent's features."""
    if rows:
        weight = weight[order]
    if columns:
        latent, action = weight.tensor_split([len(order)], -1)
        weight = torch.cat([latent[..., order], action], -1)
    return weight
