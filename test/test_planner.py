"""The planner: any batch of environments, its warm start, its modes, and what it imagines."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch
from tensordict import TensorDict
from tiny import (
    ACTION,
    HORIZON,
    LATENT,
    OBSERVATION,
    scramble,
    seeded,
    tiny_batch,
    tiny_ending_networks,
    tiny_loss,
    tiny_networks,
    tiny_planner,
    tiny_planner_input,
)
from torchrl.collectors import Collector
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, SerialEnv, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MPCPlannerBase

from torchrl_tdmpc.modules import Execution
from torchrl_tdmpc.planners import PlanDraws
from torchrl_tdmpc.planners.tdmpc2 import CPU_ENVS
from torchrl_tdmpc.trainers import TDMPC2Update

ENVS = CPU_ENVS + 2  # planned for in two groups
RANDOM, DETERMINISTIC = ExplorationType.RANDOM, ExplorationType.DETERMINISTIC


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def draws_of(draws: PlanDraws, env: int) -> PlanDraws:
    """The draws of one environment."""
    one = slice(env, env + 1)
    return PlanDraws(
        policy_trajectories=draws.policy_trajectories[one],
        samples=draws.samples[:, one],
        terminal_policy=draws.terminal_policy[:, one],
        q_pair=draws.q_pair,
        elite=draws.elite[one],
        action=draws.action[one],
    )


# ---------------------------------------------------------------- batches of environments


@pytest.mark.parametrize("networks", [tiny_networks, tiny_ending_networks])
@pytest.mark.parametrize("explore", [True, False])
def test_planning_together_equals_planning_alone(explore, networks):
    planner = tiny_planner(networks=networks())
    data = tiny_planner_input(ENVS)
    latent, previous_mean = planner.world_model.encode(data["observation"]), data["_previous_mean"]
    draws = planner.draw(latent)
    together = planner.plan(latent, previous_mean, draws, explore=explore)
    assert not torch.allclose(together.action[0], together.action[1], atol=1e-2)
    for env in range(ENVS):
        one = slice(env, env + 1)
        alone = planner.plan(latent[one], previous_mean[one], draws_of(draws, env), explore=explore)
        for ours, theirs in zip(together, alone, strict=True):
            close(ours[one], theirs)


@pytest.mark.parametrize("batch_size", [(), (1,), (4,), (2, 2)])
def test_any_batch_size_takes_the_same_path(batch_size):
    planner = tiny_planner()
    data = tiny_planner_input(*batch_size)
    flat = data.reshape(-1)
    latent = planner.world_model.encode(flat["observation"])
    with set_exploration_type(RANDOM):
        out = seeded(planner, data.clone())
        action = seeded(planner.planning, data.clone())
        plan = seeded(planner.plan, latent, flat["_previous_mean"])
    assert set(planner.out_keys) == set(out.keys(True, True)) - set(data.keys(True, True))
    close(out["action"], plan.action.reshape(*batch_size, ACTION))
    close(action, out["action"])
    close(out["next", "_previous_mean"], plan.mean.reshape(*batch_size, HORIZON, ACTION))
    assert (out["nan_values"] == torch.zeros(batch_size)).all()
    for key in data.keys():  # noqa: SIM118
        assert torch.equal(out[key], data[key])


def test_output_can_be_written_elsewhere():
    planner, data = tiny_planner(), tiny_planner_input(2)
    before, out = data.clone(), TensorDict(batch_size=2)
    assert planner(data, tensordict_out=out) is out
    assert set(out.keys(True, True)) == set(planner.out_keys)
    assert set(data.keys(True, True)) == set(before.keys(True, True))


def test_selected_out_keys():
    planner, data = tiny_planner(), tiny_planner_input(2)
    expected = seeded(planner, data.clone())
    for key in list(planner.out_keys):
        planner.select_out_keys(key)
        out = seeded(planner, data.clone())
        close(out[key], expected[key])
        assert set(out.keys(True, True)) == {*data.keys(True, True), key}
        planner.reset_out_keys()


@pytest.mark.parametrize(
    "settings",
    [
        {"horizon": 1},
        {"num_pi_trajs": 0},
        {"num_pi_trajs": 24},
        {"num_elites": 1},
        {"num_elites": 24},
    ],
)
def test_limits_of_settings_plan(settings):
    planner = tiny_planner(**settings)
    data = planner(tiny_planner_input(ENVS, horizon=planner.horizon))
    assert data["action"].abs().max() <= 1 and data["action"].unique().numel() > ACTION


def test_same_seed_same_action_and_actions_in_bounds():
    planner, data = tiny_planner(max_std=10.0, min_std=5.0), tiny_planner_input(50)
    with set_exploration_type(RANDOM):
        first, again, other = (seeded(planner, data.clone(), seed=s)["action"] for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.abs().max() == 1


def test_every_iteration_draws_its_own_pair_of_q_functions():
    draws = seeded(tiny_planner(iterations=20).draw, torch.zeros(1, LATENT))
    assert len(draws.q_pair.unique(dim=0)) > 1


def test_standard_deviation_stays_at_or_below_its_maximum():
    # All are elites of the same weight, and those of the policy lie far from the others
    planner = tiny_planner(max_std=0.1, min_std=0.05, num_elites=24, temperature=1e-6)
    data = tiny_planner_input(3)
    latent = planner.world_model.encode(data["observation"])
    plan = seeded(planner.plan, latent, data["_previous_mean"])
    assert plan.std.max() == torch.tensor(0.1)


# ---------------------------------------------------------------- warm start


def test_warm_start_is_the_previous_mean_one_step_later():
    planner = tiny_planner(num_pi_trajs=0, iterations=1)
    data = tiny_planner_input(ENVS)
    latent = planner.world_model.encode(data["observation"])
    draws = planner.draw(latent)
    draws.samples.zero_()
    plan = planner.plan(latent, data["_previous_mean"], draws)
    close(plan.mean[:, :-1], data["_previous_mean"][:, 1:])
    close(plan.mean[:, -1], torch.zeros(ENVS, ACTION))
    close(plan.std, torch.full_like(plan.std, planner.min_std))


class StaggeredEnv(EnvBase):
    """Episodes of ``length`` steps whose observations are noise."""

    def __init__(self, length: int):
        super().__init__()
        self.length, self.count = length, 0
        flag = Categorical(2, shape=(1,), dtype=torch.bool)
        self.observation_spec = Composite(observation=Unbounded(OBSERVATION))
        self.action_spec = Bounded(-1, 1, shape=(ACTION,))
        self.reward_spec = Unbounded(1)
        self.done_spec = Composite(done=flag, terminated=flag.clone(), truncated=flag.clone())

    def _reset(self, tensordict=None):
        self.count = 0
        return TensorDict(observation=torch.randn(OBSERVATION))

    def _step(self, tensordict):
        self.count += 1
        done = torch.tensor([self.count == self.length])
        flags = {"done": done, "terminated": done.clone(), "truncated": done & False}
        step = {"observation": torch.randn(OBSERVATION), "reward": torch.zeros(1)}
        return TensorDict({**step, **flags})

    def _set_seed(self, seed):
        pass


@pytest.mark.parametrize("lengths", [[2], [2, 3, 5]])
def test_an_environment_that_resets_starts_cold_and_others_stay_warm(lengths):
    planner, steps = tiny_planner(iterations=1), []
    plan = planner.plan

    def recorded(latent, previous_mean, **kwargs):
        steps.append((previous_mean.clone(), plan(latent, previous_mean, **kwargs)))
        return steps[-1][1]

    planner.plan = recorded
    envs = [lambda length=length: StaggeredEnv(length) for length in lengths]
    collector = Collector(
        SerialEnv(len(lengths), envs),
        planner,
        frames_per_batch=12 * len(lengths),
        total_frames=24 * len(lengths),
        auto_register_policy_transforms=True,
    )
    steps.clear()  # the collector has called the planner once to learn its entries
    for data in collector:
        assert not any("_previous_mean" in key for key in data.keys(True, True))
    collector.shutdown()
    assert len(steps) == 24
    warm = 0
    for t, (previous_mean, _) in enumerate(steps):
        for env, length in enumerate(lengths):
            if t % length == 0:
                assert not previous_mean[env].any()
            else:
                assert torch.equal(previous_mean[env], steps[t - 1][1].mean[env])
                warm += bool(previous_mean[env].any())
    assert warm == sum(24 - -(-24 // length) for length in lengths)


def test_warm_start_is_carried_in_a_rollout():
    planner, means = tiny_planner(iterations=1), []
    plan = planner.plan
    planner.plan = lambda z, mean, **kwargs: means.append(mean.clone()) or plan(z, mean, **kwargs)
    TransformedEnv(StaggeredEnv(9), planner.make_tensordict_primer()).rollout(4, planner)
    assert [bool(mean.any()) for mean in means] == [False, True, True, True]


def test_missing_warm_start_is_an_error():
    planner = tiny_planner()
    sentence = r"'_previous_mean' is missing: .*make_tensordict_primer\(\).*auto_register_policy"
    with pytest.raises(KeyError, match=sentence):
        planner(tiny_planner_input(2).exclude("_previous_mean"))
    with pytest.raises(KeyError, match=sentence):
        StaggeredEnv(3).rollout(2, planner)


# ---------------------------------------------------------------- modes


def test_exploring_adds_noise_to_the_elite():
    planner, data = tiny_planner(), tiny_planner_input(ENVS)
    latent = planner.world_model.encode(data["observation"])
    draws = seeded(planner.draw, latent)
    elite = planner.plan(latent, data["_previous_mean"], draws, explore=False)
    with set_exploration_type(DETERMINISTIC):
        close(seeded(planner, data.clone())["action"], elite.action)
    noise = elite.std[:, 0] * draws.action
    with set_exploration_type(RANDOM):
        action = seeded(planner, data.clone())["action"]
    close(action, (elite.action + noise).clamp(-1, 1))
    assert not torch.allclose(action, elite.action, atol=1e-2)


@pytest.mark.parametrize(
    "mode", [ExplorationType.MODE, ExplorationType.MEDIAN, ExplorationType.MEAN]
)
def test_only_random_exploration_adds_noise(mode):
    planner, data = tiny_planner(), tiny_planner_input(2)
    with set_exploration_type(DETERMINISTIC):
        expected = seeded(planner, data.clone())["action"]
    with set_exploration_type(mode):
        assert torch.equal(seeded(planner, data.clone())["action"], expected)


def test_policy_only_mode_samples_or_takes_the_mode():
    planner, data = tiny_planner(mpc=False), tiny_planner_input(2, 2)
    latent = planner.world_model.encode(data["observation"])
    with set_exploration_type(RANDOM):
        out = seeded(planner, data.clone())
    close(out["action"], seeded(planner.policy_prior.act, latent))
    with set_exploration_type(DETERMINISTIC):
        out = planner(data.clone())
    close(out["action"], planner.policy_prior.mode(latent))
    assert out["next", "_previous_mean"].shape == data["_previous_mean"].shape


@pytest.mark.parametrize(("action_dim", "iterations"), [(1, 6), (19, 6), (20, 8), (38, 8)])
def test_auto_iterations(action_dim, iterations):
    planner = tiny_planner(action_dim=action_dim, iterations="auto")
    assert planner.iterations == iterations
    assert len(planner.draw(torch.zeros(1, LATENT)).samples) == iterations
    assert tiny_planner(action_dim=action_dim, iterations=2).iterations == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, r"horizon is 0; it must be a whole number from 1 to 1,000"),
        ({"horizon": 2.0}, r"horizon is 2.0; it must be a whole number"),
        ({"iterations": 0}, r"iterations is 0; it must be a whole number from 1"),
        ({"iterations": "many"}, r"iterations is 'many'; it must be a whole number"),
        ({"num_samples": True}, r"num_samples is True; it must be a whole number"),
        ({"num_samples": 5}, r"num_elites is 6; .*from 1 to num_samples = 5"),
        ({"num_elites": 0}, r"num_elites is 0; .*from 1 to num_samples = 24"),
        ({"num_elites": 25}, r"num_elites is 25; .*from 1 to num_samples = 24"),
        ({"num_pi_trajs": -1}, r"num_pi_trajs is -1; .*from 0 to num_samples = 24"),
        ({"num_pi_trajs": 25}, r"num_pi_trajs is 25; .*from 0 to num_samples = 24"),
        ({"min_std": 0.0}, r"min_std is 0.0; .*positive and at most max_std = 2.0"),
        ({"min_std": 3.0}, r"min_std is 3.0; .*at most max_std = 2.0"),
        ({"max_std": 0.01}, r"min_std is 0.05; .*at most max_std = 0.01"),
        ({"temperature": 0.0}, r"temperature is 0.0; it must be positive"),
        ({"temperature": float("inf")}, r"temperature is inf; .*at most 1,000,000"),
        ({"temperature": float("nan")}, r"temperature is nan; it must be positive"),
        ({"discount": 0.0}, r"^discount is 0.0; .*strictly between 0 and 1"),
        ({"discount": 1.0}, r"^discount is 1.0; .*strictly between 0 and 1"),
    ],
)
@pytest.mark.parametrize("later", [False, True])
def test_bad_settings_are_refused(settings, message, later):
    planner = tiny_planner()
    (name, value) = next(iter(settings.items()))
    before = getattr(planner, name)
    with pytest.raises(ValueError, match=message):
        setattr(planner, name, value) if later else tiny_planner(**settings)
    assert getattr(planner, name) == before


def test_settings_that_are_set_later_hold():
    data, planner, other = tiny_planner_input(ENVS), tiny_planner(), tiny_planner(temperature=50.0)
    planner(data.clone())
    planner.temperature = 50.0
    close(seeded(planner, data.clone())["action"], seeded(other, data.clone())["action"])
    planner.iterations = "auto"
    assert planner.iterations == 6
    planner.execution = Execution(precision="bfloat16")
    assert planner._refine.execution.precision == "bfloat16"
    assert seeded(planner, data.clone())["action"].isfinite().all()


# ---------------------------------------------------------------- weights


def test_state_dict_holds_each_weight_once():
    networks = tiny_networks(episodic=True)
    planner = tiny_planner(networks=networks)
    assert isinstance(planner, MPCPlannerBase)
    weights = [p for network in networks for p in network.parameters()]
    state = planner.state_dict()
    assert len(state) == len(weights)
    assert {t.data_ptr() for t in state.values()} == {p.data_ptr() for p in weights}
    other = tiny_planner(networks=tiny_networks(seed=1, episodic=True))
    other.load_state_dict(state)
    data = tiny_planner_input(ENVS)
    close(seeded(other, data.clone())["action"], seeded(planner, data.clone())["action"])


def test_planner_sees_what_the_loss_has_learned():
    loss, data = tiny_loss(), tiny_planner_input(ENVS)
    networks = loss.world_model, loss.policy_prior, loss.q_ensemble
    planner = tiny_planner(networks=networks)
    before = seeded(planner, data.clone())["action"]
    TDMPC2Update(loss, lr=0.1)(tiny_batch())
    after = seeded(planner, data.clone())["action"]
    assert not torch.allclose(before, after)
    fresh = tiny_planner(networks=deepcopy(networks))
    close(seeded(fresh, data.clone())["action"], after)


@pytest.mark.parametrize("duplicate", [deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_plan_alike_with_weights_of_their_own(duplicate):
    planner, data = tiny_planner(), tiny_planner_input(ENVS)
    expected = seeded(planner, data.clone())["action"]
    copy = duplicate(planner)
    assert copy.env.world_model is copy.world_model is not planner.world_model
    close(seeded(copy, data.clone())["action"], expected)
    scramble(copy.parameters())
    close(seeded(planner, data.clone())["action"], expected)


def test_a_planner_that_a_collector_used_can_be_sent_to_a_process():
    planner = tiny_planner(iterations=1)
    collector = Collector(
        StaggeredEnv(3),
        planner,
        frames_per_batch=2,
        total_frames=2,
        auto_register_policy_transforms=True,
    )
    next(iter(collector))
    collector.shutdown()
    data = tiny_planner_input(ENVS)
    copy = pickle.loads(pickle.dumps(planner))
    close(seeded(copy, data.clone())["action"], seeded(planner, data.clone())["action"])


def test_double_precision():
    planner = tiny_planner().double()
    out = planner(tiny_planner_input(2).double())
    assert out["action"].dtype == out["next", "_previous_mean"].dtype == torch.float64
    primer = planner.make_tensordict_primer()
    assert primer.primers["_previous_mean"].dtype == torch.float64


def test_draws_have_the_precision_of_the_latent():
    draws = tiny_planner().double().draw(torch.zeros(1, LATENT, dtype=torch.float64))
    normal = draws.policy_trajectories, draws.samples, draws.terminal_policy, draws.action
    assert {noise.dtype for noise in (*normal, draws.elite)} == {torch.float64}


def test_what_the_planner_writes_has_no_gradient():
    planner = tiny_planner()
    out = planner(tiny_planner_input(2))
    assert not any(out[key].requires_grad for key in planner.out_keys)
