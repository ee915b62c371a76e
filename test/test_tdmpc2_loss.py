"""TDMPC2Loss: its values, restated in NumPy and loops, and where its gradients go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tiny import (
    BATCH,
    HORIZON,
    LATENT,
    NUM_Q,
    SIZE,
    scramble,
    seeded,
    tiny_batch,
    tiny_draws,
    tiny_loss,
    tiny_networks,
    total,
)
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import SoftUpdate

from torchrl_tdmpc import TDMPC2Loss, make_networks
from torchrl_tdmpc.modules import ModelSize

MODEL_TERMS = ("consistency", "reward", "value", "termination")
COEFFICIENTS = {
    "consistency_coef": 3.0,
    "reward_coef": 5.0,
    "value_coef": 7.0,
    "termination_coef": 11.0,
}


def raw_terms(loss, batch, model_draws, actor_draws):
    """Weighted terms ``[B, H]`` and ``[B, H + 1]`` before their coefficients."""
    model = loss.model_loss(batch, **model_draws)
    actor = loss.actor_loss(model["rollout"], **actor_draws)
    return {**{name: model[name] for name in MODEL_TERMS}, "actor": actor["actor"]}


def close(actual, expected, tolerance=1e-9):
    actual = actual.detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- the paper's formulas in NumPy


def np_symlog(x):
    return np.sign(x) * np.log(1 + np.abs(x))


def np_decode(logits, bins):
    share = np.exp(logits - logits.max(-1, keepdims=True))
    expected = (share / share.sum(-1, keepdims=True) * bins).sum(-1)
    return np.sign(expected) * (np.exp(np.abs(expected)) - 1)


def np_two_hot(scalar, bins):
    """One scalar's distribution: neighbours share its mass in proportion to their nearness."""
    code = np.zeros(len(bins))
    position = np.clip(np_symlog(scalar), bins[0], bins[-1])
    upper = min(max(int(np.searchsorted(bins, position)), 1), len(bins) - 1)
    code[upper] = (position - bins[upper - 1]) / (bins[upper] - bins[upper - 1])
    code[upper - 1] = 1 - code[upper]
    return code


def np_cross_entropy(logits, scalar, bins):
    """``[...]`` for logits ``[..., bins]`` and scalars ``[...]``."""
    log_share = logits - logits.max(-1, keepdims=True)
    log_share = log_share - np.log(np.exp(log_share).sum(-1, keepdims=True))
    codes = np.array([np_two_hot(s, bins) for s in scalar.ravel()])
    return -(codes.reshape(*scalar.shape, -1) * log_share).sum(-1)


def np_policy(policy_prior, latent, eps):
    """Action, and -A log N(u) summed over the action, from the network's output."""
    raw = policy_prior.network(latent).detach().numpy()
    mean, raw_log_std = np.split(raw, 2, -1)
    low, high = policy_prior.log_std_min, policy_prior.log_std_max
    log_std = low + (high - low) * (np.tanh(raw_log_std) + 1) / 2
    u = mean + np.exp(log_std) * eps.numpy()
    density = np.exp(-0.5 * ((u - mean) / np.exp(log_std)) ** 2)
    density /= np.exp(log_std) * np.sqrt(2 * np.pi)
    return np.tanh(u), -u.shape[-1] * np.log(density).sum(-1)


def np_q(q_ensemble, latent, action, **kwargs):
    """Logits ``[Q, ...]`` at a NumPy action."""
    return q_ensemble.logits(latent, torch.from_numpy(action), **kwargs).detach().numpy()


