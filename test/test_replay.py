from __future__ import annotations

import logging
import math
from collections import deque

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import (
    Bounded,
    Categorical,
    Composite,
    LazyTensorStorage,
    TensorDictReplayBuffer,
    Unbounded,
)
from torchrl.envs import EnvBase, SerialEnv

from torchrl_tdmpc.data import EpisodeReplay, ReplayError


def episode_length(env_id: int, episode: int) -> int:
    """From 1 to 9 steps, another length in almost every episode."""
    return 1 + (5 * episode + 3 * env_id + episode**2) % 9


def action_of(observation: torch.Tensor) -> torch.Tensor:
    """A value in [-1, 1] that tells every (environment, episode, step) apart."""
    return (observation * torch.tensor([0.13, 0.017, 0.0011])).sum(-1, keepdim=True).sin()


def reward_of(observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    return observation[..., :1] * 1000 + observation[..., 1:2] * 10 + observation[..., 2:] + action


class CountingEnv(EnvBase):
    """Shows [environment, episode, step]; odd episodes are truncated, even ones terminate."""

    def __init__(self, env_id: int):
        super().__init__(batch_size=[])
        self.env_id, self.episode, self.count = env_id, -1, 0
        flag = Categorical(2, shape=(1,), dtype=torch.bool)
        self.observation_spec = Composite(observation=Unbounded(3))
        self.action_spec = Bounded(-1, 1, shape=(1,))
        self.reward_spec = Unbounded(1)
        self.done_spec = Composite(done=flag, terminated=flag.clone(), truncated=flag.clone())

    def _observation(self) -> torch.Tensor:
        return torch.tensor([self.env_id, self.episode, self.count], dtype=torch.float32)

    def _reset(self, tensordict=None):
        self.episode, self.count = self.episode + 1, 0
        return TensorDict({"observation": self._observation()})

    def _step(self, tensordict):
        reward = reward_of(self._observation(), tensordict["action"])
        self.count += 1
        done = torch.tensor([self.count == episode_length(self.env_id, self.episode)])
        odd = bool(self.episode % 2)
        return TensorDict(
            {
                "observation": self._observation(),
                "reward": reward,
                "done": done,
                "terminated": done & (not odd),
                "truncated": done & odd,
            }
        )

    def _set_seed(self, seed):
        pass


def collect(num_envs: int, steps_per_batch: int, num_batches: int):
    env = SerialEnv(
        num_envs,
        lambda env_id: CountingEnv(env_id),
        create_env_kwargs=[{"env_id": index} for index in range(num_envs)],
    )
    frames = num_envs * steps_per_batch
    yield from Collector(
        env,
        lambda td: td.set("action", action_of(td["observation"])),
        frames_per_batch=frames,
        total_frames=frames * num_batches,
    )


class Ledger:
    """What the replay must hold, told from the episode lengths alone."""

    def __init__(self, num_envs: int, capacity: int, horizon: int):
        self.ring = deque(maxlen=capacity)  # of observations
        self.horizon = horizon
        self.position = [(env, 0, 0) for env in range(num_envs)]  # the next step of each
        self.num_finished = self.num_short = 0

    def advance(self, steps: int) -> None:
        for env, position in enumerate(self.position):
            for _ in range(steps):
                _, episode, step = position
                position = (env, episode, step + 1)
                if step + 1 == episode_length(env, episode):
                    self._finish(env, episode, step + 1)
                    position = (env, episode + 1, 0)
            self.position[env] = position

    def _finish(self, env: int, episode: int, length: int) -> None:
        self.num_finished += 1
        if length < self.horizon:
            self.num_short += 1
        else:
            self.ring.extend((env, episode, step) for step in range(length + 1))

    def windows(self) -> set:
        """The first step of each slice of the horizon that lies in one episode."""
        observed = set(self.ring)
        return {
            (env, episode, step)
            for env, episode, step in observed
            if (env, episode, step + self.horizon) in observed
        }


def check_slices(batch: TensorDict, horizon: int) -> set:
    """Checks every number of a batch; returns the first steps of its slices."""
    first = batch["observation"][:, :1]
    step = torch.arange(horizon).unsqueeze(-1) * torch.tensor([0.0, 0.0, 1.0])
    observation = first + step
    torch.testing.assert_close(batch["observation"], observation, rtol=0, atol=0)
    after = observation + torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(batch["next", "observation"], after, rtol=0, atol=0)
    torch.testing.assert_close(batch["action"], action_of(observation), rtol=0, atol=0)
    reward = reward_of(observation, action_of(observation))
    torch.testing.assert_close(batch["next", "reward"], reward, rtol=0, atol=0)
    done = torch.tensor(
        [[[episode_length(int(e), int(k)) == s] for e, k, s in row] for row in after.tolist()]
    )
    assert (batch["next", "done"] == done).all()
    assert (batch["next", "terminated"] == done & (observation[..., 1:2] % 2 == 0)).all()
    return {tuple(map(int, row)) for row in first[:, 0].tolist()}


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("steps_per_batch", [1, 7])
@pytest.mark.parametrize("capacity, horizon", [(23, 3), (40, 5), (6, 1), (6, 5)])
def test_slices_are_aligned_whole_and_complete(num_envs, steps_per_batch, capacity, horizon):
    torch.manual_seed(0)
    num_batches = 210 // (num_envs * steps_per_batch)
    replay = EpisodeReplay(capacity=capacity, horizon=horizon, batch_size=64)
    ledger = Ledger(num_envs, capacity, horizon)
    num_finished = num_compared = 0
    for index, data in enumerate(collect(num_envs, steps_per_batch, num_batches)):
        num_finished += replay.extend(data)
        ledger.advance(steps_per_batch)
        assert num_finished == ledger.num_finished
        assert replay.num_short_episodes == ledger.num_short
        assert replay.num_transitions == len(ledger.ring)
        assert replay.num_steps == (index + 1) * num_envs * steps_per_batch
        assert replay.num_pending == sum(step for _, _, step in ledger.position)
        if index % max(1, num_batches // 10) == 0 and ledger.windows():
            batches = [replay.sample() for _ in range(12)]
            seen = set().union(*(check_slices(batch, horizon) for batch in batches))
            assert seen == ledger.windows()
            num_compared += 1
    assert num_compared >= 5
    assert len(ledger.ring) == capacity  # it wrapped around


def unfinished(num_envs: int, num_steps: int) -> TensorDict:
    """Steps of an endless episode, [num_envs, num_steps]."""
    flag = torch.zeros(num_envs, num_steps, 1, dtype=torch.bool)
    return TensorDict(
        {
            "observation": torch.zeros(num_envs, num_steps, 3),
            "action": torch.zeros(num_envs, num_steps, 1),
            "next": {
                "observation": torch.zeros(num_envs, num_steps, 3),
                "reward": torch.zeros(num_envs, num_steps, 1),
                "done": flag,
                "terminated": flag.clone(),
            },
        },
        [num_envs, num_steps],
    )


def finished(num_steps: int, **entries) -> TensorDict:
    """One finished episode of one environment."""
    data = unfinished(1, num_steps)
    data["next", "done"][0, -1] = True
    data.update(entries)
    observation = data["observation"]
    data["next", "observation"] = torch.cat([observation[:, 1:], observation[:, -1:] + 1], 1)
    return data


def test_batch_carries_exactly_the_layout_of_a_transition():
    replay = EpisodeReplay(capacity=100, horizon=3, batch_size=4)
    for data in collect(1, 7, 3):
        assert ("collector", "traj_ids") in data.keys(True)
        replay.extend(data)
    batch = replay.sample()
    following = {("next", key) for key in ("observation", "reward", "done", "terminated")}
    assert set(batch.keys(True, True)) == {"observation", "action"} | following
    assert batch.shape == (4, 3)
    assert batch["next", "done"].shape == (4, 3, 1)


def test_nested_keys():
    keys = [("agent", "position"), "goal"]
    replay = EpisodeReplay(
        capacity=20, horizon=2, batch_size=64, observation_keys=keys, action_key=("agent", "action")
    )
    data = finished(6).exclude("action", "observation", ("next", "observation"))
    count = torch.arange(6.0).reshape(1, 6, 1)
    data["agent", "position"], data["next", "agent", "position"] = count, count + 1
    data["goal"], data["next", "goal"] = -count, -count - 1
    data["agent", "action"] = count / 8
    replay.extend(data)
    batch = replay.sample()
    position = batch["agent", "position"]
    assert set(position.flatten().tolist()) == {0, 1, 2, 3, 4, 5}
    assert (position[:, 1] == position[:, 0] + 1).all()
    assert (batch["next", "agent", "position"] == position + 1).all()
    assert (batch["agent", "action"] == position / 8).all()
    assert (batch["goal"] == -position).all()


def test_an_episode_longer_than_the_ring_leaves_its_end():
    replay = EpisodeReplay(capacity=6, horizon=2, batch_size=64)
    steps = torch.arange(12.0).reshape(1, 12, 1)
    replay.extend(finished(12, observation=steps))
    first = {int(value) for value in replay.sample()["observation"][:, 0]}
    assert first == {7, 8, 9, 10}


def test_stored_data_do_not_change_with_the_collectors_own():
    replay = EpisodeReplay(capacity=5, horizon=2, batch_size=8)
    data = finished(3)
    begun, rest = data[:, :1].clone(), data[:, 1:].clone()
    replay.extend(begun)
    begun["observation"].fill_(7)
    replay.extend(rest)
    rest["observation"].fill_(7)
    assert (replay.sample()["observation"] == 0).all()


def test_sampling_is_seeded_by_torch():
    replay = EpisodeReplay(capacity=100, horizon=3, batch_size=16)
    for data in collect(1, 7, 10):
        replay.extend(data)
    torch.manual_seed(5)
    first, second = replay.sample(), replay.sample()
    torch.manual_seed(5)
    assert (replay.sample() == first).all()
    assert not (first == second).all()


def test_sampling_too_early():
    replay = EpisodeReplay(capacity=10, horizon=3, batch_size=2)
    replay.extend(finished(2))
    replay.extend(unfinished(1, 4))
    with pytest.raises(RuntimeError) as error:
        replay.sample()
    assert str(error.value) == (
        "No slice of 3 steps can be sampled yet: finished episodes left 0 transitions in storage "
        "(1 were shorter than 3 steps) and unfinished ones have 4 steps; collect at least 3 in one "
        "episode, by a larger seed_steps or a shorter horizon."
    )


def test_sampling_slices_of_one_step():
    replay = EpisodeReplay(capacity=10, horizon=1, batch_size=2)
    with pytest.raises(RuntimeError, match="No slice of 1 steps can be sampled yet"):
        replay.sample()
    replay.extend(finished(1))
    assert replay.sample()["next", "done"].tolist() == [[[True]], [[True]]]


@pytest.mark.parametrize(
    "key", ["observation", ("next", "observation"), ("next", "reward"), "action"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_names_decision_and_environment(key, value):
    replay = EpisodeReplay(capacity=10, horizon=2, batch_size=2)
    replay.extend(unfinished(3, 4))  # agent steps 1 to 12
    data = unfinished(3, 2)
    data[key][1, 1, -1] = value  # agent step 17: 13 to 15 are the first step of the three
    data[key][2, 0, -1] = value  # agent step 15
    with pytest.raises(FloatingPointError) as error:
        replay.extend(data)
    assert str(error.value) == (
        f"{key!r} contains NaN or infinity at agent step 15, in environment 2."
    )
    assert replay.num_steps == 12


def test_a_termination_that_none_expected_names_decision_and_environment():
    replay = EpisodeReplay(capacity=10, horizon=2, batch_size=2, episodic=False)
    replay.extend(unfinished(3, 4))  # agent steps 1 to 12
    data = unfinished(3, 2)
    for flag in ("terminated", "done"):
        data["next", flag][2, 0] = True
    with pytest.raises(ReplayError, match="terminated at agent step 15, in environment 2, but"):
        replay.extend(data)
    assert replay.num_steps == 12


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"capacity": 3}, "capacity 3 cannot hold a slice of 3 steps; choose at least 4."),
        ({"horizon": 0}, "horizon 0 is too short for a slice; choose at least 1."),
        ({"batch_size": 0}, "batch_size 0 is too small; choose at least 1."),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        EpisodeReplay(**{"capacity": 10, "horizon": 3, "batch_size": 2} | arguments)
    assert str(error.value) == message


def test_data_of_another_shape():
    replay = EpisodeReplay(capacity=10, horizon=3, batch_size=2)
    with pytest.raises(ValueError, match=r"\[\.\.\., T\], got \[\]"):
        replay.extend(unfinished(1, 1)[0, 0])
    replay.extend(unfinished(2, 1))
    with pytest.raises(ValueError, match=r"in 3 rows without trajectory ids, but .* in 2"):
        replay.extend(unfinished(3, 1))
    with pytest.raises(ValueError, match=r"The data lack 'action', \('next', 'reward'\)\."):
        replay.extend(unfinished(2, 1).exclude("action", ("next", "reward")))
    wide = unfinished(2, 1)
    wide["action"] = torch.zeros(2, 1, 2)
    with pytest.raises(ValueError, match=r"'action' has shape \[2\] .*; it was \[1\]"):
        replay.extend(wide)
    assert replay.num_steps == 2


def test_actions_out_of_range_are_refused_and_rounding_is_not():
    replay = EpisodeReplay(capacity=10, horizon=3, batch_size=2)
    replay.extend(unfinished(3, 4))  # agent steps 1 to 12
    data = unfinished(3, 2)
    data["action"][2, 0] = -5.0
    with pytest.raises(ValueError) as error:
        replay.extend(data)
    assert str(error.value) == (
        "'action' reaches 5 at agent step 15, in environment 2; actions are in [-1, 1] here, so "
        "scale them to the bounds that the environment has."
    )
    assert replay.num_steps == 12
    data["action"][2, 0] = 1 + 2e-7
    other = EpisodeReplay(capacity=10, horizon=3, batch_size=2)
    other.extend(data)
    assert other.num_steps == 6


def test_what_people_have_is_converted():
    """Doubles, halves, rewards and flags without a last dimension, flags that are numbers."""
    data = finished(6)
    theirs = data.apply(lambda x: x.double() if x.is_floating_point() else x)
    theirs["action"] = data["action"].half()
    theirs["next", "reward"] = theirs["next", "reward"].squeeze(-1)
    theirs["next", "done"] = data["next", "done"].squeeze(-1).long()
    theirs["next", "terminated"] = data["next", "terminated"].float()
    before = theirs.clone()
    ours, converted = (EpisodeReplay(capacity=10, horizon=3, batch_size=4) for _ in range(2))
    for replay, steps in ((ours, data), (converted, theirs)):
        replay.extend(steps)
    batches = []
    for replay in (ours, converted):
        torch.manual_seed(0)
        batches.append(replay.sample())
    for key, value in batches[0].items(True, True):
        assert batches[1][key].dtype == value.dtype, key
        torch.testing.assert_close(batches[1][key], value, rtol=1e-3, atol=1e-3)
    for key, value in before.items(True, True):
        assert theirs[key].dtype == value.dtype and torch.equal(theirs[key], value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (("next", "reward"), torch.zeros(1, 6, 2), r"\('next', 'reward'\) has shape \[2\]; it mus"),
        (("next", "done"), torch.full((1, 6, 1), 0.5), r"'done'\) has numbers that are neither 0"),
        ("action", torch.zeros(1, 6), r"'action' has shape \[\]; it must be \[A\]"),
        (
            ("next", "observation"),
            torch.zeros(1, 6, 7),
            r"\('next', 'observation'\) has shape \[7\] and type torch.float32; 'observation' has",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused(key, value, message):
    replay = EpisodeReplay(capacity=10, horizon=3, batch_size=4)
    with pytest.raises(ValueError, match=message):
        replay.extend(finished(6).set(key, value))
    assert replay.num_steps == 0
    replay.extend(finished(6))  # what was refused decides nothing


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_storage_is_normal_in_every_mode(mode):
    replay = EpisodeReplay(capacity=30, horizon=3, batch_size=4)
    with mode():
        replay.extend(finished(6).clone())
        replay.extend(unfinished(1, 2).clone())
        assert not replay.sample()["observation"].is_inference()
    replay.extend(finished(6))
    replay.truncate()
    batch = replay.sample()
    assert not batch["observation"].is_inference()
    batch["observation"].requires_grad_().sum().backward()


def test_data_with_gradients_leave_none_in_storage():
    replay, data = EpisodeReplay(capacity=30, horizon=3, batch_size=4), finished(6)
    data["action"] = data["action"].clone().requires_grad_() * 1
    replay.extend(data)
    assert not replay.sample()["action"].requires_grad


def test_torchrl_says_nothing_of_the_storage_and_what_else_it_logs_is_kept():
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("torchrl")
    level, filters = logger.level, list(logger.filters)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        replay = EpisodeReplay(capacity=100, horizon=3, batch_size=4)
        replay.extend(SerialEnv(1, lambda: CountingEnv(0)).rollout(20, break_when_any_done=False))
        assert replay.num_transitions > 0
        logger.info("something else")
        TensorDictReplayBuffer(storage=LazyTensorStorage(9)).extend(TensorDict(a=[1], batch_size=1))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert said[0] == "something else" and said[1].startswith("Initialized LazyTensorStorage")
    assert logger.filters == filters
