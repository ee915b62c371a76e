"""MultiGammaValueLoss: its values restated in NumPy, its layouts, keys, copies and state."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import test_loss_contract as contract
import torch
from tensordict import TensorDict, assert_close
from tensordict.nn import TensorDictModule, TensorDictSequential
from tiny import BATCH, HORIZON, LATENT
from tiny_heads import GAMMAS, NUM_BINS, doubled, tiny_heads, tiny_heads_loss, tiny_rollout
from torch import nn
from torchrl.objectives import SoftUpdate

from torchrl_tdmpc import AuxiliaryValueHeads, MultiGammaValueLoss, SymlogTwoHot

LABELS = ["g0.5", "g0.97"]
BOOTSTRAPS = ("primary", "self")
LAYOUTS = ("joint", "separate")


# ---------------------------------------------------------------- the rules in NumPy, one number
# at a time: bins -10, -9.8 .. 10 in symlog space, y = r + gamma (1 - terminated) V(s')


def np_value(logits):
    share = np.exp(logits - logits.max())
    position = (share / share.sum() * np.linspace(-10, 10, NUM_BINS)).sum()
    return math.copysign(math.exp(abs(position)) - 1, position)


def np_cross_entropy(logits, y):
    position = math.copysign(math.log(1 + abs(y)), y)
    position = (min(max(position, -10.0), 10.0) + 10) / 0.2
    code = np.maximum(0, 1 - abs(np.arange(NUM_BINS) - position))
    log_share = logits - logits.max()
    log_share -= math.log(np.exp(log_share).sum())
    return -(code * log_share).sum()


def np_heads(params, layout, head):
    """One head's weight ``[bins, L]`` and bias: joint rows are head 0's bins, then head 1's."""
    if layout == "separate":
        layer, rows = params["params", str(head)], slice(None)
    else:
        layer, rows = params["params"], slice(head * NUM_BINS, (head + 1) * NUM_BINS)
    return layer["weight"][rows].detach().numpy(), layer["bias"][rows].detach().numpy()