@pytest.fixture
def restated():
    """A loss in float64, its batch and draws, and every term as the paper states it."""
    loss = tiny_loss(reduction="none").double().eval()
    loss.rho, loss.entropy_coef = 0.7, 0.03  # in float64
    loss.value_scale.value.fill_(2.5)
    batch = tiny_batch().apply(lambda t: t.double() if t.is_floating_point() else t)
    model_draws, actor_draws = tiny_draws(dtype=torch.float64)
    world_model, policy_prior, q_ensemble = loss.world_model, loss.policy_prior, loss.q_ensemble
    bins = np.linspace(-10, 10, 101)
    reward = batch["next", "reward"].squeeze(-1).numpy()
    terminated = batch["next", "terminated"].squeeze(-1).numpy()
    rho = 0.7 ** np.arange(HORIZON + 1)

    with torch.no_grad():
        # y = r + gamma (1 - terminated) min over two target Q-functions at a ~ pi(encode(s'))
        target_latent = world_model.encode(batch["next", "observation"])
        action, _ = np_policy(policy_prior, target_latent, model_draws["policy_eps"])
        target_q = np_q(q_ensemble, target_latent, action, params=loss.target_q_ensemble_params)
        state_value = np.minimum(np_decode(target_q[2], bins), np_decode(target_q[0], bins))
        td_target = reward + 0.9 * np.where(terminated, 0, state_value)

        z = [world_model.encode(batch["observation"][:, 0])]
        for t in range(HORIZON):
            z.append(world_model.next(z[-1], batch["action"][:, t]))
        latent, next_latent = torch.stack(z[:-1], 1), torch.stack(z[1:], 1)
        reward_logits = world_model.reward_logits(latent, batch["action"]).numpy()
        q_logits = np_q(q_ensemble, latent, batch["action"].numpy())
        termination = world_model.termination_logit(next_latent).squeeze(-1).numpy()
        termination = 1 / (1 + np.exp(-termination))
        squared = (next_latent.numpy() - target_latent.numpy()) ** 2

        latents = torch.stack(z, 1)
        action, scaled_entropy = np_policy(policy_prior, latents, actor_draws["policy_eps"])
        q = np_decode(np_q(q_ensemble, latents, action), bins)

    terms = {
        "consistency": rho[:-1] * squared.mean(-1),
        "reward": rho[:-1] * np_cross_entropy(reward_logits, reward, bins),
        "value": rho[:-1]
        * np.mean([np_cross_entropy(q_logits[i], td_target, bins) for i in range(NUM_Q)], 0),
        "termination": -np.log(np.where(terminated, termination, 1 - termination)),
        "actor": -rho * (0.03 * scaled_entropy + (q[0] + q[1]) / 2 / 2.5),
    }
    return loss, batch, (model_draws, actor_draws), terms, state_value


@pytest.mark.parametrize("term", [*MODEL_TERMS, "actor"])
def test_term_equals_the_formula(restated, term):
    loss, batch, draws, expected, _ = restated
    assert np.abs(np_symlog(batch["next", "reward"].numpy())).max() > 10
    close(raw_terms(loss, batch, *draws)[term], expected[term])


def test_rollout_carries_the_bootstrap_and_the_batch(restated):
    loss, batch, (model_draws, _), _, state_value = restated
    rollout = loss.model_loss(batch, **model_draws)["rollout"]
    close(rollout["next", "state_value"].squeeze(-1), state_value)
    target = loss.world_model.encode(batch["next", "observation"])
    close(rollout["next", "target_latent"], target.detach().numpy())
    assert torch.equal(rollout["latent"][:, 1:], rollout["next", "latent"][:, :-1])
    for key in ("action", ("next", "reward"), ("next", "terminated")):
        assert torch.equal(rollout[key], batch[key])
    for key in (("next", "target_latent"), ("next", "state_value")):
        assert not rollout[key].requires_grad
    assert rollout["next", "latent"].requires_grad


def test_terminated_steps_do_not_bootstrap(restated):
    loss, batch, (model_draws, _), _, _ = restated
    batch["next", "reward"].clamp_(-1, 1)
    before = loss.model_loss(batch, **model_draws)["value"]
    scramble(loss.target_q_ensemble_params.values(True, True))
    changed = loss.model_loss(batch, **model_draws)["value"] != before
    assert torch.equal(changed, ~batch["next", "terminated"].squeeze(-1))


