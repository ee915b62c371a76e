"""One update, against a plain restatement of its published order."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from tensordict import TensorDict
from tiny import scramble, seeded, tiny_batch, tiny_draws, tiny_loss, total

from torchrl_tdmpc.trainers import TDMPC2Update

SETTINGS = {"lr": 0.01, "enc_lr_scale": 0.3, "grad_clip_norm": 0.5, "tau": 0.2}


def weights(loss):
    return {name: tensor.clone() for name, tensor in loss.state_dict().items()}


class PlainAdam:
    """Adam's first two moments, step after step, for one learning rate."""

    def __init__(self, parameters, lr, eps):
        self.parameters, self.lr, self.eps, self.steps = parameters, lr, eps, 0
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]

    def step(self):
        self.steps += 1
        for parameter, (first, second) in zip(self.parameters, self.moments, strict=True):
            first.lerp_(parameter.grad, 1 - 0.9)
            second.lerp_(parameter.grad.square(), 1 - 0.999)
            mean, square = first / (1 - 0.9**self.steps), second / (1 - 0.999**self.steps)
            parameter.data -= self.lr * mean / (square.sqrt() + self.eps)


def clip(parameters, limit):
    norm = torch.cat([p.grad.flatten() for p in parameters]).norm()
    for parameter in parameters:
        parameter.grad *= min(1.0, limit / (norm.item() + 1e-6))
    return norm


def plain_update(loss, settings):
    """A function that updates the loss as published: model, policy, then targets."""
    lr, scale = settings["lr"], settings["enc_lr_scale"]
    encoder = list(loss.world_model.encoder.parameters())
    encoder_ids = {id(p) for p in encoder}
    rest = [p for p in loss.world_model.parameters() if id(p) not in encoder_ids]
    rest += loss.q_ensemble.parameters()
    policy = list(loss.policy_prior.parameters())
    adams = [PlainAdam(encoder, lr * scale, 1e-8), PlainAdam(rest, lr, 1e-8)]
    policy_adam = PlainAdam(policy, lr, 1e-5)

    def update(batch, model_draws, actor_draws):
        loss.zero_grad()
        model = loss.model_loss(batch, **model_draws)
        total(model).backward()
        grad_norm_model = clip(encoder + rest, settings["grad_clip_norm"])
        for adam in adams:
            adam.step()
        actor = loss.actor_loss(model["rollout"], **actor_draws)
        actor["loss_actor"].backward()
        grad_norm_actor = clip(policy, settings["grad_clip_norm"])
        policy_adam.step()
        for target, online in zip(
            loss.target_q_ensemble_params.values(True, True),
            loss.q_ensemble_params.values(True, True),
            strict=True,
        ):
            target.data.lerp_(online.data, settings["tau"])
        norms = {"grad_norm_model": grad_norm_model, "grad_norm_actor": grad_norm_actor}
        return TensorDict(**model.exclude("rollout"), **actor, **norms).detach()

    return update


@pytest.mark.parametrize("episodic", [True, False])
@pytest.mark.parametrize("limit", [0.05, 1e6])
def test_update_equals_a_plain_one(episodic, limit):
    settings = {**SETTINGS, "grad_clip_norm": limit}
    loss = tiny_loss(episodic=episodic).double()
    plain_loss = deepcopy(loss)
    update, plain = TDMPC2Update(loss, **settings), plain_update(plain_loss, settings)
    for params in (loss.q_ensemble_params, loss.target_q_ensemble_params):
        scramble(params["params"].values(True, True))
        params.data["params", "2"].mul_(10)  # values that move the value scale
    plain_loss.load_state_dict(loss.state_dict())
    before = weights(loss)
    for seed in range(3):
        batch = tiny_batch(seed).apply(lambda t: t.double() if t.is_floating_point() else t)
        draws = tiny_draws(seed, dtype=torch.float64)
        metrics, expected = update(batch, *draws), plain(batch, *draws)
        assert set(metrics.keys()) == set(update.metric_names)
        assert metrics.pop("skipped_updates") == 0
        assert set(metrics.keys()) == set(expected.keys())
        for name, value in metrics.items():
            torch.testing.assert_close(value, expected[name], msg=name)
            assert not value.requires_grad and value.dim() == 0
        clipped = metrics["grad_norm_model"] > limit and metrics["grad_norm_actor"] > limit
        assert clipped == (limit == 0.05)
    after = weights(loss)
    for name, weight in weights(plain_loss).items():
        torch.testing.assert_close(after[name], weight, msg=name)
        assert not torch.equal(after[name], before[name]), name


def test_policy_sees_the_q_functions_after_their_step():
    (model_draws, actor_draws), batch = tiny_draws(), tiny_batch()
    before_step, after_step = (tiny_loss(value_scale_tau=0.0, reduction="mean") for _ in range(2))
    rollout = before_step.model_loss(batch, **model_draws)["rollout"]
    stale = before_step.actor_loss(rollout, **actor_draws)["actor"]
    metrics = TDMPC2Update(after_step, lr=0.1)(batch, model_draws, actor_draws)
    assert abs(metrics["actor"] - stale) > 1e-3


