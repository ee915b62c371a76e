"""What environments remember across episodes reaches evaluations and checkpoints."""

from __future__ import annotations

import functools
import io
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from dm_control import suite
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import (
    Compose,
    DMControlWrapper,
    EnvBase,
    GymWrapper,
    ObservationNorm,
    RewardSum,
    StepCounter,
    TransformedEnv,
    VecNorm,
    VecNormV2,
)

from torchrl_tdmpc import OnlineTrainer
from torchrl_tdmpc.checkpoints import CollectorState
from torchrl_tdmpc.cli.evaluate import load_memory
from torchrl_tdmpc.envs import env_memory, make_env, make_task, set_env_memory
from torchrl_tdmpc.trainers import evaluate

BOX = gymnasium.spaces.Box
MODEL = {"enc_dim": 16, "mlp_dim": 16, "latent_dim": 16}
LENGTH = 10


class Still(gymnasium.Env):
    """Always observes (10, -5) plus a little noise; every reward is 1."""

    action_space = BOX(-1, 1, (1,), np.float32)
    observation_space = BOX(-np.inf, np.inf, (2,), np.float32)

    def observe(self):
        noise = self.np_random.normal(size=2) * [3, 0.1]
        return (np.array([10.0, -5.0]) + noise).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        return self.observe(), 1.0, False, False, {}


class Curriculum(Still):
    """Its reward is its level, which each episode raises."""

    level = 0.0

    def reset(self, *, seed=None, options=None):
        self.level += 1
        return super().reset(seed=seed)

    def step(self, action):
        return self.observe(), self.level, False, False, {}

    def state_dict(self):
        return {"level": self.level}

    def load_state_dict(self, state):
        self.level = state["level"]


