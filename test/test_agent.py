"""An agent that acts with what was trained."""

from __future__ import annotations

import numpy as np
import pytest
import runs
import torch
from tensordict import TensorDict
from torchrl.checkpoint import Checkpoint, CheckpointError
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_tdmpc import OnlineTrainer, TDMPC2Loss, TDMPC2Update, load_agent
from torchrl_tdmpc.checkpoints import checkpoint, save_checkpoint
from torchrl_tdmpc.envs import load_task
from torchrl_tdmpc.trainers import build_networks

MODEL = {"enc_dim": 16, "mlp_dim": 16, "latent_dim": 16}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder and its trainer."""
    output_dir = tmp_path_factory.mktemp("run")
    return output_dir, runs.run(output_dir)[0]


def test_an_agent_acts_as_the_planner_that_was_saved(trained):
    output_dir, trainer = trained
    agent = load_agent(output_dir)
    observations = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    mean = torch.zeros(3, 3, 1)
    for step, observation in enumerate(observations):
        if step == 2:  # the second environment begins an episode
            agent.reset([False, True, False])
            mean[1] = 0
        data = TensorDict(observation=observation, _previous_mean=mean, batch_size=3)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            torch.manual_seed(step)
            data = trainer.planner(data)
        mean = data["next", "_previous_mean"]
        torch.manual_seed(step)
        assert torch.equal(agent.act(observation), data["action"])
    assert mean.abs().max() > 0


def test_exploring_adds_noise(trained):
    agent = load_agent(trained[0])
    actions = []
    for explore in (False, True):
        agent.reset()
        torch.manual_seed(0)
        observations = torch.randn(32, 5)  # some of their actions are not at the bounds
        actions.append(agent.act(observations, explore=explore))
    assert not torch.equal(*actions)


def test_arrays_give_arrays_and_one_gives_one(trained):
    agent = load_agent(trained[0])
    torch.manual_seed(0)
    batch = agent.act(np.zeros((1, 5)))  # of float64
    agent.reset()
    torch.manual_seed(0)
    one = agent.act(torch.zeros(5))
    assert isinstance(batch, np.ndarray) and batch.shape == (1, 1) and batch.dtype == np.float32
    assert isinstance(one, torch.Tensor) and one.tolist() == batch[0].tolist()


def test_what_an_agent_cannot_act_on_is_refused(trained):
    agent = load_agent(trained[0])
    with pytest.raises(ValueError, match=r"shape \[6\]; this agent observes \[5\]"):
        agent.act(np.zeros(6))
    agent.act(np.zeros((2, 5)))
    with pytest.raises(ValueError, match=r"acted for 2 environments and now gets 3"):
        agent.act(np.zeros((3, 5)))
    agent.reset()
    agent.act(np.zeros((3, 5)))


@pytest.mark.parametrize("which", [True, [True], [True, False, True], [[True, False]]])
def test_a_reset_names_each_environment(trained, which):
    agent = load_agent(trained[0])
    agent.act(np.ones((2, 5)))
    with pytest.raises(ValueError, match=r"which has shape .* 2 environments") as error:
        agent.reset(which)
    assert "\n" not in str(error.value)


def test_networks_of_a_users_own_are_given_again(tmp_path):
    task = load_task("dmcontrol", "cartpole-swingup", episode_length=10)
    update = TDMPC2Update(TDMPC2Loss(*build_networks(task, MODEL), discount=0.95))
    settings = {"steps": 12, "seed_steps": 10, "eval_episodes": 0}
    OnlineTrainer(task, update=update, output_dir=tmp_path, **settings).train()
    with pytest.raises(CheckpointError, match=r"give them as networks="):
        load_agent(tmp_path)
    networks = build_networks(task, MODEL)
    load_agent(tmp_path, networks=networks)
    ours, theirs = networks[0].state_dict(), update.loss.world_model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_is_no_run_is_refused(tmp_path, trained, monkeypatch):
    save_checkpoint(tmp_path / "bare", 1, {"loss": trained[1].update.loss})
    with pytest.raises(CheckpointError, match=r"says nothing of its agent; it must be of a run"):
        load_agent(tmp_path / "bare")
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    with pytest.raises(CheckpointError, match=r"has format 2.*; this version reads format 3"):
        load_agent(trained[0])


@pytest.mark.parametrize("written", [{}, {"format": 1}], ids=["none of its own", "its number"])
def test_a_checkpoint_of_format_1_is_refused(tmp_path, trained, monkeypatch, written):
    publish = Checkpoint.save

    def save(self, path, *, metadata, **settings):
        del metadata["format"]
        return publish(self, path, metadata={**metadata, **written}, **settings)

    monkeypatch.setattr(Checkpoint, "save", save)
    metadata = {"agent": trained[1].metadata["agent"]}
    save_checkpoint(tmp_path, 1, {"loss": trained[1].update.loss}, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"has format 1, of another version of .* format 2\."):
        load_agent(tmp_path)