# ---------------------------------------------------------------- weights, reduction, masks


def test_rho_weighs_all_terms_but_termination():
    draws, batch = tiny_draws(), tiny_batch()
    flat, decayed = (
        raw_terms(tiny_loss(rho=rho, reduction="none"), batch, *draws) for rho in (1.0, 0.5)
    )
    for name, term in flat.items():
        for t in range(term.shape[1]):
            weight = 1.0 if name == "termination" else 0.5**t
            torch.testing.assert_close(decayed[name][:, t], weight * term[:, t])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_coefficients_multiply_exactly_once(reduction):
    (model_draws, actor_draws), batch = tiny_draws(), tiny_batch()
    loss = tiny_loss(reduction=reduction, **COEFFICIENTS)
    model = loss.model_loss(batch, **model_draws)
    unweighted = tiny_loss(reduction=reduction, **dict.fromkeys(COEFFICIENTS, 1.0))
    unweighted_model = unweighted.model_loss(batch, **model_draws)
    for name in MODEL_TERMS:
        torch.testing.assert_close(model[name], unweighted_model[f"loss_{name}"].detach())
        raw = COEFFICIENTS[f"{name}_coef"] * model[name]
        torch.testing.assert_close(model[f"loss_{name}"].detach(), raw)
    actor = loss.actor_loss(model["rollout"], **actor_draws)
    assert torch.equal(actor["loss_actor"], actor["actor"])
    shape = {"none": (BATCH, HORIZON + 1)}.get(reduction, ())
    assert actor["actor"].shape == shape


def test_entropy_coef_weighs_the_scaled_entropy():
    (model_draws, actor_draws), batch = tiny_draws(), tiny_batch()
    losses = {}
    for coef in (0.0, 0.5):
        loss = tiny_loss(entropy_coef=coef, reduction="none", rho=1.0).eval()
        rollout = loss.model_loss(batch, **model_draws)["rollout"]
        losses[coef] = loss.actor_loss(rollout, **actor_draws)["actor"]
    latents = torch.cat([rollout["latent"], rollout["next", "latent"][:, -1:]], 1)
    policy = loss.policy_prior.sample(latents, actor_draws["policy_eps"])
    expected = 0.5 * policy.scaled_entropy.squeeze(-1).detach()
    torch.testing.assert_close(losses[0.0] - losses[0.5], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(BATCH, HORIZON), (BATCH, HORIZON, 1)])
def test_padded_steps_do_not_count(shape):
    draws, batch = tiny_draws(), tiny_batch()
    mask = torch.ones(BATCH, HORIZON, dtype=torch.bool)
    mask[1, 2] = mask[3, 1:] = False
    all_latents = torch.cat([mask, mask[:, -1:]], 1)
    terms = raw_terms(tiny_loss(reduction="none"), batch, *draws)

    padded = batch.clone()
    padded["next", "reward"][~mask] = 1e3
    padded["collector", "mask"] = mask.view(shape)
    means = raw_terms(tiny_loss(), padded, *draws)
    for name, term in terms.items():
        valid = all_latents if name == "actor" else mask
        torch.testing.assert_close(means[name], term[valid].mean())
        assert not torch.isclose(means[name], term.mean())


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_coefficient_that_is_not_at_least_zero_is_refused(value):
    with pytest.raises(ValueError, match=f"reward_coef is {value}; it must be at least 0"):
        tiny_loss(reward_coef=value)


