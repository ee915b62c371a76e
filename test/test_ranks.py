"""A batch divided among processes: each takes the step of the whole batch."""

from __future__ import annotations

import pytest
import torch
from tiny import (
    HORIZON,
    LATENT,
    tiny_batch,
    tiny_draws,
    tiny_loss,
    tiny_multitask_batch,
    tiny_multitask_loss,
)
from torch import distributed, multiprocessing

from torchrl_tdmpc import AuxiliaryValueHeads, MultiGammaValueLoss, TDMPC2Update

BATCH, UPDATES = 8, 3


def updates(name, ranks=None):
    """The update of one case, and its batches with their draws."""
    torch.manual_seed(0)
    if name == "tasks":
        loss, auxiliary = tiny_multitask_loss(), []
    else:
        loss = tiny_loss()
        heads = AuxiliaryValueHeads(LATENT, 1, loss.q_ensemble.two_hot.num_bins, "joint")
        auxiliary = [MultiGammaValueLoss(heads, [0.9, 0.97], two_hot=loss.q_ensemble.two_hot)]
    with torch.no_grad():
        for parameter in loss.q_ensemble.parameters():
            parameter *= 3  # values differ by more than 1, below which the scale is 1
    update = TDMPC2Update(loss, auxiliary, lr=0.01, ranks=ranks)
    loss.value_scale.tau = 0.5
    batches = [tiny_batch(seed, batch=BATCH) for seed in range(UPDATES)]
    if name == "tasks":
        tasks = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1]).unsqueeze(1).expand(BATCH, HORIZON)
        assert set(tiny_multitask_batch().keys()) == {*batches[0].keys(), "task"}
        batches = [batch.set("task", tasks) for batch in batches]
    return update, [(batch, *tiny_draws(i, batch=BATCH)) for i, batch in enumerate(batches)]


def part_of(draws, part):
    return {k: v[part] if k == "policy_eps" else v for k, v in draws.items()}


def trained(name, rank=None, ranks=None):
    """Every number of an update after some steps."""
    update, batches = updates(name, ranks)
    part = slice(None) if rank is None else slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    for batch, model_draws, actor_draws in batches:
        metrics = update(batch[part], part_of(model_draws, part), part_of(actor_draws, part))
        assert metrics["skipped_updates"] == 0
    state = {k: v for k, v in update.loss.state_dict().items() if isinstance(v, torch.Tensor)}
    norms = {name: metrics[name] for name in ("grad_norm_model", "grad_norm_actor", "value_scale")}
    return state | norms


def work(rank, name, file):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    ours = trained(name, rank, distributed.group.WORLD)
    distributed.destroy_process_group()
    whole = trained(name)
    assert whole["value_scale"] != 1  # it moved
    start = updates(name)[0].loss.state_dict()
    for key, value in ours.items():
        torch.testing.assert_close(value, whole[key], rtol=2e-4, atol=2e-6, msg=key)
    moved = [k for k, v in start.items() if torch.is_tensor(v) and not torch.equal(v, ours[k])]
    assert len(moved) > len(start) / 2


@pytest.mark.parametrize("name", ["auxiliary heads", "tasks"])
def test_two_processes_take_the_step_of_the_whole_batch(tmp_path, name):
    multiprocessing.spawn(work, (name, tmp_path / "rendezvous"), nprocs=2)


def test_a_sum_is_refused(tmp_path):
    file = tmp_path / "rendezvous"
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="reduction of TDMPC2Loss is 'sum'; with ranks an"):
            TDMPC2Update(tiny_loss(reduction="sum"), ranks=distributed.group.WORLD)
    finally:
        distributed.destroy_process_group()
