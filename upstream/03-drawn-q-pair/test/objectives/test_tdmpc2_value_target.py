from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hydra.utils import instantiate
from tensordict import TensorDict
from torchrl.objectives import TdMpc2Loss
from torchrl.objectives.tdmpc2 import symlog_two_hot
from torchrl.trainers.algorithms.configs import (
    TdMpc2PolicyPriorConfig,
    TdMpc2QEnsembleConfig,
    TdMpc2WorldModelConfig,
)

OBSERVATION_DIM, ACTION_DIM, LATENT_DIM, NUM_BINS, NUM_Q = 5, 2, 8, 11, 5
BATCH, HORIZON = 4, 3


def _make_loss(observation_key="observation", action_key="action"):
    torch.manual_seed(0)
    world_model = instantiate(
        TdMpc2WorldModelConfig(
            observation_dim=OBSERVATION_DIM,
            action_dim=ACTION_DIM,
            latent_dim=LATENT_DIM,
            encoder_dim=12,
            mlp_dim=16,
            simnorm_dim=4,
            num_bins=NUM_BINS,
            observation_key=observation_key,
        )
    )
    sizes = {"latent_dim": LATENT_DIM, "action_dim": ACTION_DIM, "mlp_dim": 16}
    policy_prior = instantiate(TdMpc2PolicyPriorConfig(**sizes))
    q_ensemble = instantiate(
        TdMpc2QEnsembleConfig(**sizes, num_q=NUM_Q, num_bins=NUM_BINS, dropout=0.0)
    )
    with torch.no_grad():
        # The last layers start at zero: give each Q-function an opinion of its own
        for parameter in q_ensemble.q_params.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    return TdMpc2Loss(
        world_model,
        policy_prior,
        q_ensemble,
        horizon=HORIZON,
        observation_key=observation_key,
        action_key=action_key,
    ).double()


def _make_sample(observation_key="observation", action_key="action"):
    torch.manual_seed(1)
    shape = (BATCH, HORIZON)

    def normal(*dims):
        return torch.randn(*shape, *dims, dtype=torch.double)

    sample = TensorDict(batch_size=shape)
    sample["next"] = TensorDict(batch_size=shape)
    sample[observation_key] = normal(OBSERVATION_DIM)
    sample[action_key] = normal(ACTION_DIM)
    sample["next"][observation_key] = normal(OBSERVATION_DIM)
    sample["next", "reward"] = 10 * normal(1)
    sample["next", "terminated"] = torch.zeros(*shape, 1, dtype=torch.bool)
    return sample


class TestTdMpc2ValueTarget:
    @pytest.mark.parametrize("nested", [False, True])
    def test_encoded_once(self, nested):
        keys = {}
        if nested:
            keys = {"observation_key": ("in", "observation"), "action_key": ("in", "a")}
        loss, sample = _make_loss(**keys), _make_sample(**keys)
        encoded = []

        def record(value, *args):
            encoded.append(value)
            return symlog_two_hot(value, *args)

        with patch("torchrl.objectives.tdmpc2.symlog_two_hot", record):
            torch.manual_seed(2)
            value_loss = loss(sample)["loss_value"]
        # A reward and a TD target at each step: each of them encoded once
        assert sum(value.numel() for value in encoded) == 2 * BATCH * HORIZON

        torch.manual_seed(2)
        with torch.no_grad():
            observation, action, following, *rest = loss._sequence_tensors(sample)
            targets = loss._td_targets(loss._encode(following), *rest)
        logits = loss._rollout(observation, action)[2]
        two_hot = symlog_two_hot(targets, -10.0, 10.0, NUM_BINS)
        # [batch, time, ensemble]
        terms = -(two_hot.unsqueeze(-2) * logits.log_softmax(-1)).sum(-1)
        weights = loss.rho ** torch.arange(HORIZON, dtype=torch.double)
        expected = loss.value_coef * (terms.mean((0, 2)) * weights).mean()
        torch.testing.assert_close(value_loss, expected)

        parameters = list(loss.q_ensemble.q_params.parameters())
        grads = torch.autograd.grad(value_loss, parameters)
        torch.testing.assert_close(grads, torch.autograd.grad(expected, parameters))


if __name__ == "__main__":
    pytest.main()