# ---------------------------------------------------------------- modes and draws


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_on_in_training_for_updated_q_functions_and_off_for_targets(training):
    loss, batch = tiny_loss(dropout=0.5).train(training), tiny_batch()
    loss.q_ensemble.train(not training)  # the loss's own mode decides
    model_draws, actor_draws = tiny_draws()
    first, second = (seeded(loss.model_loss, batch, **model_draws, seed=seed) for seed in (0, 1))
    assert (first["value"] != second["value"]) == training
    assert first["reward"] == second["reward"]
    for rollout in (first["rollout"], second["rollout"]):
        plain = tiny_loss(dropout=0.0).model_loss(batch, **model_draws)["rollout"]
        assert torch.equal(rollout["next", "state_value"], plain["next", "state_value"])

    loss.value_scale.tau = 0.0
    actors = [
        seeded(loss.actor_loss, first["rollout"], **actor_draws, seed=seed) for seed in (0, 1)
    ]
    assert (actors[0]["actor"] != actors[1]["actor"]) == training


def test_value_scale_is_updated_before_it_divides_in_training_only():
    (model_draws, actor_draws), batch = tiny_draws(), tiny_batch()
    loss = tiny_loss(value_scale_tau=0.5, entropy_coef=0.0, reduction="none", rho=1.0)
    loss.q_ensemble_params.data["params", "2"].mul_(20)
    rollout = loss.model_loss(batch, **model_draws)["rollout"]

    loss.eval()
    plain = loss.actor_loss(rollout, **actor_draws)
    assert loss.value_scale.value == plain["value_scale"] == 1

    values = -plain["actor"]
    low, high = np.percentile(values[:, 0].numpy(), [5, 95])
    expected = torch.tensor(0.5 + 0.5 * max(high - low, 1), dtype=torch.float32)
    assert expected > 1.1
    loss.train()
    scaled = loss.actor_loss(rollout, **actor_draws)
    torch.testing.assert_close(scaled["value_scale"], expected)
    torch.testing.assert_close(loss.value_scale.value.squeeze(), expected)
    torch.testing.assert_close(scaled["actor"], plain["actor"] / expected)


@pytest.mark.parametrize("mode", [ExplorationType.DETERMINISTIC, ExplorationType.RANDOM])
def test_policy_is_sampled_whatever_the_exploration_type(mode):
    two_q = ModelSize(SIZE.enc_dim, SIZE.mlp_dim, LATENT, SIZE.num_enc_layers, num_q=2)
    loss, batch = tiny_loss(size=two_q).eval(), tiny_batch()
    with set_exploration_type(mode):
        models = [seeded(loss.model_loss, batch, seed=seed) for seed in (0, 1)]
        rollout = models[0]["rollout"]
        actors = [seeded(loss.actor_loss, rollout, seed=seed) for seed in (0, 1)]
    values = [model["rollout"]["next", "state_value"] for model in models]
    assert (values[0] != values[1]).all()
    assert actors[0]["actor"] != actors[1]["actor"]


def test_pairs_of_q_functions_are_drawn_anew():
    loss, batch = tiny_loss().eval(), tiny_batch()
    (model_draws, actor_draws) = tiny_draws()
    del model_draws["q_pair"], actor_draws["q_pair"]
    models = [seeded(loss.model_loss, batch, **model_draws, seed=seed) for seed in range(20)]
    bootstraps = [model["rollout"]["next", "state_value"].sum().item() for model in models]
    assert len({round(bootstrap, 3) for bootstrap in bootstraps}) >= 2  # minima may coincide
    rollout = models[0]["rollout"]
    actors = [seeded(loss.actor_loss, rollout, **actor_draws, seed=seed) for seed in range(20)]
    assert len({round(actor["actor"].item(), 4) for actor in actors}) == 3


# ---------------------------------------------------------------- gradients


def gradients(loss, value):
    parameters = dict(loss.named_parameters())
    found = torch.autograd.grad(value, parameters.values(), allow_unused=True, retain_graph=True)
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}


