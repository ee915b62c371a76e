"""Several tasks for one model: environments that look alike, evaluated together."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch
from reference_data import FOLDER
from tensordict.nn import TensorDictModule

from torchrl_tdmpc import TDMPC2Planner
from torchrl_tdmpc.envs import (
    MT30,
    TaskSet,
    env_seeds,
    env_state,
    load_task,
    load_tasks,
    make_env,
    make_task,
)
from torchrl_tdmpc.recording import OfflineRecord
from torchrl_tdmpc.trainers import build_networks, evaluate

TINY_MODEL = {"enc_dim": 16, "mlp_dim": 16, "latent_dim": 16}
NAMES = ["cartpole-swingup", "walker-stand", "Pendulum-v1"]


@pytest.fixture(scope="module")
def tasks():
    short = {"cartpole-swingup": 4, "walker-stand": 6, "Pendulum-v1": 5}
    backends = {"Pendulum-v1": "gym"}
    each = (load_task(backends.get(n, "dmcontrol"), n, episode_length=short[n]) for n in NAMES)
    return TaskSet("three", tuple(each))


def test_facts_of_the_tasks_are_joined():
    tasks = load_tasks(["cartpole-swingup", "cup-catch", "Pendulum-v1"])
    assert (tasks.observation_shape, tasks.action_dim) == ((8,), 2)
    assert (tasks.observation_dims, tasks.action_dims) == ([5, 8, 3], [1, 2, 1])
    assert [task.episode_length for task in tasks.padded] == [500, 500, 200]
    assert [task.action_repeat for task in tasks.padded] == [2, 2, 1]
    assert not any(task.episodic for task in tasks.padded)
    assert {task.observation_shape for task in tasks.padded} == {(8,)}
    networks = build_networks(tasks, {"size": 1})
    context = networks[0].task_context
    assert context.action_masks.tolist() == [[1, 0], [1, 1], [1, 0]]
    assert context.discounts.tolist() == pytest.approx([0.99, 0.99, 0.975])


def test_the_published_set():
    assert len(set(MT30)) == 30
    for path in FOLDER.glob("*.npz"):
        with np.load(path) as arrays:
            if "mt30_all_tasks" in arrays.files:
                assert list(MT30) == arrays["mt30_all_tasks"].tolist()


@pytest.mark.parametrize("size, task_dim", [(1, 96), (5, 64)])
def test_size_of_the_embedding(tasks, size, task_dim):
    for name, expected in (("mt30", task_dim), ("mine", 96)):
        model = {**TINY_MODEL, "size": size}
        world_model, *_ = build_networks(TaskSet(name, tasks.tasks), model)
        assert world_model.task_context.embedding.shape == (3, expected)
    world_model, *_ = build_networks(tasks, {**TINY_MODEL, "task_dim": 7})
    assert world_model.task_context.embedding.shape == (3, 7)


@pytest.mark.parametrize("workers", ["serial", "process"])
def test_environments_of_several_tasks_do_what_each_does_alone(tasks, workers):
    seeds = env_seeds(3, 3)
    joined = make_env(tasks.padded, num_envs=3, seed=3, workers=workers)
    alone = [task.make(seed) for task, seed in zip(tasks.tasks, seeds)]
    data, each = joined.reset(), [env.reset() for env in alone]
    actions = torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for action in actions:
        data = joined.step(data.set("action", action))["next"]
        for i, (task, env) in enumerate(zip(tasks.tasks, alone)):
            own, padding = task.observation_shape[0], 24 - task.observation_shape[0]
            each[i] = env.step(each[i].set("action", action[i, : task.action_dim]))["next"]
            assert torch.equal(data["observation"][i, :own], each[i]["observation"])
            assert torch.equal(data["observation"][i, own:], torch.zeros(padding))
            for key in ("reward", "done", "truncated"):
                assert torch.equal(data[key][i], each[i][key])
            assert data["task"][i].item() == i
    assert data["done"].flatten().tolist() == [True, False, False]
    joined.close()


def test_the_state_of_padded_environments_can_be_told():
    tasks = load_tasks(["cartpole-swingup", "cup-catch"])
    env = make_env(tasks.padded, num_envs=2)
    env.reset()
    assert len(env_state(env)) == 2


def test_evaluation_of_several_tasks_is_that_of_each(tasks):
    def act(observation, task):
        return (observation[..., :6] + 0.1 * task).tanh()

    policy = TensorDictModule(act, in_keys=["observation", "task"], out_keys=["action"])
    rows = evaluate(policy, tasks, episodes=2, seed=5)
    assert [row["task"] for row in rows] == [name for name in NAMES for _ in range(2)]
    assert [row["length"] for row in rows] == [4, 4, 6, 6, 5, 5]
    assert rows == evaluate(policy, tasks, episodes=2, seed=5, num_envs=2)
    for i, task in enumerate(tasks.padded):
        own = evaluate(policy, task, episodes=2, seed=5)
        assert own == [{k: v for k, v in row.items() if k != "task"} for row in rows[2 * i :][:2]]
        assert own[0]["return"] != own[1]["return"]


class Reach(gymnasium.Env):
    """Tells of its success in its third step, and of a force."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        info = {"reached": np.float64(self.steps == 3), "force": 2.0}
        return np.zeros(1, np.float32), 0.0, False, False, info


