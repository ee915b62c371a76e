"""Auxiliary heads in an update: what they train, what they never touch, how they are stepped."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from tensordict import TensorDict, assert_close
from tiny import scramble, seeded, tiny_batch, tiny_draws, tiny_loss, tiny_planner
from tiny_heads import GAMMAS, doubled, tiny_heads_loss

from torchrl_tdmpc import AuxiliaryValueHeads, MultiGammaValueLoss
from torchrl_tdmpc.trainers import TDMPC2Update

BOOTSTRAPS = ("primary", "self")
PARTS = ("encoder", "dynamics", "reward_head", "termination_head")


def gradients(loss):
    """Gradients of every part of TD-MPC2, None where nothing arrived."""
    parts = {name: getattr(loss.world_model, name) for name in PARTS}
    parts |= {"policy_prior": loss.policy_prior, "q_ensemble": loss.q_ensemble}
    return {name: [p.grad for p in part.parameters()] for name, part in parts.items()}


def tensors(loss):
    state = loss.state_dict()
    return {name: value.clone() for name, value in state.items() if name != "_extra_state"}


def zero_heads_loss(layout="joint", **kwargs):
    heads = AuxiliaryValueHeads(16, len(GAMMAS) - 1, 101, layout)
    return MultiGammaValueLoss(heads, GAMMAS, **kwargs)


# ---------------------------------------------------------------- supervision, not control


@pytest.mark.parametrize("bootstrap", BOOTSTRAPS)
def test_control_is_bit_for_bit_what_it_is_without_heads(bootstrap):
    model_draws, actor_draws = tiny_draws()
    losses, plans = [], []
    for heads in (None, tiny_heads_loss(bootstrap=bootstrap)):
        loss = tiny_loss(dropout=0.1)
        model = seeded(loss.model_loss, tiny_batch(), **model_draws)
        rollout = model.pop("rollout")
        before = rollout.clone()
        if heads is not None:
            heads(rollout)["loss_multi_gamma"].backward(retain_graph=True)
        assert_close(rollout, before, rtol=0, atol=0)
        losses.append(model.update(seeded(loss.actor_loss, rollout, **actor_draws)))
        networks = (loss.world_model, loss.policy_prior, loss.q_ensemble)
        planner = tiny_planner(networks=networks)
        plan = seeded(planner.plan, rollout["latent"][:, 0].detach(), torch.zeros(5, 3, 2))
        plans.append(plan)
    off, on = losses
    assert set(on.keys()) == set(off.keys()) and {"loss_actor", "loss_value"} <= set(on.keys())
    assert all(torch.equal(value, on[name]) for name, value in off.items())
    assert all(torch.equal(x, y) for x, y in zip(*plans, strict=True))


@pytest.mark.parametrize("detach_latent", [False, True])
@pytest.mark.parametrize("bootstrap", BOOTSTRAPS)
def test_gradients_are_those_without_heads_and_the_auxiliary_term(bootstrap, detach_latent):
    """After the first update's backward pass, part by part, in float64."""
    batch = doubled(tiny_batch())
    draws = tiny_draws(dtype=torch.float64)
    settings = {"bootstrap": bootstrap, "detach_latent": detach_latent}
    off, on, alone = (tiny_loss().double() for _ in range(3))
    heads, alone_heads = (tiny_heads_loss(**settings).double() for _ in range(2))
    update_off, update_on = (
        TDMPC2Update(loss, aux, grad_clip_norm=1e9) for loss, aux in ((off, []), (on, [heads]))
    )
    # Targets that differ from what they follow, which a new update had set equal
    for loss in (off, on):
        loss.load_state_dict(alone.state_dict())
    heads.load_state_dict(alone_heads.state_dict())
    update_off(batch, *draws)
    update_on(batch, *draws)
    rollout = alone.model_loss(batch, **draws[0])["rollout"]
    alone_heads(rollout)["loss_multi_gamma"].backward()

    # The auxiliary term reaches encoder, dynamics and heads, and nothing else
    reaches = set() if detach_latent else {"encoder", "dynamics"}
    for part, auxiliary in gradients(alone).items():
        arrived = [g is not None and bool(g.any()) for g in auxiliary]
        assert all(arrived) if part in reaches else not any(arrived), part
    for parameter, other in zip(heads.parameters(), alone_heads.parameters(), strict=True):
        assert parameter.grad.any()
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-12, atol=1e-14)

    # grad_on == grad_off + grad_alone
    grad_off, grad_on, grad_alone = map(gradients, (off, on, alone))
    for part in (*PARTS, "q_ensemble"):
        for without, with_heads, auxiliary in zip(
            grad_off[part], grad_on[part], grad_alone[part], strict=True
        ):
            if part in reaches:
                assert (with_heads - without).abs().max() > 1e-6
                torch.testing.assert_close(with_heads, without + auxiliary, rtol=1e-10, atol=1e-12)
            else:
                assert torch.equal(with_heads, without), part


def test_the_bootstrap_is_computed_once(monkeypatch):
    loss, heads = tiny_loss(), tiny_heads_loss()
    rollout = loss.model_loss(tiny_batch())["rollout"]
    bootstrap = heads.examine(rollout)["bootstrap"]
    assert bootstrap.data_ptr() == rollout["next", "state_value"].data_ptr()

    value, calls = type(loss.q_ensemble).value, []
    monkeypatch.setattr(
        type(loss.q_ensemble),
        "value",
        lambda *args, **kwargs: calls.append(kwargs["params"]) or value(*args, **kwargs),
    )
    TDMPC2Update(loss, [heads])(tiny_batch())
    assert [params is loss.target_q_ensemble_params for params in calls] == [True, False]


# ---------------------------------------------------------------- updates with and without