def test_gradients_reach_what_each_loss_trains_and_nothing_else():
    loss, batch = tiny_loss(), tiny_batch()
    model = loss.model_loss(batch)
    actor = loss.actor_loss(model["rollout"])
    names = {name for name, _ in loss.named_parameters()}
    policy = {name for name in names if name.startswith("policy_prior_params.")}
    assert set(gradients(loss, total(model))) == names - policy
    assert set(gradients(loss, total(actor))) == policy
    trains = {
        "consistency": ("encoder", "dynamics"),
        "reward": ("encoder", "dynamics", "reward_head"),
        "termination": ("encoder", "dynamics", "termination_head"),
        "value": ("encoder", "dynamics", "q_ensemble_params"),
    }
    for term, parts in trains.items():
        reached = {name for name in names if any(part in name.split(".") for part in parts)}
        assert set(gradients(loss, model[f"loss_{term}"])) == reached, term


def test_forward_has_the_gradients_of_both_losses():
    batch = tiny_batch()
    loss = tiny_loss()
    together = gradients(loss, total(seeded(loss, batch)))

    loss = tiny_loss()
    torch.manual_seed(0)
    model = loss.model_loss(batch)
    separate = gradients(loss, total(model))
    separate |= gradients(loss, total(loss.actor_loss(model["rollout"])))
    assert set(together) == set(separate) == {name for name, _ in loss.named_parameters()}
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, separate[name], msg=name)


def test_value_scale_may_move_on_before_the_backward_pass():
    loss = tiny_loss(value_scale_tau=0.5)
    rollout = loss.model_loss(tiny_batch())["rollout"]
    actor = loss.actor_loss(rollout)["loss_actor"]
    expected = gradients(loss, actor)
    loss.actor_loss(rollout)
    torch.testing.assert_close(gradients(loss, actor), expected, rtol=0, atol=0)


def test_model_without_termination_head_has_no_termination_loss():
    loss = tiny_loss(episodic=False)
    assert not any("termination" in key for key, _ in loss(tiny_batch()).items())


@pytest.mark.parametrize("discount", [0.0, 1.0, -0.5, 1.5])
def test_discount_outside_the_unit_interval_is_refused(discount):
    with pytest.raises(ValueError, match=rf"discount is {discount}; .*between 0 and 1"):
        TDMPC2Loss(*tiny_networks(), discount=discount)


def test_keyword_call_where_every_entry_is_a_scalar():
    networks = make_networks((1,), 1, ModelSize(8, 8, LATENT, 2, 2))
    loss = TDMPC2Loss(*networks, discount=0.9).eval()
    SoftUpdate(loss, tau=0.01)
    one, shape = torch.randn(BATCH, HORIZON, 1), (BATCH, HORIZON)
    following = TensorDict(observation=one, reward=one, terminated=one > 0, batch_size=shape)
    batch = TensorDict(observation=one, action=one, next=following, batch_size=shape)
    expected = seeded(loss, batch)
    values = seeded(loss, one, one, one, one, one > 0)
    for key, value in zip(loss.out_keys, values, strict=True):
        assert torch.equal(value, expected[key])


def test_shares_and_magnitudes_beyond_the_bins_are_reported():
    loss, batch = tiny_loss().eval(), tiny_batch()
    (draws, _), reward = tiny_draws(), batch["next", "reward"]
    beyond = (reward.abs() > np.expm1(10)).double().mean()
    metrics = loss.model_loss(batch, **draws)
    assert 0 < beyond < 1
    torch.testing.assert_close(metrics["clipped_reward"].double(), beyond)
    assert metrics["largest_reward"] == reward.abs().max()
    rollout, loss.discount = metrics["rollout"], 0.5
    following = rollout["next"]
    going_on = 1 - following["terminated"].float()
    target = following["reward"] + 0.5 * going_on * following["state_value"]
    metrics = loss.model_loss(batch, **draws)
    torch.testing.assert_close(metrics["largest_td_target"], target.abs().max())
    share = (target.abs() > np.expm1(10)).double().mean()
    torch.testing.assert_close(metrics["clipped_td_target"].double(), share)
