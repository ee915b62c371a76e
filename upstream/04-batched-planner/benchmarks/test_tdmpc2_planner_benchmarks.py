from __future__ import annotations

import argparse

import pytest
import torch
from hydra.utils import instantiate
from tensordict import TensorDict
from torchrl.modules import TdMpc2Planner
from torchrl.trainers.algorithms.configs import (
    TdMpc2PolicyPriorConfig,
    TdMpc2QEnsembleConfig,
    TdMpc2WorldModelConfig,
)

# The model of TD-MPC2 with 1 million parameters
OBSERVATION_DIM, ACTION_DIM, LATENT_DIM = 24, 6, 128
SIZES = {"latent_dim": LATENT_DIM, "action_dim": ACTION_DIM, "mlp_dim": 384}


@pytest.mark.parametrize("num_envs", [1, 4, 16])
def test_tdmpc2_planner_speed(benchmark, num_envs):
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    world_model = TdMpc2WorldModelConfig(
        **SIZES, observation_dim=OBSERVATION_DIM, encoder_depth=2, device=device
    )
    policy_prior = TdMpc2PolicyPriorConfig(**SIZES, device=device)
    q_ensemble = TdMpc2QEnsembleConfig(**SIZES, num_q=2, device=device)
    planner = TdMpc2Planner(
        instantiate(world_model), instantiate(policy_prior), instantiate(q_ensemble)
    )
    td = TensorDict(
        observation=torch.randn(num_envs, OBSERVATION_DIM),
        batch_size=[num_envs],
        device=device,
    )
    benchmark.pedantic(planner, args=(td,), iterations=1, warmup_rounds=2, rounds=10)


if __name__ == "__main__":
    args, unknown = argparse.ArgumentParser().parse_known_args()
    pytest.main([__file__, "--capture", "no", "--exitfirst"] + unknown)
