"""Parts that do not fit are refused when they meet, in one sentence with both numbers."""

from __future__ import annotations

import re

import pytest
import torch
from tiny import (
    ACTION,
    BATCH,
    HORIZON,
    LATENT,
    OBSERVATION,
    tiny_batch,
    tiny_draws,
    tiny_loss,
    tiny_multitask_loss,
    tiny_networks,
    tiny_planner,
    tiny_planner_input,
    tiny_tasks,
)
from torch import nn
from torchrl.envs import ActionScaling, GymEnv, TransformedEnv

from torchrl_tdmpc import (
    AuxiliaryValueHeads,
    LatentEnv,
    MultiGammaValueLoss,
    PolicyPrior,
    QEnsemble,
    SymlogTwoHot,
    TDMPC2Loss,
    TDMPC2Planner,
    TDMPC2Update,
    TDMPC2WorldModel,
    make_networks,
)
from torchrl_tdmpc.modules import MODEL_SIZES, SimNorm, mlp

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def world_model(latent=LATENT, encoded=LATENT, bins=101, **parts):
    parts = {
        "encoder": mlp(OBSERVATION, [8], encoded, SimNorm(8)),
        "dynamics": mlp(latent + ACTION, [8], latent, SimNorm(8)),
        "reward_head": mlp(latent + ACTION, [8], bins),
        **parts,
    }
    return TDMPC2WorldModel(**parts, latent_dim=latent)


def networks(model=None, policy=2 * ACTION, q_latent=LATENT, q_action=ACTION, **kwargs):
    model = world_model(**kwargs) if model is None else model
    return model, PolicyPrior(mlp(LATENT, [8], policy)), QEnsemble(q_latent, q_action, 8)


@pytest.mark.parametrize("part", [TDMPC2Loss, TDMPC2Planner])
@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"bins": 41}, "the reward head gives 41 numbers; it must give 101, which is num_bins"),
        (
            {"policy": ACTION},
            "the policy's network gives 2 numbers; it must give 4, which is twice the action's",
        ),
        (
            {"latent": 24},
            "the world model's latent_dim is 24 and the Q-functions' is 16; they must be the same",
        ),
        (
            {"dynamics": mlp(LATENT + ACTION, [8], 24, SimNorm(8))},
            "the dynamics gives 24 numbers; it must give 16, which is latent_dim",
        ),
        (
            {"reward_head": mlp(24 + ACTION, [8], 101)},
            "the reward head cannot read inputs of 16 + 2 numbers: a layer that reads 26 numbers "
            "got 16 + 2",
        ),
        (
            {"termination_head": mlp(LATENT, [8], 2)},
            "the termination head gives 2 numbers; it must give 1",
        ),
        ({"q_action": 3}, "the dynamics cannot read inputs of 16 + 3 numbers"),
    ],
)
def test_networks_that_do_not_fit_are_refused(part, made, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        part(*networks(**made), discount=0.9)


def test_tasks_that_do_not_fit_the_networks_are_refused():
    model, policy_prior, _ = tiny_networks(task_context=tiny_tasks())
    with pytest.raises(ValueError, match="has 4 numbers and the Q-functions read 0"):
        TDMPC2Loss(model, policy_prior, QEnsemble(LATENT, ACTION, 8), discount=None)
    with pytest.raises(ValueError, match="has 2 dimensions and the Q-functions read actions of 3"):
        wide = QEnsemble(LATENT, 3, 8, embedding_dim=4)
        TDMPC2Loss(model, policy_prior, wide, discount=None)


def test_an_encoder_of_another_size_is_refused_when_it_encodes():
    loss = TDMPC2Loss(*networks(encoded=24), discount=0.9)
    with pytest.raises(ValueError, match="encoder gives 24 numbers; it must give 16, which is lat"):
        loss.model_loss(tiny_batch())


def test_looking_at_networks_changes_nothing():
    """Random numbers, modes and running statistics are as they were."""
    head = nn.Sequential(nn.Linear(LATENT, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4))
    head[2].eval()
    model, _, q_ensemble = networks()
    before = torch.get_rng_state(), [m.training for m in head.modules()], head[1].running_mean
    statistics = before[2].clone()
    TDMPC2Planner(model, PolicyPrior(head), q_ensemble, discount=0.9)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert [m.training for m in head.modules()] == before[1]
    assert torch.equal(head[1].running_mean, statistics)


# ---------------------------------------------------------------- losses and data


def reshaped(batch):
    return batch.reshape(-1)


def with_entry(key, value):
    return lambda batch: batch.set(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            reshaped,
            f"'action' has shape [{BATCH * HORIZON}, {ACTION}]; a batch is slices [B, H] of "
            "consecutive transitions, such as data.reshape(-1, H).",
        ),
        (
            with_entry("action", torch.zeros(BATCH, HORIZON, 3)),
            "'action' has 3 dimensions; the Q-functions read actions of 2",
        ),
        (
            with_entry(("next", "reward"), torch.zeros(BATCH, HORIZON)),
            "('next', 'reward') has shape [5, 3]; beside actions [5, 3, 2] it must be [5, 3, 1].",
        ),
        (
            with_entry(("collector", "mask"), torch.ones(BATCH, HORIZON, 1)),
            "the loss mask ('collector', 'mask') has type torch.float32; it must be torch.bool",
        ),
    ],
)
def test_batches_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_loss().model_loss(change(tiny_batch()))