def test_encoder_learns_at_its_own_rate():
    loss = tiny_loss()
    before = weights(loss)
    update = TDMPC2Update(loss, lr=0.01, enc_lr_scale=0.3)
    update(tiny_batch())
    # Adam's first step is the learning rate in the direction of the gradient's sign
    for name, weight in loss.state_dict().items():
        if name.startswith(("world_model_params", "q_ensemble_params")):
            step = (weight - before[name]).abs().max().item()
            assert step == pytest.approx(0.003 if ".encoder." in name else 0.01, rel=0.02), name


def test_each_parameter_is_optimised_once():
    loss = tiny_loss()
    update = TDMPC2Update(loss)
    optimised = [
        p
        for optimizer in (update.model_optimizer, update.actor_optimizer)
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert len(optimised) == len({id(p) for p in optimised}) == len(list(loss.parameters()))
    assert {id(p) for p in optimised} == {id(p) for p in loss.parameters()}
    assert update.actor_optimizer.param_groups[0]["eps"] == 1e-5
    assert {group["eps"] for group in update.model_optimizer.param_groups} == {1e-8}


def test_same_seed_same_update():
    losses = [tiny_loss(dropout=0.1) for _ in range(3)]
    metrics = [
        seeded(TDMPC2Update(loss), tiny_batch(), seed=seed)
        for loss, seed in zip(losses, (0, 0, 1), strict=True)
    ]
    first, again, other = (weights(loss) for loss in losses)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert metrics[0]["actor"] == metrics[1]["actor"] != metrics[2]["actor"]


def test_batch_is_not_changed():
    batch = tiny_batch()
    before = batch.clone()
    TDMPC2Update(tiny_loss())(batch)
    assert set(batch.keys(True, True)) == set(before.keys(True, True))
    assert (batch == before).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, r"lr is 0.0; it must be positive"),
        ({"grad_clip_norm": -1.0}, r"grad_clip_norm is -1.0; it must be positive"),
        ({"enc_lr_scale": -0.1}, r"enc_lr_scale is -0.1; it must be .*"),
        ({"tau": 0.0}, r"tau is 0.0; it must be .*"),
        ({"tau": 1.5}, r"tau is 1.5; it must be .*"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TDMPC2Update(tiny_loss(), **settings)


def test_loss_without_a_reduction_is_refused():
    with pytest.raises(ValueError, match=r"reduction of TDMPC2Loss is 'none'; .*'mean' or 'sum'"):
        TDMPC2Update(tiny_loss(reduction="none"))


def whole_state(update):
    """Weights, targets, value scale and the optimisers' moments."""
    optimizers = [update.model_optimizer.state_dict(), update.actor_optimizer.state_dict()]
    return deepcopy([update.loss.state_dict(), *(state["state"] for state in optimizers)])


@pytest.mark.parametrize("key", ["observation", ("next", "reward"), ("next", "observation")])
def test_update_on_numbers_that_are_not_finite_is_skipped(key):
    update = TDMPC2Update(tiny_loss())
    assert update(tiny_batch())["skipped_updates"] == 0
    before = whole_state(update)
    batch = tiny_batch(1)
    batch[key][0, 0] = float("nan")
    metrics = update(batch)
    assert metrics["skipped_updates"] == 1 and not metrics["grad_norm_model"].isfinite()
    for ours, theirs in zip(whole_state(update), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert update(tiny_batch(2))["skipped_updates"] == 0


def test_policy_gradient_that_is_not_finite_skips_the_policy_alone():
    update = TDMPC2Update(tiny_loss())
    update(tiny_batch())
    policy, q = (
        deepcopy(module.state_dict())
        for module in (update.loss.policy_prior, update.loss.q_ensemble)
    )
    update.loss.entropy_coef.fill_(float("inf"))  # an assignment would be refused
    assert update(tiny_batch(1))["skipped_updates"] == 1
    torch.testing.assert_close(update.loss.policy_prior.state_dict(), policy, rtol=0, atol=0)
    after = update.loss.q_ensemble.state_dict()
    assert any(not torch.equal(after[name], q[name]) for name in q if "weight" in name)


def test_model_gradient_that_is_not_finite_skips_everything():
    update = TDMPC2Update(tiny_loss())
    update(tiny_batch())
    before = whole_state(update)
    weight = next(update.loss.world_model.dynamics.parameters())
    hook = weight.register_hook(lambda gradient: gradient * float("inf"))
    metrics = update(tiny_batch(1))
    hook.remove()
    assert metrics["skipped_updates"] == 1
    assert metrics["reward"].isfinite() and not metrics["grad_norm_model"].isfinite()
    for ours, theirs in zip(whole_state(update), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_targets_follow_where_the_policy_alone_is_skipped():
    update = TDMPC2Update(tiny_loss(), tau=0.2)
    update(tiny_batch())
    targets = update.loss.target_q_ensemble_params.data
    before = targets.clone()
    update.loss.entropy_coef.fill_(float("inf"))  # an assignment would be refused
    assert update(tiny_batch(1))["skipped_updates"] == 1
    expected = before.lerp(update.loss.q_ensemble_params.data, 0.2)
    for key, target in targets.items(True, True):
        torch.testing.assert_close(target, expected[key])
        assert not torch.equal(target, before[key])


def test_metrics_of_a_policy_that_was_not_updated_are_nan():
    batch = tiny_batch()
    batch["next", "reward"][0, 0] = float("nan")
    metrics = TDMPC2Update(tiny_loss())(batch)
    policy = "loss_actor", "actor", "grad_norm_actor", "entropy", "scaled_entropy", "value_scale"
    assert all(metrics[name].isnan() for name in policy)
