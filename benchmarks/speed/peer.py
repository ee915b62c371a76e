"""TorchRL's own TD-MPC2, built from its configuration classes as its trainer builds it."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from hydra.utils import instantiate
from torchrl.modules import TdMpc2Planner
from torchrl.objectives import TdMpc2Loss
from torchrl.trainers.algorithms.configs import (
    TdMpc2PolicyPriorConfig,
    TdMpc2QEnsembleConfig,
    TdMpc2WorldModelConfig,
)
from torchrl.trainers.algorithms.tdmpc2 import TdMpc2OptimizationStepper

from benchmarks.speed.contender import (
    ACTION,
    DISCOUNT,
    HORIZON,
    OBSERVATION,
    PLANNER,
    Contender,
    count,
)
from torchrl_tdmpc.modules import MODEL_SIZES


def make(size: int, setting: str) -> Contender:
    """Build planner and update for a model size; ``setting`` must be ``off-float32``.

    Raises:
        ValueError: another setting: this implementation offers none.
    """
    if setting != "off-float32":
        raise ValueError(f"setting is {setting!r}; the peer has off-float32 alone.")
    widths = MODEL_SIZES[size]
    shared = {"latent_dim": widths.latent_dim, "action_dim": ACTION, "mlp_dim": widths.mlp_dim}
    world_model = TdMpc2WorldModelConfig(
        observation_dim=OBSERVATION,
        encoder_dim=widths.enc_dim,
        encoder_depth=widths.num_enc_layers - 1,
        **shared,
    )
    q_ensemble = TdMpc2QEnsembleConfig(num_q=widths.num_q, **shared)
    parts = map(instantiate, (world_model, TdMpc2PolicyPriorConfig(**shared), q_ensemble))
    loss = TdMpc2Loss(*parts, horizon=HORIZON, discount=DISCOUNT)
    planner = TdMpc2Planner(
        loss.world_model,
        loss.policy_prior,
        loss.q_ensemble,
        discount=DISCOUNT,
        num_pi_trajs=24,
        **PLANNER,
    )
    model = (loss.world_model, loss.policy_prior, loss.q_ensemble.q_params)
    return Contender(planner, _update(loss), count(*model))


def _update(loss: TdMpc2Loss):
    """A step of the trainer, with the optimisers and the clipping that it has by default."""
    encoder = list(loss.world_model.encoder.parameters())
    rest = [
        *loss.world_model.dynamics.parameters(),
        *loss.world_model.reward_head.parameters(),
        *loss.q_ensemble.q_params.parameters(),
    ]
    groups = [{"params": encoder, "lr": 3e-4 * 0.3}, {"params": rest, "lr": 3e-4}]
    stepper = TdMpc2OptimizationStepper(
        loss,
        torch.optim.Adam(groups, lr=3e-4),
        torch.optim.Adam(loss.policy_prior.parameters(), lr=3e-4, eps=1e-5),
    )
    trainer = SimpleNamespace(loss_module=loss, clip_grad_norm=True, clip_norm=20.0)
    return lambda batch: stepper.step(trainer, batch)
