"""Tiny auxiliary value heads whose weights are far from zero, and rollouts for them."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from tiny import BATCH, HORIZON, LATENT, scramble, tiny_batch
from torchrl.objectives import SoftUpdate

from torchrl_tdmpc import AuxiliaryValueHeads, MultiGammaValueLoss

GAMMAS = (0.9, 0.5, 0.97)  # tiny_loss has discount 0.9
NUM_BINS = 101


def tiny_heads(seed=0, *, gammas=GAMMAS, layout="joint") -> AuxiliaryValueHeads:
    heads = AuxiliaryValueHeads(LATENT, len(gammas) - 1, NUM_BINS, layout)
    torch.manual_seed(seed)
    scramble(heads.parameters())
    return heads


def tiny_heads_loss(seed=0, *, gammas=GAMMAS, layout="joint", **kwargs) -> MultiGammaValueLoss:
    """A loss whose target heads, if it has any, differ from its heads."""
    heads = tiny_heads(seed, gammas=gammas, layout=layout)
    loss = MultiGammaValueLoss(heads, gammas, **kwargs)
    if loss.bootstrap == "self":
        SoftUpdate(loss, tau=0.01)
        scramble(loss.target_heads_params.values(True, True))
    return loss


def tiny_rollout(seed=3) -> TensorDict:
    """A latent rollout with terminated steps, rewards of zero and beyond the support."""
    following = tiny_batch()["next"].select("reward", "terminated")
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, HORIZON)
    following["state_value"] = 5 * torch.randn(*shape, 1, generator=generator)
    following["target_latent"] = torch.randn(*shape, LATENT, generator=generator)
    latent = torch.randn(*shape, LATENT, generator=generator)
    return TensorDict(latent=latent, next=following, batch_size=shape)


def doubled(tensordict: TensorDict) -> TensorDict:
    return tensordict.apply(lambda t: t.double() if t.is_floating_point() else t)
