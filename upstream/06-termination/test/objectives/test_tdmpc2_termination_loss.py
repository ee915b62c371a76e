from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from hydra.utils import instantiate
from tensordict import TensorDict
from torchrl.trainers.algorithms.configs import (
    TdMpc2LossConfig,
    TdMpc2PolicyPriorConfig,
    TdMpc2QEnsembleConfig,
    TdMpc2WorldModelConfig,
)
from torchrl.trainers.algorithms.configs.trainers import _make_tdmpc2_trainer
from torchrl.trainers.algorithms.tdmpc2 import TdMpc2OptimizationStepper

OBSERVATION_DIM, ACTION_DIM, LATENT_DIM, BATCH, HORIZON = 5, 2, 8, 4, 3
SIZES = {"latent_dim": LATENT_DIM, "action_dim": ACTION_DIM, "mlp_dim": 16}
COEF = 0.7


def _make_loss(predict_termination=True, nested=False, **kwargs):
    model_keys, keys = {}, {}
    if nested:
        model_keys = {
            "observation_key": ("agent", "observation"),
            "termination_logits_key": ("agent", "logits"),
        }
        keys = {
            "observation_key": ("agent", "observation"),
            "terminated_key": ("agent", "terminated"),
        }
    torch.manual_seed(0)
    policy_prior = instantiate(TdMpc2PolicyPriorConfig(**SIZES))
    q_ensemble = instantiate(TdMpc2QEnsembleConfig(**SIZES, num_bins=11, dropout=0.0))
    world_model = TdMpc2WorldModelConfig(
        **SIZES,
        **model_keys,
        observation_dim=OBSERVATION_DIM,
        encoder_dim=12,
        simnorm_dim=4,
        num_bins=11,
        predict_termination=predict_termination,
    )
    config = TdMpc2LossConfig(
        world_model=instantiate(world_model),
        policy_prior=policy_prior,
        q_ensemble=q_ensemble,
        termination_coef=COEF,
        **keys,
        **kwargs,
    )
    return instantiate(config).double()


def _make_sample(terminated_key="terminated", observation_key="observation"):
    torch.manual_seed(1)
    shape = (BATCH, HORIZON)
    reward = torch.randn(*shape, 1, dtype=torch.double)
    sample = TensorDict(
        action=torch.rand(*shape, ACTION_DIM, dtype=torch.double) * 2 - 1,
        next=TensorDict(reward=reward, batch_size=shape),
        batch_size=shape,
    )
    for td in (sample, sample["next"]):
        observation = torch.randn(*shape, OBSERVATION_DIM, dtype=torch.double)
        td.set(observation_key, observation)
    terminated = torch.zeros(*shape, 1, dtype=torch.bool)
    terminated[1, 2] = terminated[3, 0] = True
    sample["next"].set(terminated_key, terminated)
    return sample


def _cross_entropy(loss, sample, terminated_key="terminated"):
    """The cross-entropy ``[B, H]`` of the head along the imagined latents."""
    observation = sample.get(loss.tensor_keys.observation)[:, 0]
    latent = loss.world_model.encoder.module(observation)
    terms = []
    for step in range(HORIZON):
        action = sample["action"][:, step]
        latent = loss.world_model.dynamics.module(torch.cat((latent, action), -1))
        probability = loss.world_model.done_head.module(latent).sigmoid()
        ended = sample["next"].get(terminated_key)[:, step]
        terms.append(-torch.where(ended, probability, 1 - probability).log())
    return torch.cat(terms, -1)


