from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import TdMpc2Planner
from torchrl.trainers.algorithms.configs import (
    TdMpc2PolicyPriorConfig,
    TdMpc2QEnsembleConfig,
    TdMpc2WorldModelConfig,
)

OBSERVATION_DIM, ACTION_DIM, LATENT_DIM, HORIZON, NUM_ENVS = 5, 2, 8, 3, 3
SIZES = {"latent_dim": LATENT_DIM, "action_dim": ACTION_DIM, "mlp_dim": 16}


def _spread(module):
    """Last layers start at zero: give every output a value of its own."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    return module.double()


def _make_ensemble(**kwargs):
    torch.manual_seed(0)
    config = TdMpc2QEnsembleConfig(**SIZES, num_q=5, num_bins=11, **kwargs)
    return _spread(instantiate(config))


def _make_planner(policy_prior=None, nested=False, **kwargs):
    """A planner, and a list with an entry for each step of the world model."""
    keys, model_keys, prior_keys, q_keys = {}, {}, {}, {}
    if nested:
        observation, action, latent = (
            ("agent", name) for name in ("observation", "action", "latent")
        )
        model_keys = {
            "observation_key": observation,
            "action_key": action,
            "latent_key": latent,
        }
        prior_keys = {
            "in_keys": [latent],
            "out_keys": [action, "mean", "log_std", "entropy", "scaled_entropy"],
        }
        q_keys = {"in_keys": [latent, action]}
        keys = {
            "is_init_key": ("agent", "is_init"),
            "prev_mean_key": ("agent", "_tdmpc2_prev_mean"),
        }
    q_ensemble = _make_ensemble(**q_keys)
    world_model = TdMpc2WorldModelConfig(
        **SIZES,
        **model_keys,
        observation_dim=OBSERVATION_DIM,
        encoder_dim=12,
        simnorm_dim=4,
        num_bins=11,
    )
    world_model = _spread(instantiate(world_model))
    if policy_prior is None:
        policy_prior = TdMpc2PolicyPriorConfig(**SIZES, **prior_keys)
        policy_prior = _spread(instantiate(policy_prior))
    planner = TdMpc2Planner(
        world_model,
        policy_prior,
        q_ensemble,
        horizon=HORIZON,
        num_samples=16,
        num_elites=4,
        iterations=2,
        action_dim=ACTION_DIM,
        **keys,
        **{"num_pi_trajs": 3, **kwargs},
    )
    steps = []
    world_model.reward_head.register_forward_hook(lambda *_: steps.append(1))
    return planner, steps


def _make_td(planner, shape=(NUM_ENVS,)):
    """Environments in the middle of an episode, but for the first, which begins one."""
    torch.manual_seed(1)
    is_init = torch.zeros(*shape, 1, dtype=torch.bool)
    is_init.view(-1)[0] = True
    mean = torch.rand(*shape, HORIZON, ACTION_DIM, dtype=torch.double) * 2 - 1
    # What an episode that ended left behind has no influence
    mean.view(-1, HORIZON, ACTION_DIM)[0] = float("nan")
    td = TensorDict(batch_size=shape)
    observation = torch.randn(*shape, OBSERVATION_DIM, dtype=torch.double)
    td.set(planner.observation_key, observation)
    td.set(planner.is_init_key, is_init)
    td.set(planner.prev_mean_key, mean)
    return td


def _plan_in_turn(planner, td):
    return torch.stack([planner(one) for one in td.reshape(-1).unbind(0)])


class _Prior(nn.Module):
    """A prior of another design, with noise that it draws itself."""

    def __init__(self):
        super().__init__()
        self.network = nn.Linear(LATENT_DIM, ACTION_DIM)

    def forward(self, latent):
        mean = self.network(latent)
        return (mean + torch.randn_like(mean) / 2).tanh()


class _PriorWithNoise(_Prior):
    def forward(self, latent, noise):
        return (self.network(latent) + noise / 2).tanh()


class TestTdMpc2BatchedPlanner:
    @pytest.mark.parametrize("num_pi_trajs", [0, 3])
    @pytest.mark.parametrize("nested", [False, True])
    @pytest.mark.parametrize("exploration", ["RANDOM", "DETERMINISTIC"])
    def test_as_in_turn(self, num_pi_trajs, nested, exploration):
        planner, steps = _make_planner(nested=nested, num_pi_trajs=num_pi_trajs)
        td = _make_td(planner)
        with set_exploration_type(getattr(ExplorationType, exploration)):
            torch.manual_seed(2)
            expected = _plan_in_turn(planner, td.clone())
            state = torch.get_rng_state()
            steps.clear()
            torch.manual_seed(2)
            batched = planner(td.clone())
        for key in planner.out_keys:
            torch.testing.assert_close(batched.get(key), expected.get(key))
            assert batched.get(key).isfinite().all()
        assert not torch.allclose(*batched.get(planner.action_key)[1:])
        assert torch.equal(torch.get_rng_state(), state)
        assert len(steps) == planner.iterations * HORIZON

    def test_batch_dims(self):
        planner, steps = _make_planner()
        td = _make_td(planner, (2, 3))
        torch.manual_seed(3)
        expected = _plan_in_turn(planner, td.clone()).reshape(2, 3)
        steps.clear()
        torch.manual_seed(3)
        batched = planner(td.clone())
        for key in planner.out_keys:
            torch.testing.assert_close(batched.get(key), expected.get(key))
        assert len(steps) == planner.iterations * HORIZON

    def test_custom_prior(self):
        plans, counts = [], []
        for prior_class in (_Prior, _PriorWithNoise):
            torch.manual_seed(4)
            prior = TensorDictModule(prior_class(), ["latent"], ["action"])
            planner, steps = _make_planner(prior.double())
            td = _make_td(planner)
            torch.manual_seed(5)
            plans.append(planner(td))
            counts.append(len(steps))
        for key in planner.out_keys:
            torch.testing.assert_close(plans[1].get(key), plans[0].get(key))
        steps = planner.iterations * HORIZON
        assert counts == [NUM_ENVS * steps, steps]


class TestTdMpc2GivenDraws:
    @pytest.mark.parametrize("source", ["online", "detached", "target"])
    @pytest.mark.parametrize("reduction", ["min", "avg"])
    def test_pair(self, source, reduction):
        ensemble = _make_ensemble(dropout=0.0)
        pairs = torch.tensor([[0, 3], [4, 2], [1, 0]])
        td = TensorDict(
            latent=torch.randn(3, 7, LATENT_DIM, dtype=torch.double),
            action=torch.randn(3, 7, ACTION_DIM, dtype=torch.double),
            batch_size=[3, 7],
        )
        kwargs = {"reduction": reduction, "source": source}
        value = ensemble.reduce(td.copy(), pair=pairs, **kwargs)["q_value"]
        for seed, row in enumerate(pairs):
            given = ensemble.reduce(td[seed], pair=row, **kwargs)["q_value"]
            torch.testing.assert_close(value[seed], given)
        torch.manual_seed(6)
        pair = torch.randperm(5)[:2]
        given = ensemble.reduce(td.copy(), pair=pair, **kwargs)["q_value"]
        torch.manual_seed(6)
        drawn = ensemble.reduce(td.copy(), **kwargs)["q_value"]
        torch.testing.assert_close(given, drawn)

    def test_noise(self):
        prior = _spread(instantiate(TdMpc2PolicyPriorConfig(**SIZES)))
        latent = torch.randn(4, LATENT_DIM, dtype=torch.double)
        torch.manual_seed(7)
        noise = torch.randn(4, ACTION_DIM, dtype=torch.double)
        given = prior(TensorDict(latent=latent, batch_size=[4]), noise=noise)
        torch.manual_seed(7)
        drawn = prior(TensorDict(latent=latent, batch_size=[4]))
        torch.testing.assert_close(given, drawn)
        mode = prior(TensorDict(latent=latent, batch_size=[4]), noise=0 * noise)
        torch.testing.assert_close(mode["action"], mode["mean"])


if __name__ == "__main__":
    pytest.main()