def test_success_is_told_of_the_tasks_that_know_it(tasks):
    reach = make_task(Reach, episode_length=3, success_key="reached", extra_keys=["force"])
    assert reach.extra_keys == ("force", "reached")
    both = TaskSet("both", (reach, tasks.tasks[0]))
    assert both.extra_keys == ("success",)
    data = make_env(both.padded, num_envs=2).rollout(3, break_when_any_done=False)
    success = data["next", "success"]
    assert success[0].flatten().tolist() == [0, 0, 1] and success[1].isnan().all()
    assert success.dtype == torch.float32 and "force" not in data["next"].keys()  # noqa: SIM118
    rows = evaluate(None, both, episodes=1, seed=0)
    assert rows[0]["success"] == 1 and math.isnan(rows[1]["success"])
    found = OfflineRecord(both.tasks, [], extra=[*both.extra_names]).tasks_evaluated(0, rows)
    assert found[0]["score"] == 100 and found[1]["score"] == rows[1]["return"] / 10
    assert tasks.extra_keys == ()


def test_a_planner_plans_for_all_tasks_at_once(tasks):
    networks = build_networks(tasks, TINY_MODEL)
    settings = {"num_samples": 16, "num_elites": 4, "num_pi_trajs": 2}
    sizes = []

    class Watched(TDMPC2Planner):
        def _act(self, tensordict):
            sizes.append(tensordict["task"].flatten().tolist())
            return super()._act(tensordict)

    rows = evaluate(Watched(*networks, **settings), tasks, episodes=1, seed=0)
    assert [row["length"] for row in rows] == [4, 6, 5]
    assert sizes == 6 * [[0, 1, 2]]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "tasks is empty"),
        (["cup-catch", "cup-catch"], "tasks names cup-catch twice"),
        (["cup-cath"], "task 'cup-cath' is unknown (did you mean cup-catch?)"),
        ("mt31", "tasks 'mt31' is unknown (did you mean mt30?); choose from mt30, mt80 or a list"),
        ("mt80", "50 tasks of which are of Meta-World"),
        (["mw-push"], "tasks has mw-push, which is of Meta-World"),
        (["myo-reach"], "tasks has myo-reach, which is of MyoSuite"),
    ],
)
def test_what_cannot_be_joined_is_refused(names, words):
    with pytest.raises((ValueError, ImportError)) as error:
        load_tasks(names)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_pixels_are_refused():
    task = make_task("Pendulum-v1", episode_length=3)
    frames = type(task)(**{**vars(task), "observation_shape": (9, 64, 64)})
    with pytest.raises(ValueError, match=r"Pendulum-v1, whose observations have shape \[9, 64, 64"):
        TaskSet("one", (frames,))
