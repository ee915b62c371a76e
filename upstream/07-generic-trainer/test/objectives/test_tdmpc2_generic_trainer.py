from __future__ import annotations

import warnings

import pytest
import torch
from hydra.utils import instantiate
from tensordict import TensorDict
from torchrl.objectives import HardUpdate, SoftUpdate, TdMpc2Loss
from torchrl.trainers.algorithms.configs import (
    TdMpc2LossConfig,
    TdMpc2PolicyPriorConfig,
    TdMpc2QEnsembleConfig,
    TdMpc2WorldModelConfig,
)

OBSERVATION, ACTION, HORIZON = 5, 2, 3
SIZES = {"latent_dim": 8, "action_dim": ACTION, "mlp_dim": 16}


def _make_parts():
    torch.manual_seed(0)
    world_model = TdMpc2WorldModelConfig(
        observation_dim=OBSERVATION, encoder_dim=12, simnorm_dim=4, num_bins=5, **SIZES
    )
    q_ensemble = TdMpc2QEnsembleConfig(num_q=3, num_bins=5, dropout=0.0, **SIZES)
    prior = TdMpc2PolicyPriorConfig(**SIZES)
    parts = [instantiate(part) for part in (world_model, prior, q_ensemble)]
    with torch.no_grad():  # the output layers begin at zero, which would hide gradients
        for parameter in parts[2].q_params.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return parts


def _make_loss(**kwargs):
    return TdMpc2Loss(*_make_parts(), horizon=HORIZON, **kwargs)


def _make_sample(nested=False):
    torch.manual_seed(1)
    shape = (4, HORIZON)
    sample = TensorDict(
        {
            "observation": torch.randn(*shape, OBSERVATION),
            "action": torch.rand(*shape, ACTION) * 2 - 1,
            "next": {
                "observation": torch.randn(*shape, OBSERVATION),
                "reward": torch.randn(*shape, 1),
                "terminated": torch.zeros(*shape, 1, dtype=torch.bool),
            },
        },
        batch_size=shape,
    )
    if nested:
        sample.rename_key_("action", ("agent", "action"))
        sample.rename_key_(("next", "reward"), ("next", "agent", "reward"))
    return sample


def _gradients(module):
    return {
        name: parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }


class TestTdMpc2ForwardActorLoss:
    @pytest.mark.parametrize("nested", [False, True])
    def test_value_and_gradient(self, nested):
        keys = {"action_key": ("agent", "action"), "reward_key": ("agent", "reward")}
        sample = _make_sample(nested)
        loss = _make_loss(return_actor_loss=True, **(keys if nested else {}))
        reference = _make_loss(return_actor_loss=False, **(keys if nested else {}))

        torch.manual_seed(2)
        output = loss(sample)
        assert list(output.keys()) == loss.out_keys
        sum(output.values()).backward()

        torch.manual_seed(2)
        model_loss, metadata = reference.model_loss(sample)
        actor_loss, _ = reference.actor_loss_from_latents(metadata["actor_latents"])
        torch.testing.assert_close(output["loss_actor"], actor_loss)
        torch.testing.assert_close(sum(output.values()), model_loss + actor_loss)

        # The policy loss alone reaches the policy prior, and nothing else
        actor_loss.backward()
        expected = _gradients(reference)
        assert {name.split(".")[0] for name in expected} == {"policy_prior"}
        model_loss.backward()
        torch.testing.assert_close(_gradients(loss), _gradients(reference))

    def test_warning(self):
        loss = _make_loss()
        with pytest.warns(FutureWarning, match="return_actor_loss"):
            output = loss(_make_sample())
        assert "loss_actor" not in set(output.keys())
        for chosen in (False, True):
            loss = _make_loss(return_actor_loss=chosen)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert ("loss_actor" in set(loss(_make_sample()).keys())) is chosen

    def test_config(self):
        world_model, policy_prior, q_ensemble = _make_parts()
        config = TdMpc2LossConfig(return_actor_loss=True)
        loss = instantiate(
            config,
            world_model=world_model,
            policy_prior=policy_prior,
            q_ensemble=q_ensemble,
        )
        assert loss.out_keys[-1] == "loss_actor"


class TestTdMpc2TargetUpdate:
    def test_soft_update(self):
        loss, reference = _make_loss(), _make_loss()
        updater = SoftUpdate(loss, tau=0.25)
        for module in (loss, reference):
            torch.manual_seed(3)
            with torch.no_grad():
                for parameter in module.q_ensemble.q_params.parameters():
                    parameter.add_(torch.randn_like(parameter))
        # SoftUpdate begins with targets that equal their sources
        reference.q_ensemble.target_q_params.data.update_(
            _make_loss().q_ensemble.q_params.data
        )

        updater.step()
        reference.q_ensemble.soft_update_target(0.25)

        torch.testing.assert_close(
            loss.q_ensemble.target_q_params.data.to_dict(),
            reference.q_ensemble.target_q_params.data.to_dict(),
        )

    def test_hard_update(self):
        loss = _make_loss()
        updater = HardUpdate(loss, value_network_update_interval=1)
        with torch.no_grad():
            for parameter in loss.q_ensemble.q_params.parameters():
                parameter.add_(1.0)
        for _ in range(2):
            updater.step()
        torch.testing.assert_close(
            loss.q_ensemble.target_q_params.data.to_dict(),
            loss.q_ensemble.q_params.data.to_dict(),
        )

    def test_generic_training(self):
        loss, sample = _make_loss(return_actor_loss=True), _make_sample()
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
        updater = SoftUpdate(loss, tau=0.01)
        start = {key: value.clone() for key, value in loss.state_dict().items()}
        losses = []
        for seed in range(30):
            torch.manual_seed(seed % 3)
            output = loss(sample)
            total = sum(output.values())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            updater.step()
            losses.append((total - output["loss_actor"]).item())
        assert losses[-1] < 0.9 * losses[0]
        moved = {
            key.split(".")[0] + ("_target" if "target" in key else "")
            for key, value in loss.state_dict().items()
            if not torch.equal(value, start[key])
        }
        expected = {"world_model", "policy_prior", "q_ensemble", "q_ensemble_target"}
        assert expected <= moved


if __name__ == "__main__":
    pytest.main()
