from __future__ import annotations

import argparse

import pytest
import torch
from hydra.utils import instantiate
from tensordict import TensorDict
from torchrl.objectives import TdMpc2Loss
from torchrl.trainers.algorithms.configs import (
    TdMpc2PolicyPriorConfig,
    TdMpc2QEnsembleConfig,
    TdMpc2WorldModelConfig,
)

# The default model of TD-MPC2, with 5 million parameters
OBSERVATION_DIM, ACTION_DIM, LATENT_DIM, HORIZON = 24, 6, 512, 3
SIZES = {"latent_dim": LATENT_DIM, "action_dim": ACTION_DIM, "mlp_dim": 512}


def _device():
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("source", ["online", "detached", "target"])
@pytest.mark.parametrize("rows", [512, 1024])
def test_tdmpc2_q_reduce_speed(benchmark, source, rows):
    device = _device()
    q_ensemble = instantiate(TdMpc2QEnsembleConfig(**SIZES, device=device))
    td = TensorDict(
        latent=torch.rand(rows, LATENT_DIM),
        action=torch.rand(rows, ACTION_DIM),
        batch_size=[rows],
        device=device,
    )
    with torch.no_grad():
        benchmark(q_ensemble.reduce, td, reduction="avg", source=source)


@pytest.mark.parametrize("phase", ["model", "actor"])
def test_tdmpc2_loss_speed(benchmark, phase, batch=256):
    device = _device()
    world_model = instantiate(
        TdMpc2WorldModelConfig(
            **SIZES, observation_dim=OBSERVATION_DIM, encoder_depth=2, device=device
        )
    )
    policy_prior = instantiate(TdMpc2PolicyPriorConfig(**SIZES, device=device))
    q_ensemble = instantiate(TdMpc2QEnsembleConfig(**SIZES, device=device))
    loss = TdMpc2Loss(world_model, policy_prior, q_ensemble).to(device)
    shape = (batch, HORIZON)
    td = TensorDict(
        observation=torch.randn(*shape, OBSERVATION_DIM),
        action=torch.rand(*shape, ACTION_DIM) * 2 - 1,
        next=TensorDict(
            observation=torch.randn(*shape, OBSERVATION_DIM),
            reward=torch.randn(*shape, 1),
            terminated=torch.zeros(*shape, 1, dtype=torch.bool),
            batch_size=shape,
        ),
        batch_size=shape,
        device=device,
    )
    latents = torch.rand(batch, HORIZON + 1, LATENT_DIM, device=device)

    def loss_and_bw():
        if phase == "model":
            value, _ = loss.model_loss(td)
        else:
            value, _ = loss.actor_loss_from_latents(latents)
        value.backward()

    benchmark.pedantic(
        loss_and_bw,
        setup=loss.zero_grad,
        iterations=1,
        warmup_rounds=5,
        rounds=50,
    )


if __name__ == "__main__":
    args, unknown = argparse.ArgumentParser().parse_known_args()
    pytest.main([__file__, "--capture", "no", "--exitfirst"] + unknown)