class TestTdMpc2TerminationLoss:
    @pytest.mark.parametrize("nested", [False, True])
    def test_value(self, nested):
        loss = _make_loss(nested=nested)
        terminated_key = ("agent", "terminated") if nested else "terminated"
        observation_key = ("agent", "observation") if nested else "observation"
        sample = _make_sample(terminated_key, observation_key)
        assert loss.out_keys[-1] == "loss_termination"
        output = loss(sample)
        assert set(output.keys()) == set(loss.out_keys)

        # Unlike the other terms, this one is not weighted by the powers of rho
        expected = COEF * _cross_entropy(loss, sample, terminated_key).mean()
        torch.testing.assert_close(output["loss_termination"], expected)
        parameters = [
            *loss.world_model.encoder.parameters(),
            *loss.world_model.dynamics.parameters(),
            *loss.world_model.done_head.parameters(),
        ]
        grads = torch.autograd.grad(output["loss_termination"], parameters)
        torch.testing.assert_close(grads, torch.autograd.grad(expected, parameters))
        assert all(grad.abs().sum() > 0 for grad in grads)

        torch.manual_seed(2)
        output = loss(sample)
        torch.manual_seed(2)
        total, metadata = loss.model_loss(sample)
        torch.testing.assert_close(total, sum(output.values()))
        termination = COEF * metadata["loss_termination"]
        torch.testing.assert_close(termination, output["loss_termination"])

    def test_mask(self):
        loss, sample = _make_loss(), _make_sample()
        mask = torch.ones(BATCH, HORIZON, dtype=torch.bool)
        mask[1, 2] = mask[0, 1] = False
        sample["collector", "mask"] = mask
        expected = COEF * _cross_entropy(loss, sample)[mask].mean()
        torch.testing.assert_close(loss(sample)["loss_termination"], expected)

    def test_other_losses_unchanged(self):
        sample = _make_sample()
        outputs = []
        for predict_termination in (False, True):
            loss = _make_loss(predict_termination)
            torch.manual_seed(3)
            outputs.append(loss(sample))
        without, with_head = outputs
        assert set(with_head.keys()) - set(without.keys()) == {"loss_termination"}
        for key, value in without.items():
            assert torch.equal(value, with_head[key])

    def test_negative_coef(self):
        loss = _make_loss()
        with pytest.raises(ValueError, match="termination_coef"):
            type(loss)(
                loss.world_model,
                loss.policy_prior,
                loss.q_ensemble,
                termination_coef=-1.0,
            )

    def test_update(self):
        loss, sample = _make_loss(), _make_sample()
        head = loss.world_model.done_head
        optimizers = [
            torch.optim.Adam([*loss.world_model.parameters()], lr=1e-2),
            torch.optim.Adam([*loss.policy_prior.parameters()], lr=1e-2),
        ]
        stepper = TdMpc2OptimizationStepper(loss, *optimizers)
        trainer = SimpleNamespace(loss_module=loss, clip_grad_norm=True, clip_norm=20.0)
        before = [parameter.clone() for parameter in head.parameters()]
        torch.manual_seed(4)
        expected = loss(sample)["loss_termination"].detach()
        torch.manual_seed(4)
        metrics = stepper.step(trainer, sample)
        torch.testing.assert_close(metrics["loss_termination"], expected)
        for old, new in zip(before, head.parameters()):
            assert not torch.equal(old, new)

    @pytest.mark.parametrize("optimizer", [None, partial(torch.optim.SGD, lr=1e-2)])
    def test_trainer_optimizes_head(self, optimizer):
        loss = _make_loss()
        trainer = "torchrl.trainers.algorithms.configs.trainers.TdMpc2Trainer"
        with patch(trainer) as trainer:
            _make_tdmpc2_trainer(
                collector=None,
                total_frames=1,
                loss_module=loss,
                world_model=loss.world_model,
                policy_prior=loss.policy_prior,
                q_ensemble=loss.q_ensemble,
                optimizer_model=optimizer,
            )
        stepper = trainer.call_args.kwargs["optimization_stepper"]
        groups = stepper.optimizer_model.param_groups
        optimized = [id(parameter) for group in groups for parameter in group["params"]]
        for parameter in loss.world_model.parameters():
            assert optimized.count(id(parameter)) == 1


if __name__ == "__main__":
    pytest.main()
