"""Weights between TorchRL's TD-MPC2, which its series from 0.15 on has, and ours."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from tensordict import TensorDict
from tiny import (
    ACTION,
    BATCH,
    HORIZON,
    LATENT,
    NUM_Q,
    OBSERVATION,
    scramble,
    tiny_batch,
    tiny_loss,
    tiny_networks,
)

from torchrl_tdmpc import TDMPC2Planner
from torchrl_tdmpc.planners import PlanDraws
from upstream.bridge import from_torchrl, to_torchrl

objectives = pytest.importorskip("torchrl.objectives")
if not hasattr(objectives, "TdMpc2Loss"):
    pytest.skip("this TorchRL has no TD-MPC2", allow_module_level=True)

SIZES = {"latent_dim": LATENT, "action_dim": ACTION, "mlp_dim": 16}
PLANNER = {"horizon": 2, "num_samples": 8, "num_elites": 4, "num_pi_trajs": 3, "iterations": 2}


def torchrl_loss(**kwargs):
    """TorchRL's loss with weights far from their initialisation."""
    from hydra.utils import instantiate
    from torchrl.trainers.algorithms.configs import (
        TdMpc2PolicyPriorConfig,
        TdMpc2QEnsembleConfig,
        TdMpc2WorldModelConfig,
    )

    world_model = TdMpc2WorldModelConfig(observation_dim=OBSERVATION, encoder_dim=12, **SIZES)
    q_ensemble = TdMpc2QEnsembleConfig(num_q=NUM_Q, dropout=0.0, **SIZES)
    parts = map(instantiate, (world_model, TdMpc2PolicyPriorConfig(**SIZES), q_ensemble))
    loss = objectives.TdMpc2Loss(*parts, horizon=HORIZON, discount=0.9, **kwargs)
    torch.manual_seed(3)
    scramble(loss.parameters())
    scramble(loss.q_ensemble.target_q_params.values(True, True))
    loss.scale.value.fill_(1.5)
    return loss


class Recorder:
    """What torch's generators give while it is open, in the order of the draws."""

    def __enter__(self):
        self.draws = []
        self.patches = [
            mock.patch(f"torch.{name}", self._recording(getattr(torch, name)))
            for name in ("randn", "randn_like", "randperm")
        ]
        exponential = self._recording(torch.Tensor.exponential_)
        self.patches.append(mock.patch("torch.Tensor.exponential_", exponential))
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *_):
        for patch in self.patches:
            patch.stop()

    def _recording(self, function):
        def recorded(*args, **kwargs):
            value = function(*args, **kwargs)
            self.draws.append(value.clone())
            return value

        return recorded


def compare_losses(theirs, ours):
    """Model and policy loss of one batch with the same draws; returns the policy losses."""
    batch = tiny_batch()
    assert batch.batch_size == (BATCH, HORIZON)
    with Recorder() as recorder:
        their_model, metadata = theirs.model_loss(batch)
        their_actor, _ = theirs.actor_loss_from_latents(metadata["actor_latents"])
    model_eps, model_pair, actor_eps, actor_pair = recorder.draws
    model = ours.model_loss(batch, policy_eps=model_eps, q_pair=model_pair[:2])
    our_model = sum(value for key, value in model.items() if key.startswith("loss_"))
    actor = ours.actor_loss(model["rollout"], policy_eps=actor_eps, q_pair=actor_pair[:2])
    torch.testing.assert_close(our_model, their_model)
    torch.testing.assert_close(actor["loss_actor"], their_actor)
    return their_actor.item()


def compare_plans(theirs, ours):
    """One plan with the same draws; returns TorchRL's action."""
    from torchrl.envs import ExplorationType, set_exploration_type
    from torchrl.modules import TdMpc2Planner

    planner = TdMpc2Planner(
        theirs.world_model, theirs.policy_prior, theirs.q_ensemble, discount=0.9, **PLANNER
    )
    ours = TDMPC2Planner(
        ours.world_model, ours.policy_prior, ours.q_ensemble, discount=0.9, **PLANNER
    )
    observation, previous = torch.randn(1, OBSERVATION), torch.rand(1, 2, ACTION)
    with Recorder() as recorder, set_exploration_type(ExplorationType.RANDOM):
        plan = planner(
            TensorDict(observation=observation, _tdmpc2_prev_mean=previous, batch_size=[1])
        )
    policy, rest = recorder.draws[:2], recorder.draws[2:]
    draws = PlanDraws(
        policy_trajectories=torch.stack(policy).unsqueeze(0),
        samples=torch.stack(rest[0:6:3]).unsqueeze(1),
        terminal_policy=torch.stack(rest[1:6:3]).unsqueeze(1),
        q_pair=torch.stack(rest[2:6:3])[:, :2],
        elite=rest[6].unsqueeze(0),
        action=rest[7].unsqueeze(0),
    )
    latent = ours.world_model.encode(observation)
    our_plan = ours.plan(latent, previous, draws, explore=True)
    torch.testing.assert_close(our_plan.action, plan["action"])
    torch.testing.assert_close(our_plan.mean, plan["next", "_tdmpc2_prev_mean"])
    return plan["action"]


def our_loss(seed=0, **kwargs):
    """Ours, of the same sizes unless other ones are named."""
    return tiny_loss(seed, networks=tiny_networks(seed, dropout=0.0, **kwargs))


def test_weights_of_torchrl_give_its_losses_and_its_plan():
    theirs, ours = torchrl_loss(), our_loss()
    from_torchrl(theirs, ours)
    compare_plans(theirs, ours)
    compare_losses(theirs, ours)


def test_our_weights_give_our_losses_and_our_plan_in_torchrl():
    theirs, ours = torchrl_loss(), our_loss(seed=4)
    ours.value_scale.value.fill_(2.5)
    before = compare_of_torchrl(theirs)
    to_torchrl(ours, theirs)
    compare_plans(theirs, ours)
    assert compare_losses(theirs, ours) != pytest.approx(before, rel=1e-3)


def compare_of_torchrl(theirs):
    """TorchRL's policy loss, with a scale that stays as it is."""
    reference = our_loss()
    from_torchrl(theirs, reference)
    return compare_losses(theirs, reference)


def test_there_and_back_changes_nothing():
    theirs, ours, fresh = torchrl_loss(), our_loss(), torchrl_loss()
    from_torchrl(theirs, ours)
    scramble(fresh.parameters())
    to_torchrl(ours, fresh)
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("ours", "sentence"),
    [
        (
            lambda: our_loss(episodic=True),
            r"^_termination\.0\.bias is a weight of our loss alone\.$",
        ),
        (
            lambda: our_loss(action_dim=3),
            r"^_Qs\.params\.0\.weight has the shapes \[3, 16, 18\] and \[3, 16, 19\] in TorchRL's",
        ),
        (lambda: our_loss(simnorm_dim=4), "^a simplex has 8 features in TorchRL's loss, 4 here.$"),
    ],
)
def test_what_does_not_fit_is_refused(ours, sentence):
    theirs, ours = torchrl_loss(), ours()
    before = {name: weight.clone() for name, weight in ours.state_dict().items()}
    with pytest.raises(ValueError, match=sentence):
        from_torchrl(theirs, ours)
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0)
