"""Networks, plans, losses and updates keep to the device of their weights, numbers included.

No GPU is needed. Where torch is built for CUDA, its tensors are faked: they have no numbers, and
the backward pass alone is left out. Where it is not, the meta device stands for CUDA.
``make gpu-check`` runs this file with such a build.
"""

from __future__ import annotations

import sys

import pytest
import torch
from device_modes import OneDevice
from tensordict import TensorDict
from tiny import (
    LATENT,
    tiny_batch,
    tiny_multitask_batch,
    tiny_multitask_networks,
    tiny_networks,
    tiny_planner,
    tiny_planner_input,
)
from tiny_heads import GAMMAS, tiny_heads
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_tdmpc import MultiGammaValueLoss, TDMPC2Loss, make_networks
from torchrl_tdmpc.modules import ModelSize
from torchrl_tdmpc.recording import RunRecord
from torchrl_tdmpc.trainers import SkippedUpdates, TDMPC2Update

IS_FAKED = torch.backends.cuda.is_built()
DEVICE = "cuda" if IS_FAKED else "meta"


@pytest.fixture(autouse=True)
def without_numbers(monkeypatch):
    """Faked tensors of CUDA, where this torch knows it, and what cannot be done with them."""
    if not IS_FAKED:
        yield
        return
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, **_: tensor)  # asks for numbers
    monkeypatch.setattr(nn.Module, "to", lambda module, *_, **__: module)  # all is there already
    with FakeTensorMode():
        yield


@pytest.fixture
def fused_adam(monkeypatch):
    """Adam refuses its fused form on the meta device, although it knows the shapes there."""
    adam = sys.modules["torch.optim.adam"]
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)


def made(make, *args, **kwargs):
    """What is made there: what a run does to move its parts is not what is tested."""
    with torch.device(DEVICE):
        return make(*args, **kwargs)


def pixel_loss():
    size = ModelSize(enc_dim=8, mlp_dim=8, latent_dim=LATENT, num_enc_layers=1, num_q=2)
    return TDMPC2Loss(*make_networks((9, 64, 64), 2, size), discount=0.9)


def heads_loss(bootstrap):
    return MultiGammaValueLoss(tiny_heads(), GAMMAS, bootstrap=bootstrap)


def pixel_batch():
    batch = tiny_batch()
    frames = torch.zeros(*batch.shape, 9, 64, 64, dtype=torch.uint8)
    batch["observation"] = batch["next", "observation"] = frames
    return batch


CASES = {
    "state": (lambda: TDMPC2Loss(*tiny_networks(episodic=True), discount=0.9), tiny_batch),
    "several tasks": (lambda: TDMPC2Loss(*tiny_multitask_networks()), tiny_multitask_batch),
    "pixels": (pixel_loss, pixel_batch),
}


def fill_gradients(monkeypatch, update: TDMPC2Update) -> None:
    """Torch's backward pass asks for a real GPU, even of faked tensors: leave it out."""

    def backward(loss):
        for optimizer in (update.model_optimizer, update.actor_optimizer):
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)


def on_device(data: TensorDict) -> TensorDict:
    return data.apply(lambda x: torch.empty_like(x, device=DEVICE))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mpc", [True, False])
@pytest.mark.parametrize("explore", [True, False])
def test_a_plan_stays_on_its_device(case, mpc, explore):
    make_loss, make_batch = CASES[case]
    loss = made(make_loss)
    networks = loss.world_model, loss.policy_prior, loss.q_ensemble
    planner = made(tiny_planner, networks=networks, discount=loss.discount, mpc=mpc)
    data = tiny_planner_input(5)
    data.update(make_batch()[:, 0].select("observation", "task", strict=False))
    data = on_device(data)
    mode = ExplorationType.RANDOM if explore else ExplorationType.DETERMINISTIC
    with set_exploration_type(mode), OneDevice(DEVICE):
        out = planner(data)
    assert out["action"].device.type == out["next", "_previous_mean"].device.type == DEVICE


@pytest.mark.parametrize(
    ("case", "bootstrap"),
    [*((case, None) for case in CASES), ("state", "primary"), ("state", "self")],
)
def test_an_update_and_its_record_stay_on_their_device(monkeypatch, fused_adam, case, bootstrap):
    make_loss, make_batch = CASES[case]
    loss, batch = made(make_loss), on_device(make_batch())
    heads = [] if bootstrap is None else [made(heads_loss, bootstrap)]
    update = TDMPC2Update(loss, heads)
    if IS_FAKED:
        fill_gradients(monkeypatch, update)
    record = RunRecord(update.metric_names, device=DEVICE)
    skipped = SkippedUpdates(limit=1)
    for _ in range(2):
        with OneDevice(DEVICE):
            metrics = update(batch)
            record.update(metrics)
        skipped.add(metrics["skipped_updates"])  # to a zero of the CPU, the first time
    assert {x.device.type for x in metrics.values()} == {DEVICE}
    assert skipped._in_a_row.device.type == DEVICE