def test_a_loss_mask_that_was_asked_for_must_be_there():
    loss, batch, (draws, _) = tiny_loss(), tiny_batch(), tiny_draws()
    loss.loss_mask_key = "valid"
    with pytest.raises(KeyError, match="loss_mask_key is 'valid', but the data have no such entry"):
        loss.model_loss(batch)
    mask = torch.zeros(BATCH, HORIZON, 1, dtype=torch.bool)
    mask[:, 0] = True
    masked = loss.model_loss(batch.set("valid", mask), **draws)
    first = tiny_loss(reduction="none").model_loss(tiny_batch(), **draws)["value"][:, 0]
    torch.testing.assert_close(masked["value"], first.mean())

    with pytest.raises(KeyError, match="loss_mask_key is 'valid'"):
        loss.actor_loss(masked["rollout"].exclude("valid"))

    heads = heads_loss()
    heads.loss_mask_key = "valid"
    assert heads(masked["rollout"])["loss_multi_gamma"] >= 0
    with pytest.raises(KeyError, match="loss_mask_key is 'valid'"):
        heads(masked["rollout"].exclude("valid"))


# ---------------------------------------------------------------- auxiliary heads


def heads_loss(gammas=(0.9, 0.97), latent=LATENT):
    return MultiGammaValueLoss(AuxiliaryValueHeads(latent, len(gammas) - 1, 101), gammas=gammas)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            {"gammas": (0.95, 0.97)},
            "gammas begins with 0.95 and the discount of the loss is 0.9; the first must be",
        ),
        ({"latent": 24}, "read a latent of 24 numbers and the world model's latent_dim is 16"),
    ],
)
def test_heads_that_do_not_fit_the_loss_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        TDMPC2Update(tiny_loss(), [heads_loss(**made)])


def test_heads_beside_several_tasks_are_refused():
    with pytest.raises(ValueError, match="heads learn one task, and this world model has several"):
        TDMPC2Update(tiny_multitask_loss(), [heads_loss()])


# ---------------------------------------------------------------- planner and environment


def pendulum_planner(action_dim=1):
    torch.manual_seed(0)
    sizes = {"num_samples": 8, "num_elites": 2, "num_pi_trajs": 2, "iterations": 1}
    return TDMPC2Planner(*make_networks((3,), action_dim, MODEL_SIZES[1]), discount=0.9, **sizes)


def test_an_environment_with_other_bounds_is_refused():
    planner = pendulum_planner()
    env = TransformedEnv(GymEnv("Pendulum-v1"), planner.make_tensordict_primer())
    with pytest.raises(ValueError, match=r"actions are in \[-2\.0, 2\.0\]; .* in \[-1, 1\]"):
        env.rollout(2, planner)


def test_an_environment_of_scaled_actions_is_taken():
    planner = pendulum_planner()
    env = TransformedEnv(GymEnv("Pendulum-v1"), ActionScaling())
    env = env.append_transform(planner.make_tensordict_primer())
    assert env.rollout(2, planner)["action"].shape == (2, 1)


def test_an_environment_with_actions_of_another_size_is_refused():
    planner = pendulum_planner(action_dim=2)
    env = TransformedEnv(GymEnv("Pendulum-v1"), planner.make_tensordict_primer())
    with pytest.raises(ValueError, match=r"action has shape \[1\]; the planner gives \[..., 2\]"):
        env.rollout(2, planner)


def test_a_warm_start_of_another_planner_is_refused():
    planner, data = tiny_planner(horizon=2), tiny_planner_input(4, horizon=HORIZON)
    message = r"warm start '_previous_mean' has shape \[3, 2\]; this planner's is .* = \[2, 2\]"
    with pytest.raises(ValueError, match=message):
        planner(data)


def test_a_latent_environment_in_place_of_the_model_is_refused():
    model, *others = tiny_networks()
    with pytest.raises(TypeError, match="a LatentEnv; give its world model instead"):
        TDMPC2Planner(LatentEnv(model, ACTION), *others, discount=0.9)


def test_more_bins_than_the_support_are_refused():
    model = world_model(bins=101)
    other = TDMPC2WorldModel(
        model.encoder,
        model.dynamics,
        model.reward_head,
        latent_dim=LATENT,
        two_hot=SymlogTwoHot(num_bins=41),
    )
    with pytest.raises(ValueError, match="reward head gives 101 numbers; it must give 41"):
        TDMPC2Loss(*networks(other), discount=0.9)
