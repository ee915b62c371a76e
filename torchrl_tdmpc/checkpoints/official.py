"""Checkpoints of the official TD-MPC2 implementation, read and written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchrl_tdmpc.checkpoints.archive import read_weights
from torchrl_tdmpc.checkpoints.official_entries import (
    EMBEDDING,
    Q_GROUPS,
    Entries,
    OfficialAgent,
    detached,
    official_weights,
    reorder_latent,
)
from torchrl_tdmpc.durable import publish
from torchrl_tdmpc.modules import ModelSize, SimNorm, official_order
from torchrl_tdmpc.objectives import TDMPC2Loss

__all__ = [
    "OfficialAgent",
    "load_official",
    "num_official_tasks",
    "official_size",
    "official_weights",
    "save_official",
]


def load_official(
    path: str | Path,
    *,
    discount: float | Sequence[float],
    action_dims: Sequence[int] | None = None,
    simnorm_dim: int = 8,
    vmin: float = -10.0,
    vmax: float = 10.0,
    dropout: float = 0.01,
    device: torch.device | str = "cpu",
    **settings: Any,
) -> OfficialAgent:
    """Rebuild an agent from a checkpoint of the official implementation, in either format.

    Sizes are inferred from the weights; whatever a checkpoint does not store is an argument. The
    file is read with ``weights_only=True``, so it cannot run code.

    The running value scale is not part of the file and starts at 1. An older file does not store
    the range of the policy prior's log standard deviation, which is then the published [-10, 2].

    Args:
        path: a ``.pt`` file.
        discount: discount factor the agent was trained with; see
            :func:`~torchrl_tdmpc.trainers.discount_heuristic`. Of several tasks, one for each.
        action_dims: number of action dimensions of each of several tasks, which older files lack.
        simnorm_dim: dimension of each simplex of the latent.
        vmin: lowest bin of the reward and return distributions, in symlog space.
        vmax: highest bin.
        dropout: probability of dropout in the first layer of the Q-functions, for further training.
        device: where the agent will be.
        **settings: further keyword arguments of :class:`~torchrl_tdmpc.TDMPC2Loss`.

    Returns:
        The agent.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a checkpoint; the sentence names the entry that is missing,
            misshapen or unknown.

    Examples:
        >>> import tempfile
        >>> from torchrl_tdmpc.modules import MODEL_SIZES, make_networks
        >>> loss = TDMPC2Loss(*make_networks((5,), 2, MODEL_SIZES[1]), discount=0.99)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_official(f"{folder}/agent.pt", loss)
        ...     agent = load_official(f"{folder}/agent.pt", discount=0.99)
        >>> agent.observation_shape, agent.action_dim, agent.loss.q_ensemble.num_q
        ((5,), 2, 2)
    """
    checkpoint = Entries(str(path), read_weights(path), discount, action_dims)
    networks = {"simnorm_dim": simnorm_dim, "dropout": dropout}
    support = {"vmin": vmin, "vmax": vmax}
    return checkpoint.restore(networks, support, device, **settings)


def num_official_tasks(path: str | Path) -> int:
    """The number of tasks that an official checkpoint is of; 0 if it knows one alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of weights.
    """
    embedding = read_weights(path).get(EMBEDDING)
    return embedding.shape[0] if isinstance(embedding, Tensor) and embedding.dim() else 0


def official_size(path: str | Path) -> ModelSize:
    """Widths and depths of the networks that an official checkpoint is of.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a checkpoint.

    Examples:
        >>> import tempfile
        >>> from torchrl_tdmpc.modules import MODEL_SIZES, make_networks
        >>> loss = TDMPC2Loss(*make_networks((5,), 2, MODEL_SIZES[1]), discount=0.99)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_official(f"{folder}/agent.pt", loss)
        ...     official_size(f"{folder}/agent.pt") == MODEL_SIZES[1]
        True
    """
    *_, size, _ = Entries(str(path), read_weights(path), discount=None).sizes()
    return size


def save_official(path: str | Path, loss: TDMPC2Loss) -> None:
    """Write an agent as the official implementation does (newer format).

    What a checkpoint of this format has no place for is not written: optimisers, the value scale,
    the support of the distributions.

    Args:
        path: the file to write, in full or not at all.
        loss: holds the networks and target Q-functions; the networks must be the published ones
            (:func:`~torchrl_tdmpc.make_networks`) of any size.

    Raises:
        ValueError: the networks are not those of a published agent; the sentence names the entry.
    """
    weights = {name: w.detach().cpu() for name, w in official_weights(loss).items()}
    for part in loss.world_model.dynamics.modules():
        if isinstance(part, SimNorm):
            order = official_order(loss.world_model.latent_dim, part.dim)
            weights = reorder_latent(weights, order.argsort())
    weights = {name: weight.clone() for name, weight in weights.items()}
    log_std_min, log_std_max = loss.policy_prior.log_std_min, loss.policy_prior.log_std_max
    entries = {
        "log_std_min": _scalar(log_std_min),
        "log_std_dif": _scalar(log_std_max - log_std_min),
        **weights,
        **{detached(n): w.clone() for n, w in weights.items() if n.startswith("_Qs.")},
    }
    for group in Q_GROUPS:  # what some versions of tensordict ask for
        entries[f"{group}.__batch_size"] = torch.Size([loss.q_ensemble.num_q])
        entries[f"{group}.__device"] = None
    # What could not be read again is not written
    tasks = loss.world_model.task_context
    discount = loss.discount if tasks is None else tasks.discounts.tolist()
    Entries("the loss", entries, discount).restore({"simnorm_dim": 1}, {}, "cpu")
    staged = Path(path).with_name(f".{Path(path).name}.new")
    try:
        torch.save({"model": entries}, staged)
        publish(staged, Path(path))
    finally:
        staged.unlink(missing_ok=True)


def _scalar(value: float) -> Tensor:
    """Whole numbers are int64 in an official checkpoint."""
    return torch.tensor(int(value) if value == int(value) else value)
