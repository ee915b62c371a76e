"""A further loss on the rollout is trained, logged, saved and counted without further code."""

from __future__ import annotations

import pytest
import runs
import torch
from tensordict import TensorDict
from tiny import tiny_batch, tiny_loss
from tiny_heads import tiny_heads_loss
from torchrl.objectives import LossModule

from torchrl_tdmpc import OnlineTrainer, TDMPC2Update
from torchrl_tdmpc.envs import load_task
from torchrl_tdmpc.trainers import count_parameters

MODEL = {"enc_dim": 16, "mlp_dim": 16, "latent_dim": 16}


class InverseDynamicsLoss(LossModule):
    """Predicts the action between two latents."""

    def __init__(self, latent_dim, action_dim, out_keys=("loss_inverse_dynamics",)):
        super().__init__()
        self.head = torch.nn.Linear(2 * latent_dim, action_dim)
        self.in_keys = ["latent", ("next", "latent"), "action"]
        self.out_keys = list(out_keys)

    def forward(self, rollout):
        latents = torch.cat([rollout["latent"], rollout["next", "latent"]], -1)
        error = (self.head(latents) - rollout["action"]).pow(2).mean()
        return TensorDict(dict.fromkeys(self.out_keys, error))


def sizes():
    loss = tiny_loss()
    batch = tiny_batch()
    return loss, batch, InverseDynamicsLoss(loss.world_model.latent_dim, batch["action"].shape[-1])


def test_it_trains_its_own_weights_and_the_encoder():
    loss, batch, auxiliary = sizes()
    before = auxiliary.head.weight.clone()
    with_it = TDMPC2Update(loss, [auxiliary])
    without = TDMPC2Update(tiny_loss())
    for update in (with_it, without):
        torch.manual_seed(0)
        metrics = update(batch)
        if update is with_it:
            assert metrics["loss_inverse_dynamics"] > 0
    assert not torch.equal(auxiliary.head.weight, before)
    encoders = [next(u.loss.world_model.encoder.parameters()) for u in (with_it, without)]
    assert not torch.equal(*encoders)
    counts = [count_parameters(update) for update in (with_it, without)]
    own = sum(p.numel() for p in auxiliary.parameters())
    assert counts[0]["inverse_dynamics"] == own
    assert counts[0]["total"] == counts[1]["total"] + own


def test_what_the_model_owns_is_optimised_once():
    loss, _, auxiliary = sizes()
    auxiliary.policy, auxiliary.encoder = loss.policy_prior, loss.world_model.encoder
    groups = TDMPC2Update(loss, [auxiliary]).model_optimizer.param_groups
    optimised = [id(p) for group in groups for p in group["params"]]
    assert len(optimised) == len(set(optimised))
    assert not {id(p) for p in loss.policy_prior.parameters()} & set(optimised)
    assert {id(p) for p in auxiliary.head.parameters()} <= set(optimised)


@pytest.mark.parametrize("keys", [(), ("loss_a", "loss_b"), ("error",)])
def test_a_loss_without_a_name_of_its_own_is_refused(keys):
    auxiliary = InverseDynamicsLoss(8, 2, keys)
    with pytest.raises(ValueError, match=r"must write exactly one loss_\*"):
        TDMPC2Update(tiny_loss(), [auxiliary])


def test_two_losses_of_one_name_are_refused():
    loss, _, auxiliary = sizes()
    with pytest.raises(ValueError, match=r"two losses write \['loss_inverse_dynamics'\]"):
        TDMPC2Update(loss, [auxiliary, InverseDynamicsLoss(8, 2)])


def test_targets_are_moved_with_tau():
    loss, batch, _ = sizes()
    heads = tiny_heads_loss(bootstrap="self")
    update = TDMPC2Update(loss, [heads], tau=0.25)
    before = heads.target_heads_params.data.clone()
    update(batch)
    expected = before.lerp(heads.heads_params.data, 0.25)
    close = (heads.target_heads_params.data - expected).abs() < 1e-6
    assert close.all() and not (heads.target_heads_params.data == before).all()


def make(output_dir, seed, **settings):
    """A run with the loss, whose own weights come from the seed."""
    task = load_task("dmcontrol", "cartpole-swingup", episode_length=4)
    torch.manual_seed(seed)
    return OnlineTrainer(
        task,
        model=MODEL,
        auxiliary=[InverseDynamicsLoss(16, 1)],
        output_dir=output_dir,
        seed_steps=8,
        eval_episodes=0,
        **settings,
    )


def test_it_is_logged_saved_and_restored(tmp_path):
    first = make(tmp_path, 0, steps=12)
    first.train()
    assert float(runs.rows(tmp_path / "train.csv")[-1]["loss_inverse_dynamics"]) > 0
    resumed = make(tmp_path, 1, steps=12, resume="auto")
    assert not torch.equal(weight(resumed), weight(first))
    resumed.train()
    assert torch.equal(weight(resumed), weight(first))
    steps = {int(state["step"]) for state in resumed.update.model_optimizer.state.values()}
    assert steps == {12}


def test_a_resumed_run_trains_it_bit_for_bit_as_one_that_was_not_stopped(tmp_path):
    whole = make(tmp_path / "whole", 0, steps=12)
    whole.train()
    make(tmp_path / "stopped", 0, steps=10).train()
    resumed = make(tmp_path / "stopped", 1, steps=12, resume="auto")
    resumed.train()
    assert torch.equal(weight(resumed), weight(whole))
    columns = [
        [row["loss_inverse_dynamics"] for row in runs.rows(tmp_path / name / "train.csv")]
        for name in ("whole", "stopped")
    ]
    assert columns[0] == columns[1] and columns[0][-1] != ""


def weight(trainer):
    return trainer.update.auxiliary[0].head.weight