def restate(loss, rollout):
    """Weighted terms ``[B, H]``, and cross-entropy, prediction and target, each ``[B, H, K]``."""
    latent, following = rollout["latent"].numpy(), rollout["next"]
    shape = (BATCH, HORIZON, len(loss.gammas) - 1)
    term, (ce, prediction, target) = np.zeros(shape[:2]), np.zeros((3, *shape))
    for b, t, i in np.ndindex(*shape):
        weight, bias = np_heads(loss.heads_params, loss.heads.layout, i)
        logits = weight @ latent[b, t] + bias
        if loss.bootstrap == "primary":
            value = following["state_value"][b, t].item()
        else:
            weight, bias = np_heads(loss.target_heads_params, loss.heads.layout, i)
            value = np_value(weight @ following["target_latent"][b, t].numpy() + bias)
        ended = following["terminated"][b, t].item()
        y = following["reward"][b, t].item() + (0.0 if ended else loss.gammas[1 + i] * value)
        ce[b, t, i], prediction[b, t, i], target[b, t, i] = (
            np_cross_entropy(logits, y),
            np_value(logits),
            y,
        )
        term[b, t] += loss.loss_weight * loss.rho**t * ce[b, t, i]
    return term, ce, prediction, target


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bootstrap", BOOTSTRAPS)
def test_equals_the_rules_restated(layout, bootstrap):
    settings = {"layout": layout, "bootstrap": bootstrap, "rho": 0.7, "loss_weight": 0.3}
    loss = tiny_heads_loss(reduction="none", **settings).double()
    rollout = doubled(tiny_rollout())
    reward, terminated = rollout["next", "reward"], rollout["next", "terminated"]
    assert (reward == 0).any() and (reward > 3e4).any() and (reward < -3e4).any()
    assert terminated.any() and not terminated.all()

    term, ce, prediction, target = restate(loss, rollout)
    assert abs(ce[..., 0] - ce[..., 1]).min() > 1e-3  # each discount's numbers are its own
    output = loss(rollout)
    np.testing.assert_allclose(output["loss_multi_gamma"].detach(), term, rtol=1e-9)
    for i, label in enumerate(LABELS):
        for name, expected in {
            "aux_value_ce": ce[..., i].mean(),
            "aux_value_mean": prediction[..., i].mean(),
            "aux_value_std": prediction[..., i].std(),
        }.items():
            assert output[f"{name}/{label}"].item() == pytest.approx(expected, rel=1e-9), label
    assert output["aux_value_ce/mean"].item() == pytest.approx(ce.mean(), rel=1e-9)
    examined = loss.examine(rollout)
    np.testing.assert_allclose(examined["target"], target, rtol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_heads_do_not_mix_discounts_with_bins(layout):
    """Heads that are certain of their own target lose nothing; each in the other's place does."""
    loss = tiny_heads_loss(layout=layout)
    rollout = tiny_rollout()
    following = rollout["next"]
    following["reward"].fill_(1.0)
    following["terminated"].fill_(False)
    following["state_value"].fill_(40.0)
    targets = 1.0 + torch.tensor(GAMMAS[1:]) * 40.0  # 21 and 39.8, in different bins
    code = SymlogTwoHot().encode(targets.unsqueeze(-1))
    own = (code + 1e-12).log()
    entropy = -(code * own).sum(-1)

    for order in ([0, 1], [1, 0]):
        for parameter in loss.heads.parameters():
            parameter.data.zero_()
        if layout == "joint":
            loss.heads.params["bias"].data.copy_(torch.cat([own[i] for i in order]))
        else:
            for head, i in enumerate(order):
                loss.heads.params[str(head), "bias"].data.copy_(own[i])
        output = loss(rollout)
        for head, (label, i) in enumerate(zip(LABELS, order, strict=True)):
            mean, ce = output[f"aux_value_mean/{label}"], output[f"aux_value_ce/{label}"]
            torch.testing.assert_close(mean, targets[i], rtol=1e-4, atol=0)
            if i == head:
                torch.testing.assert_close(ce, entropy[head], rtol=1e-4, atol=1e-4)
            else:
                assert ce > 10


def test_loss_weight_counts_for_each_discount():
    rollout = tiny_rollout()
    both = tiny_heads_loss(loss_weight=0.5)
    heads = [tiny_heads(gammas=GAMMAS[:2]) for _ in range(2)]
    alone = []
    for i, one in enumerate(heads):
        rows = slice(i * NUM_BINS, (i + 1) * NUM_BINS)
        for name in ("weight", "bias"):
            one.params[name].data.copy_(both.heads.params[name][rows])
        loss = MultiGammaValueLoss(one, (GAMMAS[0], GAMMAS[1 + i]), loss_weight=0.5)
        alone.append(loss(rollout)["loss_multi_gamma"])
    torch.testing.assert_close(both(rollout)["loss_multi_gamma"], alone[0] + alone[1])


def test_target_carries_no_gradient():
    for bootstrap in BOOTSTRAPS:
        loss, rollout = tiny_heads_loss(bootstrap=bootstrap), tiny_rollout()
        for name in ("reward", "state_value", "target_latent"):
            rollout["next", name].requires_grad_()
        rollout["latent"].requires_grad_()
        loss(rollout)["loss_multi_gamma"].backward()
        assert all(rollout["next", n].grad is None for n in ("reward", "state_value"))
        assert rollout["next", "target_latent"].grad is None
        assert rollout["latent"].grad.abs().sum() > 0
        assert all(p.grad.abs().sum() > 0 for p in loss.parameters())


def test_padded_steps_do_not_count():
    loss, rollout = tiny_heads_loss(), tiny_rollout()
    mask = torch.ones(BATCH, HORIZON, dtype=torch.bool)
    mask[1, 2] = mask[3, 1:] = False
    terms = tiny_heads_loss(reduction="none")(rollout)["loss_multi_gamma"]
    rollout["next", "reward"][~mask] = 1e3
    rollout["collector", "mask"] = mask
    padded = loss(rollout)
    torch.testing.assert_close(padded["loss_multi_gamma"], terms[mask].mean())


# ---------------------------------------------------------------- heads


@pytest.mark.parametrize(("source", "target"), [LAYOUTS, LAYOUTS[::-1]])
def test_layouts_hold_the_same_functions(source, target):
    first, second = tiny_heads(0, layout=source), tiny_heads(1, layout=target)
    latent = torch.randn(4, 3, LATENT)
    assert not torch.allclose(second.logits(latent), first.logits(latent))
    second.copy_from(first)
    torch.testing.assert_close(second.logits(latent), first.logits(latent))
    written = second(TensorDict(latent=latent, batch_size=(4, 3)))["value_logits"]
    torch.testing.assert_close(written, first.logits(latent))
    copied = tiny_heads(2, layout=source)
    copied.copy_from(second)
    assert all(torch.equal(p, q) for p, q in zip(copied.parameters(), first.parameters()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_heads_begin_at_zero_and_draw_nothing(layout):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    heads = AuxiliaryValueHeads(LATENT, 2, NUM_BINS, layout)
    MultiGammaValueLoss(heads, GAMMAS, bootstrap="self")
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(p.any() for p in heads.parameters())
    assert sum(p.numel() for p in heads.parameters()) == 2 * NUM_BINS * (LATENT + 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AuxiliaryValueHeads(LATENT, 2, 101, "both"), ("both", "joint", "separate")),
        (lambda: AuxiliaryValueHeads(LATENT, 0, 101), ("num_heads is 0", "at least 1")),
        (
            lambda: tiny_heads(gammas=GAMMAS).copy_from(tiny_heads(gammas=GAMMAS[:2])),
            ("[1, 101, 16]", "[2, 101, 16]"),
        ),
        (
            lambda: MultiGammaValueLoss(tiny_heads(), GAMMAS[:2]),
            ("gammas", "[0.9, 0.5]", "2 heads need 3"),
        ),
        (
            lambda: MultiGammaValueLoss(tiny_heads(), (0.9, 0.5, 1.0)),
            ("gammas", "1.0", "between 0 and 1"),
        ),
        (
            lambda: tiny_heads_loss(two_hot=SymlogTwoHot(num_bins=51)),
            ("101 bins", "51", "the same"),
        ),
        (
            lambda: tiny_heads_loss(bootstrap="own"),
            ("bootstrap", "'own'", "primary, self"),
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert all(word in str(error.value) for word in words), error.value


def test_repeated_discounts_have_names_of_their_own():
    loss = tiny_heads_loss(gammas=(0.99, 0.99, 0.97, 0.99))
    assert loss.labels == ["g0.99", "g0.97", "g0.99#2"]
    assert len(set(loss.out_keys)) == len(loss.out_keys) == 2 + 3 * 3
    assert set(loss(tiny_rollout()).keys()) == set(loss.out_keys)


# ---------------------------------------------------------------- the contract of every loss


CASES = {
    "joint": contract.Case(tiny_heads_loss, tiny_rollout),
    "separate": contract.Case(
        lambda **kwargs: tiny_heads_loss(layout="separate", **kwargs), tiny_rollout
    ),
    "self": contract.Case(
        lambda **kwargs: tiny_heads_loss(bootstrap="self", **kwargs), tiny_rollout
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


test_unknown_key_is_refused = contract.test_unknown_key_is_refused
test_renamed_keys_give_the_same_losses = contract.test_renamed_keys_give_the_same_losses
test_reads_nothing_beyond_in_keys_and_writes_out_keys = (
    contract.test_reads_nothing_beyond_in_keys_and_writes_out_keys
)
test_keyword_call_equals_tensordict_call = contract.test_keyword_call_equals_tensordict_call
test_selected_out_keys = contract.test_selected_out_keys
test_mean_and_sum_reduce_what_none_returns = contract.test_mean_and_sum_reduce_what_none_returns
test_unknown_reduction_is_refused = contract.test_unknown_reduction_is_refused
test_losses_have_gradients_and_metrics_have_none = (
    contract.test_losses_have_gradients_and_metrics_have_none
)
test_input_is_not_changed = contract.test_input_is_not_changed
test_targets_are_state_but_not_parameters = contract.test_targets_are_state_but_not_parameters


@pytest.mark.parametrize("copied", [False, True])
def test_soft_update_moves_target_heads_by_tau(copied):
    contract.test_soft_update_moves_targets_by_tau(CASES["self"], copied)


def tensors(loss):
    """The state dict without the discounts, which are no tensor."""
    return {name: value for name, value in loss.state_dict().items() if name != "_extra_state"}


def test_state_dict_round_trip(case):
    rollout = case.batch()
    loss, other = case.make(seed=0), case.make(seed=1)
    expected = loss(rollout)
    assert not torch.equal(other(rollout)["loss_multi_gamma"], expected["loss_multi_gamma"])
    pointers = [tensor.data_ptr() for tensor in tensors(loss).values()]
    assert len(set(pointers)) == len(pointers)
    other.load_state_dict(loss.state_dict())
    assert_close(other(rollout), expected, rtol=0, atol=0)
    contract.assert_computes_with_its_parameters(other)


def test_state_of_other_discounts_is_refused_before_anything_changes():
    loss, other = tiny_heads_loss(seed=0), tiny_heads_loss(seed=1, gammas=(0.9, 0.5, 0.98))
    before = deepcopy(tensors(other))
    with pytest.raises(ValueError) as error:
        other.load_state_dict(loss.state_dict())
    assert "[0.9, 0.5, 0.97]" in str(error.value) and "[0.9, 0.5, 0.98]" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in tensors(other).items())


def test_deepcopy_is_independent_and_computes_with_its_own_parameters(case):
    loss, rollout = case.make(), case.batch()
    copy, before = deepcopy(loss), deepcopy(tensors(loss))
    contract.assert_computes_with_its_parameters(copy)
    pointers = {tensor.data_ptr() for tensor in tensors(loss).values()}
    assert pointers.isdisjoint(tensor.data_ptr() for tensor in tensors(copy).values())
    assert_close(copy(rollout), loss(rollout), rtol=0, atol=0)

    optimizer = torch.optim.SGD(copy.parameters(), lr=1.0)
    copy(rollout)["loss_multi_gamma"].backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in tensors(loss).items())
    for parameter, original in zip(copy.heads.parameters(), loss.heads.parameters(), strict=True):
        assert not torch.equal(parameter, original)


def test_double_precision(case):
    loss = case.make().double()
    assert {tensor.dtype for tensor in tensors(loss).values()} == {torch.float64}
    contract.assert_computes_with_its_parameters(loss)
    output = loss(doubled(case.batch()))
    assert {value.dtype for value in output.values()} == {torch.float64}
    output["loss_multi_gamma"].backward()
    assert {p.grad.dtype for p in loss.parameters()} == {torch.float64}


def test_compiles_into_one_graph(case):
    loss, rollout = case.make(), case.batch()
    compiled = torch.compile(loss.forward, backend="eager", fullgraph=True, dynamic=False)
    assert_close(compiled(rollout), loss(rollout))


# ---------------------------------------------------------------- a world model that is not ours


def test_trains_a_plain_torchrl_module():
    """Latent, bootstrap and reward under names of its own; no part of TD-MPC2 is involved."""
    torch.manual_seed(0)
    encoder, critic = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 8)), nn.Linear(8, 1)
    model = TensorDictSequential(
        TensorDictModule(encoder, ["pixels"], [("state", "z")]),
        TensorDictModule(encoder, [("next", "pixels")], [("next", "state", "z_target")]),
        TensorDictModule(critic, [("next", "state", "z_target")], [("next", "critic")]),
    )
    loss = MultiGammaValueLoss(
        AuxiliaryValueHeads(latent_dim=8, num_heads=2, num_bins=51, layout="separate"),
        gammas=[0.99, 0.9, 0.95],
        two_hot=SymlogTwoHot(num_bins=51, vmin=-5, vmax=5),
        bootstrap="self",
    )
    loss.set_keys(
        latent=("state", "z"),
        target_latent=("state", "z_target"),
        state_value="critic",
        reward="gain",
        terminated="over",
    )
    target_update = SoftUpdate(loss, tau=0.1)
    pixels = torch.randn(32, 3, 4)
    following = TensorDict(
        pixels=torch.randn(32, 3, 4),
        gain=3 * pixels[..., :1],
        over=torch.zeros(32, 3, 1, dtype=torch.bool),
        batch_size=(32, 3),
    )
    data = TensorDict(pixels=pixels, next=following, batch_size=(32, 3))
    optimizer = torch.optim.Adam([*encoder.parameters(), *loss.parameters()], lr=0.01)
    before = encoder[0].weight.detach().clone()
    history = []
    for _ in range(40):
        output = loss(model(data.clone()))
        optimizer.zero_grad()
        output["loss_multi_gamma"].backward()
        optimizer.step()
        target_update.step()
        history.append(output.detach())
    for label in ("g0.9", "g0.95"):
        first, last = (history[i][f"aux_value_ce/{label}"] for i in (0, -1))
        assert first.item() == pytest.approx(math.log(51), rel=1e-5)  # the uniform distribution
        assert last < 0.75 * first, label
    assert not torch.allclose(encoder[0].weight, before)
