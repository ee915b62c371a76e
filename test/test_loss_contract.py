"""What every LossModule promises: keys, dispatch, reduction, copies, dtypes and state."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from typing import NamedTuple

import pytest
import torch
from tensordict import TensorDict, assert_close
from tiny import (
    seeded,
    tiny_batch,
    tiny_loss,
    tiny_multitask_batch,
    tiny_multitask_loss,
    total,
)
from torchrl.objectives import LossModule, SoftUpdate


class Case(NamedTuple):
    make: Callable[..., LossModule]  #: called with seed and reduction
    batch: Callable[[], TensorDict]  #: what forward reads


CASES = {
    "tdmpc2": Case(lambda **kwargs: tiny_loss(episodic=False, **kwargs), tiny_batch),
    "tdmpc2_episodic": Case(tiny_loss, tiny_batch),
    "tdmpc2_multitask": Case(tiny_multitask_loss, tiny_multitask_batch),
}
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def trained(loss: LossModule) -> list[str]:
    """The networks whose parameters a loss owns."""
    names = [name for name, _ in loss.named_children() if name.endswith("_params")]
    return [name.removesuffix("_params") for name in names if not name.startswith("target_")]


def targets(loss: LossModule) -> dict[str, TensorDict]:
    """Target parameters by the name of their network."""
    return {
        name.removeprefix("target_").removesuffix("_params"): params
        for name, params in loss.named_children()
        if name.startswith("target_")
    }


def assert_computes_with_its_parameters(loss: LossModule) -> None:
    for name in trained(loss):
        network = TensorDict.from_module(getattr(loss, name))
        params = getattr(loss, f"{name}_params")
        assert set(network.keys(True, True)) == set(params.keys(True, True))
        for key in network.keys(True, True):
            assert network[key] is params[key], (name, key)


def in_keywords(loss: LossModule, batch: TensorDict) -> dict[str, torch.Tensor]:
    return {k if isinstance(k, str) else "_".join(k): batch[k] for k in loss.in_keys}


def test_unknown_key_is_refused(case):
    with pytest.raises(ValueError, match="not_a_key"):
        case.make().set_keys(not_a_key="x")


@pytest.mark.parametrize("rename", [lambda k: f"my_{k}", lambda k: ("deep", "er", k)])
def test_renamed_keys_give_the_same_losses(case, rename):
    loss, batch = case.make().eval(), case.batch()
    expected = seeded(loss, batch)
    default_in_keys = list(loss.in_keys)
    loss.set_keys(**{name: rename(name) for name in asdict(loss.tensor_keys)})
    assert not set(loss.in_keys) & set(default_in_keys)

    renamed = TensorDict(batch_size=batch.batch_size)
    for new, old in zip(loss.in_keys, default_in_keys, strict=True):
        renamed.set(new, batch.get(old))
    assert_close(seeded(loss, renamed), expected, rtol=0, atol=0)

    loss.set_keys(**dict.fromkeys(asdict(loss.tensor_keys)))
    assert loss.in_keys == default_in_keys


def test_reads_nothing_beyond_in_keys_and_writes_out_keys(case):
    loss, batch = case.make().eval(), case.batch()
    expected = seeded(loss, batch)
    losses = seeded(loss, batch.select(*loss.in_keys))
    assert set(losses.keys()) == set(loss.out_keys)
    assert_close(losses, expected, rtol=0, atol=0)
    for key in loss.in_keys:
        with pytest.raises(KeyError, match=key if isinstance(key, str) else key[-1]):
            loss(batch.exclude(key))


def test_keyword_call_equals_tensordict_call(case):
    loss, batch = case.make().eval(), case.batch()
    expected = seeded(loss, batch)
    values = seeded(loss, **in_keywords(loss, batch))
    for key, value in zip(loss.out_keys, values, strict=True):
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)


def test_selected_out_keys(case):
    loss, batch = case.make().eval(), case.batch()
    name = next(key for key in loss.out_keys if key.startswith("loss_"))
    expected = seeded(loss, batch)[name]
    loss.select_out_keys(name)
    losses = seeded(loss, batch)
    assert list(losses.keys()) == [name]
    torch.testing.assert_close(losses[name], expected, rtol=0, atol=0)
    value = seeded(loss, **in_keywords(loss, batch))
    torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_mean_and_sum_reduce_what_none_returns(case):
    batch = case.batch()
    mean, sum_, none = (
        seeded(case.make(reduction=reduction), batch) for reduction in ("mean", "sum", "none")
    )
    for name, terms in none.items():
        if not name.startswith("loss_"):
            continue
        assert terms.dim() == 2 and len(terms) == len(batch)
        torch.testing.assert_close(terms.mean(), mean[name])
        torch.testing.assert_close(terms.sum(), sum_[name])
        assert not torch.allclose(mean[name], sum_[name])


def test_unknown_reduction_is_refused(case):
    with pytest.raises(ValueError, match=r"reduction is 'median'.*mean, sum, none"):
        case.make(reduction="median")


def test_losses_have_gradients_and_metrics_have_none(case):
    losses = case.make()(case.batch())
    for name, value in losses.items():
        assert value.requires_grad == name.startswith("loss_"), name


def test_input_is_not_changed(case):
    batch = case.batch()
    before = batch.clone()
    tensors = dict(batch.items(True, True))
    total(case.make()(batch)).backward()
    assert set(batch.keys(True, True)) == set(tensors)
    for key, tensor in tensors.items():
        assert batch[key] is tensor
        assert torch.equal(tensor, before[key])


def test_same_seed_same_losses(case):
    loss, batch = case.make().eval(), case.batch()
    first, again, other = (seeded(loss, batch, seed=seed) for seed in (3, 3, 4))
    assert_close(again, first, rtol=0, atol=0)
    assert not torch.equal(total(other), total(first))


def test_state_dict_round_trip(case):
    batch = case.batch()
    loss, other = case.make(seed=0), case.make(seed=1)
    seeded(loss, batch)  # moves running statistics
    loss.eval(), other.eval()
    expected = seeded(loss, batch)
    assert not torch.equal(total(seeded(other, batch)), total(expected))
    state = loss.state_dict()
    pointers = [tensor.data_ptr() for tensor in state.values()]
    assert len(set(pointers)) == len(pointers)
    other.load_state_dict(state)
    assert_close(seeded(other, batch), expected, rtol=0, atol=0)
    assert_computes_with_its_parameters(other)


def test_deepcopy_is_independent_and_computes_with_its_own_parameters(case):
    loss, batch = case.make(), case.batch()
    copy = deepcopy(loss)
    before = deepcopy(loss.state_dict())
    assert_computes_with_its_parameters(copy)
    pointers = {t.data_ptr() for t in loss.state_dict().values()}
    assert pointers.isdisjoint(t.data_ptr() for t in copy.state_dict().values())
    assert list(copy.state_dict()) == list(before)
    assert_close(seeded(deepcopy(copy), batch), seeded(deepcopy(loss), batch), rtol=0, atol=0)

    optimizer = torch.optim.SGD(copy.parameters(), lr=1.0)
    total(seeded(copy, batch)).backward()
    optimizer.step()
    for key, tensor in loss.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    for name in trained(copy):
        for key, value in TensorDict.from_module(getattr(copy, name)).items(True, True):
            original = TensorDict.from_module(getattr(loss, name))[key]
            assert torch.equal(value, original) != value.requires_grad, (name, key)


def test_double_precision(case):
    loss = case.make().double()
    batch = case.batch().apply(lambda t: t.double() if t.is_floating_point() else t)
    assert {t.dtype for t in loss.state_dict().values()} == {torch.float64}
    assert_computes_with_its_parameters(loss)
    losses = loss(batch)
    assert {value.dtype for value in losses.values()} == {torch.float64}
    total(losses).backward()
    gradients = [p.grad for p in loss.parameters() if p.requires_grad]
    assert {gradient.dtype for gradient in gradients} == {torch.float64}


@pytest.mark.parametrize("device", DEVICES)
def test_to_device(case, device):
    loss = case.make().to(device)
    assert {t.device.type for t in loss.state_dict().values()} == {device}
    assert_computes_with_its_parameters(loss)
    losses = loss(case.batch().to(device))
    assert {value.device.type for value in losses.values()} == {device}
    total(losses).backward()


def test_targets_are_state_but_not_parameters(case):
    loss = case.make()
    parameters = {id(p) for p in loss.parameters()}
    for name, params in targets(loss).items():
        for key, target in params.items(True, True):
            assert id(target) not in parameters
            assert not target.requires_grad
            assert ".".join([f"target_{name}_params", *key]) in loss.state_dict()


@pytest.mark.parametrize("copied", [False, True])
def test_soft_update_moves_targets_by_tau(case, copied):
    loss = deepcopy(case.make()) if copied else case.make()
    update = SoftUpdate(loss, tau=0.25)
    for params in targets(loss).values():
        params.data.apply_(lambda t: t.normal_())
    before = {name: params.data.clone() for name, params in targets(loss).items()}
    update.step()
    for name, params in targets(loss).items():
        online = TensorDict.from_module(getattr(loss, name))
        for key, old in before[name].items(True, True):
            expected = 0.75 * old + 0.25 * online[key]
            torch.testing.assert_close(params[key], expected.detach(), rtol=1e-6, atol=1e-6)
