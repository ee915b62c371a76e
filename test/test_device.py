"""Networks, plans, losses and updates keep to the device of their weights, numbers included.

No GPU is needed. Tensors without numbers stand for those of one: on the meta device, which every
build of torch has, and, with a build for CUDA (``make gpu-check``), on CUDA, where every operation
also takes the path that it takes there.
"""

from __future__ import annotations

import contextlib
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
from torch._subclasses import FakeTensorMode
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_tdmpc import MultiGammaValueLoss, TDMPC2Loss, make_networks
from torchrl_tdmpc.modules import ModelSize
from torchrl_tdmpc.recording import RunRecord
from torchrl_tdmpc.trainers import SkippedUpdates, TDMPC2Update

needs_cuda_build = pytest.mark.skipif(
    torch.version.cuda is None, reason="this build of torch has no CUDA; make gpu-check has one"
)


@pytest.fixture(params=["meta", pytest.param("cuda", marks=needs_cuda_build)])
def device(request, monkeypatch):
    """The kind of device; operations on it give shapes and devices, but compute no numbers."""
    mode = FakeTensorMode() if request.param == "cuda" else contextlib.nullcontext()
    if request.param == "meta":  # which Adam refuses, although its fused form has shapes for it
        adam = sys.modules["torch.optim.adam"]
        monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)
    else:  # it looks at numbers
        monkeypatch.setattr(torch.nn.init, "trunc_normal_", torch.nn.init.normal_)
    with mode:
        yield request.param


def made_on(device, make, *args, **kwargs):
    """What is made there: what a run does to move its parts is not what is tested."""
    with torch.device(device):
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


def on(device, data: TensorDict) -> TensorDict:
    return data.apply(lambda x: torch.empty_like(x, device=device))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mpc", [True, False])
@pytest.mark.parametrize("explore", [True, False])
def test_a_plan_stays_on_its_device(device, case, mpc, explore):
    make_loss, make_batch = CASES[case]
    loss = made_on(device, make_loss)
    networks = loss.world_model, loss.policy_prior, loss.q_ensemble
    planner = made_on(device, tiny_planner, networks=networks, discount=loss.discount, mpc=mpc)
    data = tiny_planner_input(5)
    data.update(make_batch()[:, 0].select("observation", "task", strict=False))
    data = on(device, data)
    mode = ExplorationType.RANDOM if explore else ExplorationType.DETERMINISTIC
    with set_exploration_type(mode), OneDevice(device):
        out = planner(data)
    assert out["action"].device.type == out["next", "_previous_mean"].device.type == device


@pytest.mark.parametrize(
    ("case", "bootstrap"),
    [*((case, None) for case in CASES), ("state", "primary"), ("state", "self")],
)
def test_an_update_and_its_record_stay_on_their_device(device, case, bootstrap):
    make_loss, make_batch = CASES[case]
    loss, batch = made_on(device, make_loss), on(device, make_batch())
    heads = [] if bootstrap is None else [made_on(device, heads_loss, bootstrap)]
    update = TDMPC2Update(loss, heads)
    record = RunRecord(update.metric_names, device=device)
    skipped = SkippedUpdates(limit=1)
    for _ in range(2):
        with OneDevice(device):
            metrics = update(batch)
            record.update(metrics)
        skipped.add(metrics["skipped_updates"])  # to a zero of the CPU, the first time
    assert {x.device.type for x in metrics.values()} == {device}
    assert skipped._in_a_row.device.type == device
