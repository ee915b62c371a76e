"""An agent of a model of several tasks: which task its observations are of."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from runs import configure_offline, stored_walks
from tensordict import TensorDict
from torchrl.checkpoint import CheckpointError
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_tdmpc import load_agent
from torchrl_tdmpc.checkpoints import read_metadata, save_checkpoint
from torchrl_tdmpc.cli.train import train

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
NAMES = ["walks:pendulum", "walks:car"]  # which observe 3 and 2 numbers


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder and its trainer."""
    folder = tmp_path_factory.mktemp("run")
    data = stored_walks(tmp_path_factory.mktemp("data"))
    settings = (f"output_dir={folder}", f"data={data}", "eval.episodes=0", "train.steps=3")
    # Plans of random networks are at the bounds, whatever the task
    return folder, train(configure_offline(*settings, "planner.mpc=false"))


def planned(planner, observation, task):
    """The actions of the planner that was saved."""
    rows = len(observation)
    data = TensorDict(
        observation=observation,
        task=torch.tensor(task),
        _previous_mean=torch.zeros(rows, 3, 1),
        batch_size=rows,
    )
    torch.manual_seed(0)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        return planner(data)["action"]


def test_a_batch_of_several_tasks(trained):
    folder, trainer = trained
    agent = load_agent(folder)
    observation = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    observation[1, 2] = 0.0  # the car's padding
    expected = planned(trainer.planner, observation, [0, 1, 0])
    torch.manual_seed(0)
    names = [NAMES[0], NAMES[1], NAMES[0]]
    assert torch.equal(agent.act(observation, task=names), expected)
    agent.reset()
    torch.manual_seed(0)
    swapped = agent.act(observation, task=[NAMES[1], NAMES[0], NAMES[1]])
    assert (swapped != expected).all()


def test_observations_of_one_task_are_as_in_that_task_alone(trained):
    folder, trainer = trained
    agent = load_agent(folder)
    observation = torch.randn(2, 2, generator=torch.Generator().manual_seed(1))
    padded = torch.cat([observation, torch.zeros(2, 1)], 1)
    expected = planned(trainer.planner, padded, [1, 1])
    torch.manual_seed(0)
    assert torch.equal(agent.act(observation, task="walks:car"), expected)
    agent.reset()
    torch.manual_seed(0)
    one = agent.act(observation[0].numpy(), task="walks:car")
    assert isinstance(one, np.ndarray) and one.shape == (1,)
    assert one[0] == planned(trainer.planner, padded[:1], [1])[0, 0]


def test_actions_have_the_tasks_own_dimensions(trained, monkeypatch):
    """The model's actions are cut where it is told one task."""
    agent = load_agent(trained[0])
    wide = torch.arange(4.0).reshape(2, 2)

    class Acts:
        in_keys = ["observation", "_previous_mean", "task"]
        action_key, action_dim, horizon = "action", 2, 3

        def parameters(self):
            return iter([torch.zeros(())])

        def __call__(self, data):
            return data.set("action", wide).set(("next", "_previous_mean"), data[self.in_keys[1]])

    agent.planner = Acts()
    assert torch.equal(agent.act(torch.zeros(2, 3), task="walks:pendulum"), wide[:, :1])
    assert torch.equal(agent.act(torch.zeros(2, 3), task=NAMES), wide)


@pytest.mark.parametrize(
    ("observation", "task", "words"),
    [
        (torch.zeros(3), None, "task is None; it must say which of walks:pendulum, walks:car the"),
        (torch.zeros(2), "walks:cat", "task 'walks:cat' is unknown (did you mean walks:car?)"),
        (torch.zeros(3), "walks:car", "shape [3]; this agent observes [2], or a batch of it"),
        (torch.zeros(2), NAMES, "shape [2]; this agent observes [3], or a batch of it"),
        (torch.zeros(3, 3), NAMES, "task has 2 names for 3 observations; it must be one name"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(trained, observation, task, words):
    with pytest.raises(ValueError) as error:
        load_agent(trained[0]).act(observation, task=task)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_an_agent_of_one_task_takes_no_task(trained):
    agent = load_agent(trained[0])
    agent.tasks = None
    with pytest.raises(ValueError, match="task is 'walks:car'; this agent is of one task"):
        agent.act(torch.zeros(3), task="walks:car")


@pytest.mark.parametrize(
    "tables",
    [
        None,
        {"observation_dims": [3, 2]},
        {"observation_dims": [3], "action_dims": [1, 1], "discounts": [0.9, 0.9]},
        {"observation_dims": 3, "action_dims": [1, 1], "discounts": [0.9, 0.9]},
        {"observation_dims": [3, 2], "action_dims": [1, 1], "discounts": [0.9, 0.9], "names": [2]},
    ],
    ids=json.dumps,
)
def test_tables_that_no_run_writes_are_refused(trained, tmp_path, tables):
    folder, trainer = trained
    agent = dict(read_metadata(folder / "checkpoints/checkpoint-000000000003.torchrl")["agent"])
    agent["tables"] = tables and {"embedding_dim": 96, **tables}
    save_checkpoint(tmp_path, 1, {"loss": trainer.update.loss}, metadata={"agent": agent})
    with pytest.raises(CheckpointError, match="describes its agent as no run does"):
        load_agent(tmp_path)
