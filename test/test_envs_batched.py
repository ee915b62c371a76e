"""Environments that are a batch by nature: N at once are N single ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import runs
import torch
from runs import configure
from tensordict.nn import TensorDictModule
from torchrl.envs import SerialEnv

from torchrl_tdmpc.cli.settings import settle
from torchrl_tdmpc.envs import TaskSet, make_env, make_task
from torchrl_tdmpc.planners import TDMPC2Planner
from torchrl_tdmpc.recording import check_video
from torchrl_tdmpc.trainers import evaluate

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from batched_pendulum import BatchedPendulum

N = 3


class OwnDraws(BatchedPendulum):
    """Each pendulum draws from a generator of its own, and terminates when it is fast.

    Args:
        first: seed of the first one.
        num_envs: N.
    """

    def __init__(self, first=0, num_envs=N):
        super().__init__(num_envs)
        self.generators = [torch.Generator().manual_seed(first + i) for i in range(num_envs)]
        self.begun = torch.zeros(num_envs, dtype=torch.int)

    def _set_seed(self, seed):
        pass

    def _reset(self, tensordict=None):
        begins = None if tensordict is None else tensordict.get("_reset", None)
        self.begins = [True] * len(self.generators) if begins is None else begins.flatten().tolist()
        self.begun += torch.tensor(self.begins)
        return super()._reset(tensordict)

    def _draw(self):
        drawn = [
            torch.randn(2, generator=generator) if begins else torch.zeros(2)
            for generator, begins in zip(self.generators, self.begins)
        ]
        return torch.stack(drawn)

    def _ended(self):
        return self.state[:, 1:].abs() > 5


def batch_of(first=0, num_envs=N, **settings):
    settings = {"episode_length": 7, **settings}
    return make_task(OwnDraws, kwargs={"first": first, "num_envs": num_envs}, **settings)


@pytest.mark.parametrize("repeat", [1, 3])
def test_a_batch_is_so_many_single_environments_step_by_step(repeat):
    batch = make_env(batch_of(action_repeat=repeat), seed=5)
    tasks = [batch_of(i, 1, action_repeat=repeat) for i in range(N)]
    singles = [make_env(task, seed=5) for task in tasks]
    now, each = batch.reset(), [env.reset() for env in singles]
    terminated, truncated = [], []
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        action = torch.rand(N, 1, generator=generator) * 2 - 1
        step, now = batch.step_and_maybe_reset(now.set("action", action))
        for i, env in enumerate(singles):
            alone, each[i] = env.step_and_maybe_reset(each[i].set("action", action[i : i + 1]))
            for key in ("observation", "reward", "done", "terminated", "truncated"):
                assert torch.equal(step["next", key][i], alone["next", key][0]), key
            assert torch.equal(now["observation"][i], each[i]["observation"][0])
        terminated.append(step["next", "terminated"].flatten())
        truncated.append(step["next", "truncated"].flatten())
    ended = torch.stack(terminated) | torch.stack(truncated)
    assert torch.stack(terminated).any() and torch.stack(truncated).any()
    assert (ended.any(-1) & ~ended.all(-1)).any(), "episodes end at different times"


def test_a_pendulum_is_that_of_gymnasium():
    gymnasium = pytest.importorskip("gymnasium")
    ours = BatchedPendulum(2)
    ours.set_seed(3)
    now = ours.reset()
    theirs = [gymnasium.make("Pendulum-v1").unwrapped for _ in range(2)]
    for i, env in enumerate(theirs):
        env.reset()
        env.state = ours.state[i].double().numpy()
    torques = torch.linspace(-2, 2, 30).reshape(15, 2, 1)
    for torque in torques:
        now = ours.step(now.set("action", torque))["next"]
        for i, env in enumerate(theirs):
            observation, reward, *_ = env.step(torque[i].double().numpy())
            torch.testing.assert_close(
                now["observation"][i], torch.as_tensor(observation), atol=1e-4, rtol=1e-4
            )
            assert now["reward"][i].item() == pytest.approx(reward, abs=1e-3)


def test_an_evaluation_runs_the_batch_with_seeds_of_its_own():
    task = make_task(BatchedPendulum, kwargs={"num_envs": N}, episode_length=4)
    still = TensorDictModule(lambda seen: 0 * seen[..., :1], ["observation"], ["action"])
    five, again = (evaluate(still, task, episodes=5, seed=1) for _ in range(2))
    assert five == again and [row["length"] for row in five] == [4] * 5
    assert evaluate(still, task, episodes=2, seed=1) == five[:2]
    assert len({row["return"] for row in five}) == 5  # the second batch has other states
    others = evaluate(still, task, episodes=5, seed=2)
    assert {row["return"] for row in others}.isdisjoint(row["return"] for row in five)


def test_episodes_of_an_evaluation_are_as_long_as_they_are_alone():
    def rows_of(task, episodes):
        env = make_env(task)
        env.rand_action = lambda data: data.set("action", torch.full((*env.batch_size, 1), 0.5))
        return evaluate(None, env, episodes=episodes, seed=0)

    together = rows_of(batch_of(episode_length=30), N)
    alone = [rows_of(batch_of(i, 1, episode_length=30), 1)[0] for i in range(N)]
    assert [row["length"] for row in together] == [row["length"] for row in alone]
    assert len({row["length"] for row in together}) > 1
    assert [row["return"] for row in together] == pytest.approx([row["return"] for row in alone])


OURS = [
    "env.backend=function",
    "env.task=test_envs_batched:OwnDraws",
    "env.kwargs={num_envs: 3}",
    "train.seed_steps=30",
    "train.steps=48",
    "train.utd=0.5",
    "eval.episodes=4",
    "checkpoint.interval=33",
    "resume=auto",
]


class Died(BaseException):
    """Instead of kill -9."""


class DieAt:
    def on_collect(self, trainer, data):
        assert data.shape == (N, 1) and "_previous_mean" not in set(data.keys())
        if trainer.counters.agent_steps >= 42:
            raise Died


def test_a_run_trains_evaluates_and_goes_on(tmp_path, capsys):
    with pytest.raises(Died):
        runs.run(tmp_path, *OURS, callbacks=[DieAt()])
    trainer, _, evaluations = runs.run(tmp_path, *OURS)
    assert (trainer.num_envs, trainer.counters.agent_steps, trainer.counters.updates) == (N, 48, 24)
    assert trainer.num_truncated_episodes == N  # the environments cannot tell their state
    assert len(evaluations) >= 1 and all(row["episodes"] == "4" for row in evaluations)
    # What was stored is what one pendulum does: no slice crosses environments or episodes
    for _ in range(5):
        batch = trainer.replay.sample()
        assert torch.equal(batch["next", "observation"][:, :-1], batch["observation"][:, 1:])
        flat = batch.flatten()
        pendulums = BatchedPendulum(len(flat))
        now = pendulums.reset()
        cos, sin, velocity = flat["observation"].unbind(-1)
        pendulums.state = torch.stack([torch.atan2(sin, cos), velocity], -1)
        step = pendulums.step(now.set("action", 2 * flat["action"]))["next"]
        for key in ("observation", "reward"):
            torch.testing.assert_close(step[key], flat["next", key], atol=1e-4, rtol=1e-4)


def test_the_number_follows_from_the_environment_or_equals_it():
    config, task = settle(configure(*OURS[:3], "train.seed_steps=auto", "train.steps=5_000"))
    assert (config.env.num_envs, task.num_envs) == (N, N)
    for given in (1, 4):
        with pytest.raises(
            ValueError, match=f"^env.num_envs is {given}, but .* batch of 3; choose"
        ):
            settle(configure(*OURS[:3], f"env.num_envs={given}"))
    with pytest.raises(
        ValueError, match=r"^eval\.num_envs is 2, but .* are a batch of 3; choose 3"
    ):
        settle(configure(*OURS[:3], "eval.num_envs=2"))
    assert settle(configure())[0].env.num_envs == 1


def test_what_a_batch_cannot_do_is_one_sentence():
    task = batch_of()
    sentences = {
        "^workers is 'process', but the environments of task 'OwnDraws' are one batch": (
            lambda: make_env(task, workers="process")
        ),
        "^tasks has OwnDraws, whose environments are a batch of 3": (
            lambda: TaskSet("one", (task,))
        ),
        "^a video is wanted, but the environments of task 'OwnDraws' are a batch": (
            lambda: check_video(task)
        ),
        "^task 'OwnDraws' is a batch of 3 environments, of which no images": (
            lambda: batch_of(pixels=True)
        ),
        "^task 'twice' has batch size .2, 3.; choose a batch of one dimension": (
            lambda: make_task(lambda: SerialEnv(2, OwnDraws), name="twice", episode_length=5)
        ),
        "^num_envs is 2, but": lambda: make_env(task, num_envs=2),
    }
    for sentence, call in sentences.items():
        with pytest.raises(ValueError, match=sentence):
            call()


class Breaks(OwnDraws):
    def _step(self, tensordict):
        data = super()._step(tensordict)
        if self.begun[0] > 1:
            data["observation"][2, 1] = torch.nan
        return data


class TruncatesEarly(OwnDraws):
    def _step(self, tensordict):
        self.steps = getattr(self, "steps", 0) + 1
        data = super()._step(tensordict)
        data["terminated"] = torch.zeros_like(data["done"])
        data["done"] = data["truncated"] = torch.tensor([[False], [self.steps % 5 == 0], [False]])
        return data


def test_the_environment_of_a_wrong_number_is_named():
    env = make_env(make_task(Breaks, episode_length=9))
    env.reset()
    now = env.reset()
    with pytest.raises(ValueError, match="NaN or infinity as its observation by step") as caught:
        env.step(now.set("action", torch.zeros(N, 1)))
    assert caught.value.environment == 2
    env = make_env(batch_of())
    now, action = env.reset(), torch.zeros(N, 1)
    action[1] = torch.nan
    with pytest.raises(ValueError, match=r"was given the action \[nan\]") as caught:
        env.step(now.set("action", action))
    assert caught.value.environment == 1


def test_a_limit_of_the_batch_itself_is_compared_with_the_one_asked_for():
    env = make_env(make_task(TruncatesEarly, episode_length=9))
    env.base_env.steps = 0  # as after the trial
    with pytest.raises(ValueError, match=r"episode_length is 9, but task .* after 5 agent steps"):
        env.rollout(9, break_when_any_done=False)


def test_the_warm_start_of_a_plan_is_zero_where_an_episode_begins(tmp_path, monkeypatch):
    overrides = [*OURS[:-1], f"output_dir={tmp_path}", "train.steps=90", "train.utd=0.05"]
    overrides.append("eval.episodes=0")
    trainer = runs.make(configure(*overrides))
    plan, begins, is_cold = TDMPC2Planner.forward, [], []

    def seen_plan(self, data):
        begins.append(data["step_count"].flatten() == 0)
        is_cold.append((data["_previous_mean"] == 0).flatten(1).all(-1))
        return plan(self, data)

    monkeypatch.setattr(TDMPC2Planner, "forward", seen_plan)
    trainer.train()
    begins, is_cold = torch.stack(begins), torch.stack(is_cold)
    assert (begins.any(-1) & ~begins.all(-1)).any()  # not all at once
    # The random steps before the first plan leave every warm start cold
    assert torch.equal(is_cold[1:], begins[1:])
