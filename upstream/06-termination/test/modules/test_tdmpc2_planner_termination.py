from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate
from tensordict import TensorDict
from torchrl.modules import TdMpc2Planner
from torchrl.modules.models.tdmpc2 import symlog_two_hot_decode
from torchrl.trainers.algorithms.configs import (
    TdMpc2PolicyPriorConfig,
    TdMpc2QEnsembleConfig,
    TdMpc2WorldModelConfig,
)

OBSERVATION_DIM, ACTION_DIM, LATENT_DIM, HORIZON, NUM_ENVS = 5, 2, 8, 3, 2
SIZES = {"latent_dim": LATENT_DIM, "action_dim": ACTION_DIM, "mlp_dim": 16}


def _spread(module):
    """Last layers start at zero: give every output a value of its own."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    return module.double()


def _make_planner(bias=None, discount=0.9, **kwargs):
    """A planner whose world model predicts terminations if a bias is given."""
    torch.manual_seed(0)
    config = TdMpc2WorldModelConfig(
        **SIZES,
        **kwargs,
        observation_dim=OBSERVATION_DIM,
        encoder_dim=12,
        simnorm_dim=4,
        num_bins=11,
        predict_termination=bias is not None,
    )
    world_model = instantiate(config)
    torch.manual_seed(1)
    for part in (world_model.encoder, world_model.dynamics, world_model.reward_head):
        _spread(part)
    policy_prior = _spread(instantiate(TdMpc2PolicyPriorConfig(**SIZES)))
    config = TdMpc2QEnsembleConfig(**SIZES, num_q=2, num_bins=11, dropout=0.0)
    q_ensemble = _spread(instantiate(config))
    if bias is not None:
        _spread(world_model.done_head)
        with torch.no_grad():
            world_model.done_head.module[-1].bias.fill_(bias)
    return TdMpc2Planner(
        world_model,
        policy_prior,
        q_ensemble,
        horizon=HORIZON,
        discount=discount,
        num_samples=16,
        num_elites=4,
        num_pi_trajs=3,
        iterations=3,
    )


def _plan(planner):
    torch.manual_seed(2)
    td = TensorDict(
        observation=torch.randn(NUM_ENVS, OBSERVATION_DIM, dtype=torch.double),
        batch_size=[NUM_ENVS],
    )
    planner(td)
    return td.select(*planner.out_keys)


class TestTdMpc2PlannerTermination:
    def test_never(self):
        without, never = _plan(_make_planner()), _plan(_make_planner(bias=-1e6))
        for key in without.keys(True, True):
            assert torch.equal(never[key], without[key])

    @pytest.mark.parametrize("nested", [False, True])
    def test_always(self, nested):
        keys = {"termination_logits_key": ("heads", "logits")} if nested else {}
        always = _plan(_make_planner(bias=1e6, **keys))
        # Only the first reward counts, as with a discount of zero
        first_reward = _plan(_make_planner(discount=0.0))
        without = _plan(_make_planner())
        for key in without.keys(True, True):
            assert torch.equal(always[key], first_reward[key])
            assert not torch.equal(always[key], without[key])

    def test_value(self):
        planner = _make_planner(bias=0.0)
        planner.eval()
        world_model, q_ensemble = planner.world_model, planner.q_ensemble
        torch.manual_seed(3)
        latent = torch.rand(64, LATENT_DIM, dtype=torch.double)
        latent = latent.unflatten(-1, (-1, 4)).softmax(-1).flatten(-2)
        actions = torch.rand(1, HORIZON, 64, ACTION_DIM, dtype=torch.double) * 2 - 1
        noise = torch.randn(1, 64, ACTION_DIM, dtype=torch.double)
        pair = torch.tensor([[1, 0]])
        with torch.no_grad():
            # Center the logits, so that about half of the steps end an episode
            td = TensorDict({("next", "latent"): latent}, batch_size=[64])
            logits = world_model.done_head(td)["next", "termination_logits"]
            world_model.done_head.module[-1].bias.sub_(logits.median())
            value = planner._estimate_value(latent, actions, iter((noise, pair)))

            td = TensorDict(latent=latent, batch_size=[64])
            alive = torch.ones(64, 1, dtype=torch.bool)
            ended_at = torch.full((64, 1), HORIZON)
            expected = torch.zeros(64, 1, dtype=torch.double)
            for step in range(HORIZON):
                td = world_model.step(td.set("action", actions[0, step]))
                logits = td["next", "reward_logits"]
                reward = symlog_two_hot_decode(logits, -10.0, 10.0, 11)
                expected[alive] += 0.9**step * reward[alive]
                ends = td["next", "termination_logits"].sigmoid() > 0.5
                ended_at[alive & ends] = step
                alive &= ~ends
                td = td["next"].select("latent")
            planner.policy_prior(td, noise=noise[0])
            q_ensemble.reduce(td, reduction="avg", pair=pair[0])
            expected[alive] += 0.9**HORIZON * td["q_value"][alive]
        torch.testing.assert_close(value, expected)
        # Some trajectories end, at different steps, and some do not
        assert ended_at.unique().numel() > 2


if __name__ == "__main__":
    pytest.main()
