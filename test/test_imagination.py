"""What the planner imagines: returns, terminations and values that are not numbers."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tiny import (
    ACTION,
    HORIZON,
    LATENT,
    OBSERVATION,
    seeded,
    tiny_ending_networks,
    tiny_networks,
    tiny_planner,
    tiny_planner_input,
)
from torch import nn
from torchrl.envs import check_env_specs

from torchrl_tdmpc import LatentEnv

ENVS = 4


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("networks", [tiny_networks, tiny_ending_networks])
def test_trajectory_value_is_the_return_of_an_imagined_rollout(networks):
    samples, q_pair = 40, torch.tensor([2, 1])
    planner = tiny_planner(networks=networks())
    world_model = planner.world_model
    latent = torch.randn(ENVS, 1, LATENT).softmax(-1)
    actions = torch.rand(ENVS, HORIZON, samples, ACTION) * 2 - 1
    eps = torch.randn(ENVS, samples, ACTION)

    state = TensorDict(latent=latent.expand(-1, samples, -1), batch_size=(ENVS, samples))
    steps = []
    for action in actions.unbind(1):
        steps.append(planner.env.step(state.set("action", action))["next"])
        state = steps[-1].select("latent")
    last = state["latent"]
    action = planner.policy_prior.act(last, eps)
    expected = torch.zeros(ENVS, samples, 1)
    ended_at = torch.full((ENVS, samples, 1), HORIZON)
    for t in reversed(range(HORIZON + 1)):
        if t == HORIZON:
            expected += planner.q_ensemble.value(last, action)[q_pair].mean(0)
        else:
            step = steps[t]
            expected = step["reward"] + 0.9 * torch.where(step["terminated"], 0.0, expected)
            ended_at[step["terminated"]] = t
    if world_model.episodic:
        assert set(ended_at.unique().tolist()) == set(range(HORIZON + 1))
    close(planner.trajectory_value(latent, actions, eps, q_pair), expected, 1e-4)


def test_nan_values_count_as_zero_and_are_counted():
    world_model, policy_prior, q_ensemble = tiny_networks()

    class SometimesNaN(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, latent, action):
            lost = (action[..., -1:] > 0.8) & (latent[..., :1] < 0.3)
            return self.network(latent, action).masked_fill(lost, float("nan"))

    world_model.reward_head = SometimesNaN(world_model.reward_head)
    planner = tiny_planner(networks=(world_model, policy_prior, q_ensemble), num_elites=24)
    data = tiny_planner_input(ENVS)
    latent = planner.world_model.encode(data["observation"])
    draws = planner.draw(latent)
    plan = planner.plan(latent, data["_previous_mean"], draws)

    trajectory_value, counts = planner.trajectory_value, torch.zeros(ENVS, dtype=torch.long)

    def cleaned(*args):
        value = trajectory_value(*args)
        counts.add_(value.isnan().sum((1, 2)))
        return torch.where(value.isnan(), torch.zeros_like(value), value)

    planner.trajectory_value = cleaned
    expected = planner.plan(latent, data["_previous_mean"], draws)
    assert counts.unique().numel() > 1 and not expected.nan_values.any()
    assert torch.equal(plan.nan_values, counts)
    assert (plan.elite_value == 0).any()
    close(plan.mean, expected.mean)
    close(plan.action, expected.action)
    close(plan.elite_value, expected.elite_value)
    planner.trajectory_value = trajectory_value
    assert planner(data)["nan_values"].sum() > 0


@pytest.mark.parametrize("training", [True, False])
def test_planning_has_no_dropout(training):
    networks = tiny_networks(dropout=0.5)
    planner = tiny_planner(networks=networks).train(training)
    data = tiny_planner_input(ENVS)
    latent = planner.world_model.encode(data["observation"])
    draws = planner.draw(latent)
    plans = [
        seeded(planner.plan, latent, data["_previous_mean"], draws, seed=seed) for seed in (0, 1)
    ]
    assert torch.equal(plans[0].elite_value, plans[1].elite_value)


def test_latent_env_keeps_its_specs():
    env = LatentEnv(tiny_networks(episodic=True)[0], ACTION)
    start = TensorDict(latent=torch.rand(ENVS, LATENT), batch_size=ENVS)
    with torch.no_grad():
        check_env_specs(env, tensordict=env.reset(start), break_when_any_done=True)


def test_latent_env_resets_to_a_latent_or_an_observation():
    world_model = tiny_networks()[0]
    env = LatentEnv(world_model, ACTION)
    observation = torch.randn(ENVS, OBSERVATION)
    reset = env.reset(TensorDict(observation=observation, batch_size=ENVS))
    close(reset["latent"], world_model.encode(observation))
    with pytest.raises(KeyError, match="a reset of LatentEnv needs 'latent' or 'observation'"):
        env.reset()


def test_latent_env_takes_actions_from_minus_one_to_one():
    space = LatentEnv(tiny_networks()[0], ACTION).action_spec.space
    assert (space.low == -1).all() and (space.high == 1).all()


def test_latent_env_resets_to_the_latent_where_both_are_given():
    env = LatentEnv(tiny_networks()[0], ACTION)
    latent, observation = torch.rand(ENVS, LATENT), torch.randn(ENVS, OBSERVATION)
    reset = env.reset(TensorDict(latent=latent, observation=observation, batch_size=ENVS))
    assert torch.equal(reset["latent"], latent)


def test_latent_env_moves_with_its_weights():
    """To a device, alone or as part of a planner; and a planner's weights are there once."""
    env = LatentEnv(tiny_networks()[0], ACTION)
    planner = tiny_planner()
    for moved, owner in ((env, env), (planner.env, planner)):
        owner.to("meta")
        assert {p.device.type for p in moved.world_model.parameters()} == {"meta"}
        assert moved.device.type == moved.action_spec.device.type == "meta"
        assert moved.observation_spec["latent"].device.type == "meta"
    weights = sum(1 for part in tiny_networks() for _ in part.parameters())
    assert len(planner.state_dict()) == weights