def run(loss, auxiliary, updates, **settings):
    """Some updates; the metrics of each, and the weights at the end."""
    update = TDMPC2Update(loss, auxiliary, **settings)
    torch.manual_seed(7)
    metrics = [update(tiny_batch(seed)) for seed in range(updates)]
    return torch.stack(metrics), tensors(loss)


def test_a_weight_of_zero_changes_nothing():
    off, weights_off = run(tiny_loss(dropout=0.1), [], 10)
    on, weights_on = run(tiny_loss(dropout=0.1), [tiny_heads_loss(loss_weight=0.0)], 10)
    for name, value in off.items():
        torch.testing.assert_close(on[name], value, rtol=1e-6, atol=1e-6, msg=name)
    for name, weight in weights_off.items():
        torch.testing.assert_close(weights_on[name], weight, rtol=1e-6, atol=1e-6, msg=name)
    weighted, _ = run(tiny_loss(dropout=0.1), [tiny_heads_loss(loss_weight=0.5)], 10)
    assert not torch.allclose(weighted["loss_value"], off["loss_value"], rtol=1e-4)


@pytest.mark.parametrize("bootstrap", BOOTSTRAPS)
def test_separate_heads_train_as_joint_ones(bootstrap):
    """Ablation A4 against A2, from one seed."""
    joint, separate = (
        zero_heads_loss(layout, bootstrap=bootstrap) for layout in ("joint", "separate")
    )
    metrics, weights = run(tiny_loss(), [joint], 5)
    other_metrics, other_weights = run(tiny_loss(), [separate], 5)
    for name, value in metrics.items():
        torch.testing.assert_close(other_metrics[name], value, rtol=1e-5, atol=1e-5, msg=name)
    for name, weight in weights.items():
        torch.testing.assert_close(other_weights[name], weight, rtol=1e-5, atol=1e-5, msg=name)
    joined = deepcopy(joint.heads)
    joined.copy_from(separate.heads)
    for mine, other in zip(joined.parameters(), joint.heads.parameters(), strict=True):
        assert other.abs().max() > 1e-4  # they learned
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_heads_are_in_the_model_optimiser_and_its_clip():
    loss, heads = tiny_loss(), tiny_heads_loss()
    settings = {"lr": 0.01, "enc_lr_scale": 0.3, "grad_clip_norm": 0.05}
    update = TDMPC2Update(loss, [heads], **settings)
    group = update.model_optimizer.param_groups[-1]
    assert {id(p) for p in group["params"]} == {id(p) for p in heads.heads.parameters()}
    assert (group["lr"], group["eps"]) == (0.01, 1e-8)
    model = [p for g in update.model_optimizer.param_groups for p in g["params"]]
    assert len({id(p) for p in model}) == len(model)
    actor = {id(p) for g in update.actor_optimizer.param_groups for p in g["params"]}
    assert actor.isdisjoint(id(p) for p in heads.parameters())

    draws = tiny_draws()
    free = TDMPC2Update(tiny_loss(), [tiny_heads_loss()], **{**settings, "grad_clip_norm": 1e9})
    norm = free(tiny_batch(), *draws)["grad_norm_model"]
    grads = [p.grad for g in free.model_optimizer.param_groups for p in g["params"]]
    torch.testing.assert_close(norm, torch.cat([g.flatten() for g in grads]).norm())
    share = torch.cat([p.grad.flatten() for p in free.auxiliary[0].parameters()]).norm()
    assert share > 0.02 * norm  # without the heads the norm would be another

    before = tensors(heads)
    metrics = update(tiny_batch(), *draws)
    torch.testing.assert_close(metrics["grad_norm_model"], norm)
    for clipped, whole in zip(heads.parameters(), free.auxiliary[0].parameters(), strict=True):
        torch.testing.assert_close(clipped.grad, whole.grad * 0.05 / norm, rtol=1e-4, atol=1e-8)
    # Adam's first step is the learning rate in the direction of the gradient's sign
    for name, weight in tensors(heads).items():
        assert (weight - before[name]).abs().max().item() == pytest.approx(0.01, rel=0.02)


def test_target_heads_are_state_moved_by_tau():
    heads = tiny_heads_loss(bootstrap="self")
    update = TDMPC2Update(tiny_loss(), [heads], tau=0.2)
    optimised = {id(p) for g in update.model_optimizer.param_groups for p in g["params"]}
    targets = dict(heads.target_heads_params.items(True, True))
    assert optimised.isdisjoint(map(id, targets.values()))
    assert all(isinstance(t, torch.nn.Buffer) or not t.requires_grad for t in targets.values())
    assert sum(name.startswith("target_heads_params") for name in heads.state_dict()) == 2
    scramble(targets.values())
    before = {key: target.clone() for key, target in targets.items()}
    update(tiny_batch())
    for key, online in TensorDict.from_module(heads.heads).items(True, True):
        expected = before[key].lerp(online.detach(), 0.2)
        now = heads.target_heads_params[key]
        torch.testing.assert_close(now, expected, rtol=0, atol=1e-7)
        assert not torch.equal(now, before[key])
    assert not any(name.startswith("target_") for name in tiny_heads_loss().state_dict())


def test_metrics_name_every_discount():
    update = TDMPC2Update(tiny_loss(), [tiny_heads_loss()])
    metrics = update(tiny_batch())
    assert set(metrics.keys()) == set(update.metric_names)
    auxiliary = {name for name in update.metric_names if "aux" in name}
    statistics = ("aux_value_ce", "aux_value_mean", "aux_value_std")
    named = {f"{name}/{label}" for name in statistics for label in ("g0.5", "g0.97")}
    assert auxiliary == named | {"aux_value_ce/mean"}
    assert not any("aux" in name for name in TDMPC2Update(tiny_loss()).metric_names)
