"""Compiled and in bfloat16: the same mathematics."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny import seeded, tiny_batch, tiny_loss, tiny_planner, tiny_planner_input
from torch import nn

from torchrl_tdmpc import TDMPC2Planner, make_networks
from torchrl_tdmpc.modules import (
    MODEL_SIZES,
    Execution,
    Linear,
    NormedLinear,
    SymlogTwoHot,
    mish,
)
from torchrl_tdmpc.trainers import TDMPC2Update

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


@pytest.mark.parametrize(
    ("setting", "choices"),
    [
        ({"compile": True}, "off, default, max"),
        ({"precision": "half"}, "float32, bfloat16"),
    ],
)
def test_unknown_words_are_refused(setting, choices):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is .*; the choices are {choices}"):
        Execution(**setting)


@pytest.mark.compiled
def test_compiled_with_the_long_search_is_what_is_written():
    """``default`` is held to the published numbers in test_parity."""
    layer = seeded(NormedLinear, 16, 32)
    run = Execution("max").prepare(NormedLinear.forward, "cpu")
    x = seeded(torch.randn, 64, 16).requires_grad_()
    results = []
    for value in (run(layer, x), layer(x)):
        gradients = torch.autograd.grad(value.square().sum(), [x, *layer.parameters()])
        results.append([value, *gradients])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("halves", "tolerance", "slope_tolerance"),
    [
        (False, {"rtol": 2e-6, "atol": 2e-7}, {"rtol": 1e-5, "atol": 1e-6}),
        (True, {"rtol": 0.0, "atol": 3e-5}, {"rtol": 0.0, "atol": 1e-4}),
    ],
)
def test_compiled_mish_and_its_slope(halves, tolerance, slope_tolerance):
    """Where the exponential is a polynomial, a shorter one beside bfloat16."""
    x = torch.cat([torch.linspace(-25, 25, 4001), torch.tensor([-1e6, 1e6])]).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=halves):
        ours = torch.compile(mish, dynamic=False)(x)
    (slope,) = torch.autograd.grad(ours.sum(), x)
    exact = x.detach().double().requires_grad_()
    expected = F.mish(exact)
    (expected_slope,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(ours.double(), expected, **tolerance)
    torch.testing.assert_close(slope.double(), expected_slope, **slope_tolerance)


def test_bfloat16_adds_the_bias_in_float32():
    layer = Linear(4, 3)
    layer.bias.data.fill_(1 + 2**-12)  # bfloat16 has 1 there
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.zeros(2, 4))
    assert y.dtype == torch.float32 and (y == 1 + 2**-12).all()


def test_bfloat16_logits_are_decoded_in_float32():
    logits = torch.zeros(2, 101, dtype=torch.bfloat16)
    assert SymlogTwoHot().decode(logits).dtype == torch.float32


def test_bfloat16_bounds_the_error_of_trajectory_values():
    """At a published size, with weights that tell trajectories apart."""
    torch.manual_seed(0)
    networks = world_model, *_ = make_networks((17,), 6, MODEL_SIZES[5])
    with torch.no_grad():
        for network in networks:
            for weight in network.parameters():
                weight.add_(0.02 * torch.randn_like(weight))
    values = {}
    for precision in ("float32", "bfloat16"):
        planner = TDMPC2Planner(*networks, discount=0.99, execution=Execution(precision=precision))
        value = planner.execution.prepare(TDMPC2Planner.trajectory_value, "cpu")
        with torch.no_grad():
            latent = world_model.encode(seeded(torch.randn, 1, 17)).unsqueeze(1)
            actions = seeded(torch.rand, 1, 3, 512, 6) * 2 - 1
            noise = seeded(torch.randn, 1, 512, 6)
            values[precision] = value(planner, latent, actions, noise, torch.tensor([3, 0]))
    exact, rounded = values["float32"], values["bfloat16"]
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    error = (rounded - exact).abs()
    assert error.max() < 0.1 * exact.std()


def test_bfloat16_update_is_near_the_float32_one():
    """Losses to a few percent; weights and the optimisers' state stay float32."""
    metrics = {}
    for precision in ("float32", "bfloat16"):
        loss = seeded(tiny_loss)
        update = TDMPC2Update(loss, execution=Execution(precision=precision))
        metrics[precision] = seeded(update, tiny_batch())
        state = update.model_optimizer.state_dict()["state"].values()
        assert {entry["exp_avg"].dtype for entry in state} == {torch.float32}
        assert {weight.dtype for weight in loss.parameters()} == {torch.float32}
    for name, value in metrics["float32"].items():
        torch.testing.assert_close(metrics["bfloat16"][name], value, rtol=0.05, atol=1e-3)
    assert metrics["float32"]["reward"] != metrics["bfloat16"]["reward"]


class Elsewhere(nn.Module):
    """A module that says that its weights are on another device."""

    def __init__(self, device_type):
        super().__init__()
        self.device_type = device_type

    def parameters(self, recurse=True):
        yield SimpleNamespace(device=torch.device(self.device_type))


def test_what_runs_follows_the_module_to_another_device(monkeypatch):
    """On CUDA another compilation than on the CPU, and autocast there."""
    asked, cast = [], []

    def compile_(function, options, dynamic):
        asked.append(options)
        return function

    @contextmanager
    def autocast(device_type, dtype):
        cast.append((device_type, dtype))
        yield

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch, "autocast", autocast)
    execution = Execution("default", "bfloat16")
    prepared = execution.prepare(lambda module, x: x + 1, "cpu")
    module, x = Elsewhere("cpu"), torch.zeros(1)
    assert [bool(options.get("triton.cudagraphs")) for options in asked] == [False]
    first = prepared(module, x)
    module.device_type = "cuda"
    for _ in range(2):
        assert torch.equal(prepared(module, x), first)
    module.device_type = "cpu"
    prepared(module, x)
    assert [bool(options.get("triton.cudagraphs")) for options in asked] == [False, True]
    assert [device for device, _ in cast] == ["cpu", "cuda", "cuda", "cpu"]


def test_a_planner_runs_where_its_weights_are():
    planner = tiny_planner().to("meta")
    for prepared in (planner._refine, planner._policy_trajectories):
        prepared.function = lambda module: next(module.parameters()).device.type
        prepared._runs.clear()
        assert prepared(planner) == "meta" and set(prepared._runs) == {"meta"}


def test_other_devices_run_eagerly_in_float32():
    layer, x = nn.Linear(2, 3), torch.ones(1, 2)
    prepared = Execution().prepare(nn.Linear.forward, "mps")
    assert torch.equal(prepared(layer, x), layer(x))
    for execution in (Execution("default"), Execution(precision="bfloat16")):
        with pytest.raises(ValueError, match=r"networks are on .mps. .*; beyond cpu, cuda"):
            execution.prepare(nn.Linear.forward, "mps")


@pytest.mark.compiled
def test_a_planner_that_its_user_compiles_plans_as_written():
    planner, data = tiny_planner(), tiny_planner_input(2)
    torch.compiler.reset()
    compiled = torch.compile(planner, options={"fallback_random": True})
    plans = [seeded(plan, data.clone()) for plan in (planner, compiled)]
    for key in ("action", ("next", "_previous_mean")):
        torch.testing.assert_close(plans[1][key], plans[0][key], rtol=1e-4, atol=1e-5)
