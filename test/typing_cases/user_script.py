"""What a user may write, with every public name: mypy checks it, and test_typing.py runs it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import torchrl_tdmpc as td
from torchrl_tdmpc.envs import Task, TaskSet, load_task, make_env
from torchrl_tdmpc.modules import Context, ModelSize

SIZE = ModelSize(enc_dim=16, mlp_dim=16, latent_dim=16, num_enc_layers=2, num_q=2)


def make_update(task: Task) -> td.TDMPC2Update:
    """Networks with an encoder of one's own, the loss, an auxiliary loss and an update."""
    encoder = nn.Sequential(td.NormedLinear(task.observation_shape[0], 16, td.SimNorm(8)))
    two_hot = td.SymlogTwoHot(num_bins=21)
    model, prior, critics = td.make_networks(
        task.observation_shape, task.action_dim, SIZE, encoder=encoder, two_hot=two_hot
    )
    assert_type(model, td.TDMPC2WorldModel)
    assert_type(prior, td.PolicyPrior)
    assert_type(critics, td.QEnsemble)
    config = td.MultiGammaConfig(enabled=True, gammas=["primary", 0.9], head="separate")
    heads = td.AuxiliaryValueHeads(SIZE.latent_dim, num_heads=1, num_bins=two_hot.num_bins)
    discounts = config.discounts(0.99)
    assert_type(discounts, tuple[float, ...])
    auxiliary = td.MultiGammaValueLoss(heads, discounts, two_hot=two_hot)
    loss = td.TDMPC2Loss(model, prior, critics, discount=discounts[0])
    update = td.TDMPC2Update(loss, [auxiliary], lr=1e-3)
    assert_type(update.loss, td.TDMPC2Loss)
    return update


def use_networks(update: td.TDMPC2Update, observation: Tensor) -> Tensor:
    """Imagine one agent step and value it."""
    loss = update.loss
    latent = assert_type(loss.world_model.encode(observation), Tensor)
    action = assert_type(loss.policy_prior.act(latent), Tensor)
    td.LatentEnv(loss.world_model, action_dim=action.shape[-1])
    value = assert_type(loss.q_ensemble.value(latent, action), Tensor)
    td.RunningPercentileScale(tau=0.01).update(value)
    return assert_type(loss.world_model.reward(latent, action), Tensor)


def act(update: td.TDMPC2Update, task: Task) -> None:
    """Plan, learn from what was collected, and act with arrays and with tensors."""
    loss = update.loss
    planner = td.TDMPC2Planner(
        loss.world_model, loss.policy_prior, loss.q_ensemble, discount=0.99, iterations=1
    )
    env = make_env(task).append_transform(planner.make_tensordict_primer())
    update(env.rollout(3, planner))
    agent = td.Agent(planner, task.observation_shape)
    assert_type(agent.act(np.zeros(task.observation_shape)), np.ndarray)
    assert_type(agent.act(torch.zeros(task.observation_shape)), Tensor)
    assert [row["length"] for row in td.evaluate(planner, task, episodes=2, seed=1)] == [10, 10]


def train(update: td.TDMPC2Update, task: Task, folder: str) -> td.Agent:
    """A run, and the agent that it saved."""
    trainer = td.OnlineTrainer(
        task, output_dir=folder, model={"latent_dim": 16}, steps=12, seed_steps=10, eval_episodes=0
    )
    trainer.train()
    assert_type(trainer.counters.agent_steps, int)
    assert_type(trainer.update, td.TDMPC2Update)
    return td.load_agent(folder)


def several_tasks(tasks: TaskSet, data: str) -> td.OfflineTrainer:
    """Tables of several tasks, an encoder of pixels, and a run from stored episodes."""
    td.PixelEncoder(9, 8, td.SimNorm(8))
    context = td.TaskContext(tasks.action_dims, [0.99] * len(tasks.names), embedding_dim=8)
    assert_type(context.forward(torch.tensor([0])), Context)
    return td.OfflineTrainer(tasks, data, steps=3)


def main(folder: str) -> None:
    """Run what needs no stored episodes."""
    task = load_task("dmcontrol", "cartpole-balance", episode_length=10)
    update = make_update(task)
    assert use_networks(update, torch.zeros(2, *task.observation_shape)).shape == (2, 1)
    act(update, task)
    assert train(update, task, folder).act(np.zeros(5)).shape == (1,)
