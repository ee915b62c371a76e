"""What a subclass overrides is used, and what it adds is kept."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tiny import (
    ACTION,
    HORIZON,
    seeded,
    tiny_batch,
    tiny_draws,
    tiny_loss,
    tiny_networks,
    tiny_planner_input,
)

from torchrl_tdmpc import TDMPC2Loss, TDMPC2Planner
from torchrl_tdmpc.modules import Execution
from torchrl_tdmpc.planners.plan import Elites
from torchrl_tdmpc.trainers import TDMPC2Update

COMPILE = ["off", "default"]


@pytest.fixture(autouse=True)
def compile_anew():
    torch.compiler.reset()


class ConstantPlanner(TDMPC2Planner):
    """Its distribution is what the policy proposes, and it proposes one number everywhere."""

    def policy_trajectories(self, latent, eps, *args):
        return torch.full_like(eps, 0.25)

    def refine(self, latent, policy_actions, mean, std, *args):
        mean = policy_actions.mean(2)
        score = torch.ones_like(mean[:, 0])
        elites = Elites(score, score, policy_actions[:, 0, : mean.shape[-1]])
        return mean, std, elites, score.isnan().sum(1)


@pytest.mark.parametrize("compile", COMPILE)
def test_overridden_planning_is_used(compile):
    networks = world_model, *_ = tiny_networks()
    planner = ConstantPlanner(
        *networks,
        discount=0.9,
        num_samples=24,
        num_elites=ACTION,
        num_pi_trajs=4,
        execution=Execution(compile),
    )
    latent = world_model.encode(tiny_planner_input(2)["observation"])
    plan = planner.plan(latent, torch.zeros(2, HORIZON, ACTION), explore=False)
    assert (plan.mean == 0.25).all() and (plan.action == 0.25).all()


class PullingLoss(TDMPC2Loss):
    """Its policy loss is the size of the policy's weights alone, and its model has a term more."""

    def model_loss(self, batch, **kwargs):
        losses = super().model_loss(batch, **kwargs)
        losses["loss_size"] = losses["rollout", "latent"].square().mean()
        return losses

    def actor_loss(self, rollout, **kwargs):
        size = sum(p.square().sum() for p in self.policy_prior.parameters())
        unknown = torch.zeros(())
        return TensorDict(
            loss_actor=size,
            loss_pull=2 * size,
            actor=size.detach(),
            entropy=unknown,
            scaled_entropy=unknown,
            value_scale=unknown,
        )


@pytest.mark.parametrize("compile", COMPILE)
def test_overridden_policy_loss_is_used(compile):
    update = TDMPC2Update(tiny_loss(loss_class=PullingLoss))
    if compile != "off":  # the policy's loss alone, which is quick to compile
        update._actor_loss = TDMPC2Update(update.loss, execution=Execution(compile))._actor_loss
    size = sum(p.square().sum() for p in update.loss.policy_prior.parameters())
    metrics = update(tiny_batch())
    torch.testing.assert_close(metrics["actor"], size.detach())


def test_further_losses_are_kept():
    batch = tiny_batch()
    loss = tiny_loss(loss_class=PullingLoss)
    losses = loss(batch)
    assert set(losses.keys()) == {*loss.out_keys, "loss_size", "loss_pull"}
    rollout = seeded(loss.model_loss, batch)["rollout"]
    torch.testing.assert_close(losses["loss_size"], rollout["latent"].square().mean())
    update = TDMPC2Update(loss)
    metrics = update(batch, model_draws=tiny_draws()[0])
    assert set(metrics.keys()) == {*update.metric_names, "loss_size", "loss_pull"}
    torch.testing.assert_close(metrics["loss_size"], losses["loss_size"].detach())
    assert metrics["loss_pull"] == 2 * metrics["loss_actor"]


def test_selected_out_keys_leave_further_losses_out():
    loss = tiny_loss(loss_class=PullingLoss)
    loss.select_out_keys("loss_value")
    assert list(loss(tiny_batch()).keys()) == ["loss_value"]