class TorchStill(EnvBase):
    """The same for TorchRL; it counts its episodes in a buffer."""

    def __init__(self):
        super().__init__()
        self.observation_spec = Composite(observation=Unbounded((2,)))
        self.action_spec = Bounded(-1.0, 1.0, (1,))
        self.reward_spec = Unbounded((1,))
        self.register_buffer("episodes", torch.zeros(1))

    def _set_seed(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def observe(self):
        noise = torch.randn(2, generator=self.generator) * torch.tensor([3, 0.1])
        return torch.tensor([10.0, -5.0]) + noise

    def _reset(self, tensordict=None):
        self.episodes += 1
        return TensorDict(observation=self.observe())

    def _step(self, tensordict):
        return TensorDict(observation=self.observe(), reward=self.episodes.clone(), done=False)


def in_gymnasium():
    wrappers = gymnasium.wrappers
    return wrappers.NormalizeReward(wrappers.NormalizeObservation(Still()))


def with_transform(kind):
    keys = {"in_keys": ["observation"]}
    if kind is not ObservationNorm:
        return TransformedEnv(GymWrapper(Still()), kind(**keys, decay=0.99))
    norm = ObservationNorm(loc=0.0, scale=1.0, standard_normal=True, **keys)
    return TransformedEnv(GymWrapper(Still()), norm)


KINDS = {
    "Gymnasium": in_gymnasium,
    "VecNormV2": functools.partial(with_transform, VecNormV2),
    "VecNorm": functools.partial(with_transform, VecNorm),
}


def trained(make, num_envs=1, **settings):
    """A task, and environments of it that acted for some episodes."""
    task = make_task(make, name="still", episode_length=LENGTH)
    env = make_env(task, num_envs=num_envs, seed=1, **settings)
    return task, env, env.rollout(30 * LENGTH, break_when_any_done=False)


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_sees_the_statistics_of_training_and_does_not_change_them(kind):
    task, env, data = trained(KINDS[kind])
    seen = []
    (memory,) = env_memory(env)

    def on_begin(env):
        seen.append(env)

    def collect():
        seen.append(seen[0].base_env.shared_tensordict_parent["next", "observation"].clone())

    hooks = {"on_begin": on_begin, "on_step": collect}
    rows = evaluate(None, task, episodes=2, seed=7, memory=memory, **hooks)
    observed = torch.stack(seen[1:]).flatten(0, 1)
    assert observed.mean(0).abs().max() < 1  # of 20 numbers; afresh it is beyond 3
    late = data["next", "reward"][:, -LENGTH:].sum()
    torch.testing.assert_close(torch.tensor(rows[0]["return"]), late, rtol=0.05, atol=0)
    assert str(env_memory(env)[0]) == str(memory)
    other = make_env(task, seed=3)
    set_env_memory(other, [memory], frozen=True)
    other.rollout(LENGTH)
    assert str(without_sums(env_memory(other)[0])) == str(without_sums(memory))


def without_sums(memory):
    """What is not of the open episode."""
    return {n: [i for i in p["dict"] if i[0] != "discounted_reward"] for n, p in memory.items()}


def test_what_an_environment_offers_is_carried():
    task, env, _ = trained(Curriculum)
    (memory,) = env_memory(env)
    level = env.rollout(1)["next", "reward"].item() - 1
    row = evaluate(None, task, episodes=1, seed=0, memory=memory)[0]
    assert row["return"] > LENGTH * level > 30
    task, env, data = trained(TorchStill)
    row = evaluate(None, task, episodes=1, seed=0, memory=env_memory(env)[0])[0]
    assert row["return"] == LENGTH * (data["next", "reward"].max().item() + 1)


def test_statistics_that_do_not_change_are_carried_too():
    task, env, _ = trained(functools.partial(with_transform, ObservationNorm))
    env._envs[0].base_env.transform.loc.fill_(8.0)
    other = make_env(task, seed=1)
    set_env_memory(other, env_memory(env))
    assert other.rollout(9)["observation"][..., 1].mean().item() == pytest.approx(-13, abs=0.3)


@pytest.mark.parametrize("workers", ["serial", "process"])
def test_each_of_several_environments_has_its_own(workers):
    task, env, _ = trained(in_gymnasium, num_envs=2, workers=workers)
    memories = env_memory(env)
    assert len(memories) == 2 and str(memories[0]) != str(memories[1])
    three = make_env(task, num_envs=3, seed=9)
    set_env_memory(three, memories)
    expected = [memories[0], memories[1], memories[0]]
    assert list(map(str, env_memory(three))) == list(map(str, expected))
    set_env_memory(env, memories[::-1])
    assert list(map(str, env_memory(env))) == list(map(str, memories[::-1]))
    env.close()


def test_a_vector_wrapper_of_gymnasium_remembers_too():
    """The one of rewards: TorchRL resets environments in a mode that the other one refuses."""

    def make(seed):
        mode = gymnasium.vector.AutoresetMode.SAME_STEP
        env = gymnasium.vector.SyncVectorEnv([Still, Still], autoreset_mode=mode)
        env = gymnasium.wrappers.vector.NormalizeReward(env)
        env.autoreset_mode = mode  # which TorchRL asks for
        env = GymWrapper(env)
        env.set_seed(seed)
        return env

    env, other = make(0), make(1)
    env.rollout(100)
    (memory,) = env_memory(env)
    set_env_memory(other, [memory], frozen=True)
    other.rollout(20)
    theirs, ours = env._env.return_rms, other._env.return_rms
    assert (ours.mean, ours.var, ours.count) == (theirs.mean, theirs.var, theirs.count)
    assert ours.count > 190


def test_a_memory_is_of_tensors_and_plain_numbers():
    _, env, _ = trained(in_gymnasium)
    file = io.BytesIO()
    torch.save(env_memory(env), file)
    file.seek(0)
    assert str(torch.load(file, weights_only=True)) == str(env_memory(env))
    assert env_memory(make_env(make_task(Still, episode_length=5))) is None


def test_what_cannot_be_carried_is_said_once():
    class Strange(Curriculum):
        def state_dict(self):
            return {"level": object()}

    def stateless():
        norm = VecNormV2(in_keys=["observation"], stateful=False)
        return TransformedEnv(GymWrapper(Still()), norm)

    said = "task 'Strange' remembers across episodes stays behind .*of type object.*begin without"
    with pytest.warns(UserWarning, match=said) as caught:
        make_task(Strange, episode_length=5)
    assert sum("stays behind" in str(one.message) for one in caught) == 1
    with pytest.warns(UserWarning, match="VecNormV2 with stateful=False keeps its statistics"):
        make_task(stateless, episode_length=5, observation_keys=["observation"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_task(in_gymnasium, episode_length=5)


def test_a_memory_is_not_given_to_environments_that_have_one():
    with pytest.raises(ValueError, match="memory is given with environments or"):
        env = make_env(make_task(Still, episode_length=5))
        evaluate(None, env, episodes=1, seed=0, memory={})


def test_a_task_of_the_suite_goes_on_with_its_statistics():
    """Its state is put back in the middle of an episode, and what normalises it too."""

    def make():
        base = DMControlWrapper(suite.load("cartpole", "balance"))
        return TransformedEnv(base, VecNormV2(in_keys=["position", "velocity"], decay=0.9))

    task = make_task(make, name="cart", episode_length=8)

    def begin(seed):
        env = TransformedEnv(make_env(task, seed=seed), Compose(RewardSum(), StepCounter()))
        return Collector(env, None, frames_per_batch=1, total_frames=-1)

    def steps(collector, number):
        return torch.cat([next(iter(collector)) for _ in range(number)], -1)

    first, second = begin(1), begin(2)
    steps(first, 12)
    state = CollectorState(first).state_dict()
    steps(second, 3)
    CollectorState(second).load_state_dict(state)
    found = []
    for collector in (first, second):
        torch.manual_seed(0)
        found.append(steps(collector, 3)["next", "observation"])
    assert torch.equal(*found)
    for collector in (first, second):
        collector.shutdown()


# ------------------------------------------------------------------ runs


def train(folder, **settings):
    task = make_task(in_gymnasium, name="still", episode_length=LENGTH)
    sizes = {"model": MODEL, "steps": 40, "seed_steps": 200, "eval_episodes": 0, "num_envs": 2}
    trainer = OnlineTrainer(task, output_dir=folder, **sizes | settings)
    trainer.train()
    return trainer


def counts(memories):
    """How many observations each environment's statistics are of."""
    entries = (dict(memory["1 NormalizeReward"]["dict"]) for memory in memories)
    return [round(dict(entry["return_rms"]["dict"])["count"]) for entry in entries]


def test_a_run_evaluates_with_the_statistics_of_training_and_resumes_with_them(tmp_path):
    class Keep:
        def on_evaluation(self, trainer, row):
            self.row = row

    keep = Keep()
    train(tmp_path, eval_episodes=2, callbacks=[keep])
    task = make_task(in_gymnasium, name="still", episode_length=LENGTH)
    memory = load_memory(tmp_path, task)  # as tdmpc2-evaluate does
    assert counts([memory]) == [20]
    rows = evaluate(None, task, episodes=2, seed=1, memory=memory)
    assert keep.row["reward"] == pytest.approx(np.mean([row["return"] for row in rows]))
    afresh = evaluate(None, task, episodes=2, seed=1)
    assert afresh[0]["return"] > 1.5 * rows[0]["return"]
    resumed = train(tmp_path, steps=60, resume="auto")
    assert counts(resumed._collector_state.memory) == [30] * 2
