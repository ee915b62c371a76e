"""Losses compute with the weights that they list, whoever put them there, and so do copies."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch
from tensordict import TensorDict
from tiny import (
    LATENT,
    seeded,
    tiny_batch,
    tiny_draws,
    tiny_loss,
    tiny_multitask_batch,
    tiny_multitask_loss,
    total,
)

from torchrl_tdmpc import AuxiliaryValueHeads, MultiGammaValueLoss, QEnsemble, TDMPC2Update
from torchrl_tdmpc.modules import Execution

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

RAW = ("consistency", "reward", "value", "termination", "actor")


BATCH, (MODEL_DRAWS, ACTOR_DRAWS) = tiny_batch(), tiny_draws()


def raw_losses(loss) -> torch.Tensor:
    """Every raw loss of one batch, from recorded draws."""
    model = loss.model_loss(BATCH, **MODEL_DRAWS)
    actor = loss.actor_loss(model["rollout"], **ACTOR_DRAWS)
    return torch.stack([{**model, **actor}[name] for name in RAW])


def two_losses():
    return tiny_loss(seed=0).eval(), tiny_loss(seed=3).eval()


def test_parameters_put_in_by_to_module_are_used():
    loss, other = two_losses()
    own, expected = raw_losses(loss), raw_losses(other)
    assert (own != expected).all()
    with TensorDict.from_module(other).to_module(loss):
        assert torch.equal(raw_losses(loss), expected)
    assert torch.equal(raw_losses(loss), own)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("world_model", {"consistency", "reward", "value", "termination", "actor"}),
        ("policy_prior", {"value", "actor"}),  # of others: the TD target's action
        ("q_ensemble", {"value", "actor"}),
    ],
)
def test_each_networks_parameters_are_used(name, changed):
    loss, other = two_losses()
    own = raw_losses(loss)
    setattr(loss, f"{name}_params", getattr(other, f"{name}_params"))
    assert {n for n, a, b in zip(RAW, own, raw_losses(loss)) if a != b} == changed


def test_stacked_parameters_are_used():
    loss, other = two_losses()
    stacked = TensorDict.from_modules(loss, other, as_module=False)

    def losses_with(params):
        with params.to_module(loss):
            return raw_losses(loss).detach()

    values = torch.vmap(losses_with, randomness="different")(stacked)
    expected = torch.stack([raw_losses(loss), raw_losses(other)])
    torch.testing.assert_close(values, expected.detach())


def test_perturbed_embedding_is_used():
    loss, batch = tiny_multitask_loss().eval(), tiny_multitask_batch()
    embedding = loss.context(batch).embedding
    params = TensorDict.from_module(loss).apply(lambda weight: weight + 0.1)
    with params.to_module(loss):
        moved = loss.context(batch).embedding
    assert not torch.allclose(moved, embedding)
    assert torch.equal(loss.context(batch).embedding, embedding)


def test_functional_call_uses_what_it_is_given():
    loss, other = two_losses()
    batch = tiny_batch()
    given = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    losses = seeded(torch.func.functional_call, loss, given, (batch,))
    expected = seeded(other, batch)
    for name in RAW:
        assert torch.equal(losses[name], expected[name]), name
    own = seeded(tiny_loss(seed=0).eval(), batch)
    assert torch.equal(total(seeded(loss, batch)), total(own))  # put back

    learned = [name for name, p in other.named_parameters() if p.requires_grad]

    def objective(params):
        return total(seeded(torch.func.functional_call, loss, {**given, **params}, (batch,)))

    gradients = torch.func.grad(objective)({name: given[name].detach() for name in learned})
    total(expected).backward()
    for name in learned:
        torch.testing.assert_close(gradients[name], given[name].grad)


# ---------------------------------------------------------------- coefficients


def test_coefficients_are_buffers_outside_the_state():
    loss = tiny_loss()
    names = {"rho", "entropy_coef"} | {f"{term}_coef" for term in RAW[:4]}
    assert names <= set(dict(loss.named_buffers()))
    assert not names & set(loss.state_dict())


@pytest.mark.parametrize("name", ["consistency_coef", "reward_coef", "value_coef", "rho"])
def test_a_coefficient_set_later_is_one_set_at_first(name):
    loss, batch = tiny_loss().eval(), tiny_batch()
    buffer = getattr(loss, name)
    for value in (0.3, torch.tensor(0.3)):
        setattr(loss, name, value)
        assert getattr(loss, name) is buffer
        expected = seeded(tiny_loss(**{name: 0.3}).eval(), batch)
        assert torch.equal(total(seeded(loss, batch)), total(expected))


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), True, "1", torch.ones(2)])
@pytest.mark.parametrize("name", ["reward_coef", "rho", "loss_weight"])
def test_a_bad_coefficient_is_refused_at_first_and_later(name, value):
    if name == "loss_weight":
        make, loss = heads_loss, heads_loss()
    else:
        make, loss = tiny_loss, tiny_loss()
    before = getattr(loss, name).clone()
    for attempt in (lambda: make(**{name: value}), lambda: setattr(loss, name, value)):
        with pytest.raises(ValueError, match=rf"{name} is .*; it must be (at least 0|in \[0, 1\])"):
            attempt()
    assert getattr(loss, name) == before


def test_a_bad_discount_set_later_is_refused():
    loss = tiny_loss()
    for value in (0.0, 1.0, None):
        with pytest.raises(ValueError, match=r"discount is .*; it must lie strictly between"):
            loss.discount = value
    assert loss.discount == 0.9


@pytest.mark.compiled
def test_another_coefficient_compiles_nothing_anew():
    loss, batch = tiny_loss().eval(), tiny_batch()
    (draws, _), losses = tiny_draws(), {}
    torch.compiler.reset()
    model_loss = Execution("default").prepare(type(loss).model_loss, "cpu")
    for number, value in enumerate((0.1, 0.2, 0.4)):
        loss.reward_coef = value
        losses[value] = model_loss(loss, batch, **draws)["loss_reward"].detach()
        if number == 0:
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    torch.testing.assert_close(losses[0.2], 2 * losses[0.1])
    torch.testing.assert_close(losses[0.4], 4 * losses[0.1])


# ---------------------------------------------------------------- copies


def heads_loss(**kwargs):
    heads = AuxiliaryValueHeads(LATENT, 2, 101)
    return MultiGammaValueLoss(heads, gammas=[0.9, 0.97, 0.5], bootstrap="self", **kwargs)


def copy_by_pickle(x):
    return pickle.loads(pickle.dumps(x))


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("copy", [deepcopy, copy_by_pickle])
def test_a_copied_update_trains_as_the_original(before, copy):
    update = TDMPC2Update(tiny_loss(), [heads_loss()])
    for _ in range(before):
        update(tiny_batch())
    copied = copy(update)
    start = deepcopy(copied.loss.state_dict())
    for seed in range(3):
        metrics, others = (seeded(u, tiny_batch(seed), seed=seed) for u in (update, copied))
        for name in metrics.keys():  # noqa: SIM118
            assert torch.equal(metrics[name], others[name]), name
    for one, other in zip(update.components.values(), copied.components.values(), strict=True):
        torch.testing.assert_close(other.state_dict(), one.state_dict(), rtol=0, atol=0)
    now = copied.loss.state_dict()
    for part in ("world_model_params", "policy_prior_params", "q_ensemble_params", "target_q"):
        assert any(not torch.equal(now[k], start[k]) for k in now if k.startswith(part)), part


def test_an_optimiser_copied_with_its_loss_holds_the_copys_parameters():
    loss = tiny_loss()
    optimizer = torch.optim.Adam(loss.parameters())
    for copied, its_optimizer in (
        deepcopy((loss, optimizer)),
        reversed(deepcopy((optimizer, loss))),
    ):
        held = {id(p) for group in its_optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in copied.parameters()}


# ---------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_weight_is_a_parameter_under_any_default_dtype(dtype):
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        q_ensemble, heads = QEnsemble(16, 2, 8), AuxiliaryValueHeads(16, 2, 101)
        assert len(list(q_ensemble.parameters())) == 10 and len(list(heads.parameters())) == 2
        assert not list(q_ensemble.buffers()) and not list(heads.buffers())
        if dtype == torch.float64:
            assert tiny_loss().rho.dtype == torch.float64
        else:
            with pytest.raises(ValueError, match=rf"weights are {dtype}; they must be float32"):
                tiny_loss()
    finally:
        torch.set_default_dtype(default)
