"""Tiny networks, losses, batches and planners whose weights are far from their initialisation."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import nn
from torchrl.objectives import SoftUpdate

from torchrl_tdmpc import (
    TaskContext,
    TDMPC2Loss,
    TDMPC2Planner,
    TDMPC2WorldModel,
    make_networks,
)
from torchrl_tdmpc.modules import ModelSize

OBSERVATION, ACTION, LATENT, NUM_Q = 3, 2, 16, 3
BATCH, HORIZON = 5, 3
SIZE = ModelSize(enc_dim=12, mlp_dim=16, latent_dim=LATENT, num_enc_layers=2, num_q=NUM_Q)


def tiny_networks(seed=0, *, size=SIZE, action_dim=ACTION, **kwargs):
    """Published networks in which no weight is zero, so that no head can hide a mistake."""
    torch.manual_seed(seed)
    networks = make_networks((OBSERVATION,), action_dim, size, **kwargs)
    torch.manual_seed(seed + 5)
    for network in networks:
        scramble(p for p in network.parameters() if p.requires_grad)
    return networks


def tiny_tasks() -> TaskContext:
    """Three tasks whose actions and discounts differ."""
    return TaskContext(action_dims=[ACTION, 1, ACTION], discounts=[0.9, 0.5, 0.7], embedding_dim=4)


def tiny_multitask_networks(seed=0, **kwargs):
    torch.manual_seed(seed)
    return tiny_networks(seed, task_context=tiny_tasks(), **kwargs)


def tiny_loss(
    seed=0, *, episodic=True, dropout=0.0, size=SIZE, networks=None, loss_class=TDMPC2Loss, **kwargs
) -> TDMPC2Loss:
    """A loss whose targets differ from its Q-functions."""
    networks = networks or tiny_networks(seed, episodic=episodic, dropout=dropout, size=size)
    loss = loss_class(*networks, **{"discount": 0.9, **kwargs})
    SoftUpdate(loss, tau=0.01)
    scramble(loss.target_q_ensemble_params.values(True, True))
    return loss


def tiny_multitask_loss(seed=0, *, dropout=0.0, **kwargs) -> TDMPC2Loss:
    networks = tiny_multitask_networks(seed, dropout=dropout)
    return tiny_loss(seed, networks=networks, discount=None, **kwargs)


def tiny_multitask_batch(seed=1) -> TensorDict:
    """Transitions of which all tasks have some."""
    task = torch.tensor([0, 1, 2, 1, 0])
    return tiny_batch(seed).set("task", task.unsqueeze(1).expand(BATCH, HORIZON))


def tiny_batch(seed=1, batch=BATCH, horizon=HORIZON) -> TensorDict:
    """Transitions with terminated steps, a reward of zero and one beyond the support."""
    generator = torch.Generator().manual_seed(seed)

    def normal(size):
        return torch.randn(batch, horizon, size, generator=generator)

    reward = normal(1)
    reward[0, 0], reward[1, 0], reward[1, 1] = 0.0, 1e5, -1e5
    return TensorDict(
        observation=normal(OBSERVATION),
        action=normal(ACTION).tanh(),
        next=TensorDict(
            observation=normal(OBSERVATION),
            reward=reward,
            terminated=normal(1) > 0.5,
            batch_size=(batch, horizon),
        ),
        batch_size=(batch, horizon),
    )


def tiny_draws(seed=2, batch=BATCH, horizon=HORIZON, dtype=None) -> tuple[dict, dict]:
    """Random draws of a model loss and of an actor loss."""
    generator = torch.Generator().manual_seed(seed)
    normal = {"generator": generator, "dtype": dtype}
    return (
        {
            "policy_eps": torch.randn(batch, horizon, ACTION, **normal),
            "q_pair": torch.tensor([2, 0]),
        },
        {
            "policy_eps": torch.randn(batch, horizon + 1, ACTION, **normal),
            "q_pair": torch.tensor([0, 1]),
        },
    )


def tiny_planner(seed=0, *, networks=None, action_dim=ACTION, **kwargs) -> TDMPC2Planner:
    networks = networks or tiny_networks(seed, action_dim=action_dim)
    settings = {"num_samples": 24, "num_elites": 6, "num_pi_trajs": 4, "iterations": 3}
    return TDMPC2Planner(*networks, **{"discount": 0.9, **settings, **kwargs})


def tiny_planner_input(*batch_size, horizon=HORIZON, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TensorDict(
        observation=torch.randn(*batch_size, OBSERVATION, generator=generator),
        _previous_mean=torch.randn(*batch_size, horizon, ACTION, generator=generator).tanh(),
        batch_size=batch_size,
    )


def tiny_ending_networks():
    """Networks that predict the end on arriving in about a third of the latents."""
    world_model, policy_prior, q_ensemble = tiny_networks()
    latent, action = torch.randn(999, LATENT).softmax(-1), torch.rand(999, ACTION) * 2 - 1
    for _ in range(2):
        latent = world_model.next(latent, action)
    threshold = latent[:, 1].quantile(0.67).item()

    class Ends(nn.Module):
        def forward(self, latent):
            return 50 * (latent[..., 1:2] - threshold)

    ending = TDMPC2WorldModel(
        world_model.encoder,
        world_model.dynamics,
        world_model.reward_head,
        Ends(),
        latent_dim=LATENT,
    )
    return ending, policy_prior, q_ensemble


def scramble(tensors) -> None:
    """Move weights by normal noise, in place."""
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(0.3 * torch.randn_like(tensor))


def seeded(function, *args, seed=0, **kwargs):
    """The function's result under a seed of its own."""
    torch.manual_seed(seed)
    return function(*args, **kwargs)


def total(losses: TensorDict) -> torch.Tensor:
    """What an optimiser minimises: the sum of every ``loss_*``."""
    return sum(value for name, value in losses.items() if name.startswith("loss_"))
