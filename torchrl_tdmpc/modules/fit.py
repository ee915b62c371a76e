"""Whether networks that were made apart fit each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from torchrl_tdmpc.modules.policy_prior import PolicyPrior
from torchrl_tdmpc.modules.q_ensemble import QEnsemble
from torchrl_tdmpc.modules.world_model import TDMPC2WorldModel

__all__ = ["refuse_misfit"]


def refuse_misfit(
    world_model: TDMPC2WorldModel, policy_prior: PolicyPrior, q_ensemble: QEnsemble
) -> None:
    """Refuse networks that do not fit each other, by calling each on a latent and an action.

    The encoder is not called: what it gives is checked whenever the world model encodes.

    Raises:
        ValueError: sizes differ, or the networks are in half precision.
    """
    latent_dim, action_dim = world_model.latent_dim, q_ensemble.action_dim
    if latent_dim != q_ensemble.latent_dim:
        raise ValueError(
            f"the world model's latent_dim is {latent_dim} and the Q-functions' is "
            f"{q_ensemble.latent_dim}; they must be the same."
        )
    tasks = world_model.task_context
    embedding_dim = 0 if tasks is None else tasks.embedding_dim
    if embedding_dim != q_ensemble.embedding_dim:
        raise ValueError(
            f"the embedding of the tasks has {embedding_dim} numbers and the Q-functions read "
            f"{q_ensemble.embedding_dim}; they must be the same."
        )
    if tasks is not None and tasks.action_dim != action_dim:
        raise ValueError(
            f"the widest action of the tasks has {tasks.action_dim} dimensions and the "
            f"Q-functions read actions of {action_dim}; they must be the same."
        )
    weight = next(q_ensemble.parameters())
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"the networks' weights are {weight.dtype}; they must be float32 or float64 "
            "(Execution(precision='bfloat16') computes with halves)."
        )
    context = [] if tasks is None else [weight.new_zeros(1, embedding_dim)]
    latent = [weight.new_zeros(1, latent_dim), *context]
    action = weight.new_zeros(1, action_dim)
    bins = world_model.two_hot.num_bins
    with _evaluating(world_model, policy_prior):
        _call("dynamics", world_model.dynamics, [*latent, action], latent_dim, "latent_dim")
        _call("reward head", world_model.reward_head, [*latent, action], bins, "num_bins")
        if world_model.episodic:
            _call("termination head", world_model.termination_head, latent, 1, "one logit")
        size = "twice the action's size"
        _call("policy's network", policy_prior.network, latent, 2 * action_dim, size)


def _call(
    name: str, network: Callable[..., Tensor], inputs: list[Tensor], size: int, what: str
) -> None:
    """Refuse a network that cannot read the inputs, or gives another number of outputs."""
    try:
        output = network(*inputs)
    except (RuntimeError, TypeError, ValueError) as error:
        sizes = " + ".join(str(x.shape[-1]) for x in inputs)
        raise ValueError(f"the {name} cannot read inputs of {sizes} numbers: {error}") from error
    if output.shape[-1] != size:
        raise ValueError(
            f"the {name} gives {output.shape[-1]} numbers; it must give {size}, which is {what}."
        )


@contextmanager
def _evaluating(*networks: nn.Module) -> Iterator[None]:
    """In evaluation mode, without gradients; modes and random generator are put back."""
    modes = {module: module.training for network in networks for module in network.modules()}
    for network in networks:
        network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
