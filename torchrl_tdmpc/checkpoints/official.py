"""Checkpoints of the official TD-MPC2 implementation: single-task agents, read and written."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchrl_tdmpc.checkpoints.archive import first_line, read_weights
from torchrl_tdmpc.checkpoints.official_names import (
    STATE_LAYER,
    official_weights,
    reorder_latent,
)
from torchrl_tdmpc.durable import publish
from torchrl_tdmpc.modules import (
    ModelSize,
    SimNorm,
    SymlogTwoHot,
    make_networks,
    official_order,
)
from torchrl_tdmpc.objectives import TDMPC2Loss

__all__ = ["OfficialAgent", "load_official", "save_official"]

# The older format numbers the tensors of the stacked Q-functions through: four to a normed layer
OLDER_ORDER = ("weight", "bias", "ln.weight", "ln.bias")
OLDER_LOG_STD = (-10.0, 2.0)  # published values; the older format does not store them
Q_GROUPS = ("_Qs.params", "_detach_Qs_params", "_target_Qs_params")


class OfficialAgent(NamedTuple):
    """What an official checkpoint holds."""

    loss: TDMPC2Loss  #: networks and target Q-functions, with the checkpoint's weights
    observation_shape: tuple[int, ...]  #: ``(D,)``, or ``(C, 64, 64)`` for stacked frames
    action_dim: int  #: size of the action vector, A


def load_official(
    path: str | Path,
    *,
    discount: float,
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
            :func:`~torchrl_tdmpc.trainers.discount_heuristic`.
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
        >>> from torchrl_tdmpc.modules import MODEL_SIZES
        >>> loss = TDMPC2Loss(*make_networks((5,), 2, MODEL_SIZES[1]), discount=0.99)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_official(f"{folder}/agent.pt", loss)
        ...     agent = load_official(f"{folder}/agent.pt", discount=0.99)
        >>> agent.observation_shape, agent.action_dim, agent.loss.q_ensemble.num_q
        ((5,), 2, 2)
    """
    checkpoint = _Checkpoint(str(path), read_weights(path))
    networks = {"simnorm_dim": simnorm_dim, "dropout": dropout}
    support = {"vmin": vmin, "vmax": vmax}
    return checkpoint.restore(networks, support, device, discount=discount, **settings)


def save_official(path: str | Path, loss: TDMPC2Loss) -> None:
    """Write an agent as the official implementation does (newer format).

    What a checkpoint of this format has no place for is not written: optimisers, the value scale,
    the support of the distributions.

    Args:
        path: the file to write, in full or not at all.
        loss: holds the networks and target Q-functions; the networks must be the published ones
            (:func:`~torchrl_tdmpc.make_networks`) for a single task, of any size.

    Raises:
        ValueError: the networks are not those of a published agent; the sentence names the entry.
    """
    if loss.world_model.task_context is not None:
        raise ValueError("the loss is of several tasks; save_official writes single-task agents.")
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
        **{_detached(n): w.clone() for n, w in weights.items() if n.startswith("_Qs.")},
    }
    for group in Q_GROUPS:  # what some versions of tensordict ask for
        entries[f"{group}.__batch_size"] = torch.Size([loss.q_ensemble.num_q])
        entries[f"{group}.__device"] = None
    # What could not be read again is not written
    _Checkpoint("the loss", entries).restore({"simnorm_dim": 1}, {}, "cpu", discount=loss.discount)
    staged = Path(path).with_name(f".{Path(path).name}.new")
    try:
        torch.save({"model": entries}, staged)
        publish(staged, Path(path))
    finally:
        staged.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Checkpoint:
    """The entries of a checkpoint of either format, asked for by the newer format's names."""

    source: str  # what messages call it
    entries: dict[str, Any]

    def restore(
        self,
        networks: dict[str, Any],
        support: dict[str, float],
        device: torch.device | str,
        **settings: Any,
    ) -> OfficialAgent:
        """Build the agent that the weights are of, and copy them into it."""
        try:
            observation_shape, action_dim, size, num_bins = self.sizes()
            log_std_min, log_std_max = self.log_std_range()
            build = functools.partial(
                self.build,
                (observation_shape, action_dim, size),
                {
                    "two_hot": SymlogTwoHot(num_bins, **support),
                    "log_std_min": log_std_min,
                    "log_std_max": log_std_max,
                    **networks,
                },
                settings,
            )
            # Shapes first, which take no memory: a few numbers may claim to be a giant
            stored = self.stored(
                {name: w.shape for name, w in official_weights(build("meta")).items()}
            )
        except ValueError:
            raise
        except Exception as error:  # whatever entries lead torch into
            raise ValueError(
                f"{self.source} is no checkpoint of a published agent ({first_line(error)})."
            ) from error
        stored = reorder_latent(stored, official_order(size.latent_dim, networks["simnorm_dim"]))
        loss = build("cpu").to(device)  # the first weights are drawn, and overwritten
        with torch.no_grad():
            for name, weight in official_weights(loss).items():
                weight.copy_(stored[name])
        return OfficialAgent(loss, observation_shape, action_dim)

    def build(
        self,
        shapes: tuple[tuple[int, ...], int, ModelSize],
        networks: dict[str, Any],
        settings: dict[str, Any],
        device: torch.device | str,
    ) -> TDMPC2Loss:
        """An agent of the published networks; torch's generator is left as it was."""
        episodic = any(name.startswith("_termination.") for name in self.entries)
        with torch.random.fork_rng([]), torch.device(device):
            return TDMPC2Loss(*make_networks(*shapes, episodic=episodic, **networks), **settings)

    def stored(self, shapes: dict[str, Sequence[int]]) -> dict[str, Tensor]:
        """Every weight, if there are these and no others, and each holds numbers."""
        self.refuse_unknown(shapes)
        stored = {name: self.tensor(name, shape) for name, shape in shapes.items()}
        self.refuse_other_copies(stored)
        for name, weight in stored.items():
            if not weight.isfinite().all():
                raise ValueError(
                    f"entry {self.stored_name(name)!r} of {self.source} holds NaN or infinity."
                )
        return stored

    @property
    def is_older(self) -> bool:
        return "_Qs.params.0" in self.entries

    def log_std_range(self) -> tuple[float, float]:
        """Lower and upper end of the policy prior's log standard deviation."""
        if self.is_older:
            return OLDER_LOG_STD
        dtypes = (torch.int64, torch.float32)
        low, difference = (self.tensor(f"log_std_{x}", (), dtypes).item() for x in ("min", "dif"))
        return float(low), float(low + difference)

    def sizes(self) -> tuple[tuple[int, ...], int, ModelSize, int]:
        """Observation shape, size of the action, sizes of the networks and number of bins."""
        dynamics, encoder, q = "_dynamics", "_encoder.state", "_Qs.params"
        latent = self.size(
            (f"{dynamics}.2.weight", 0), (f"{dynamics}.2.bias", 0), ("_pi.0.weight", 1)
        )
        both = self.size((f"{dynamics}.0.weight", 1), ("_reward.0.weight", 1), (f"{q}.0.weight", 2))
        if both <= latent:
            raise ValueError(
                f"the dynamics of {self.source} read {both} numbers, latent and action together; "
                f"they must be more than the {latent} of the latent."
            )
        if any(name.startswith("_encoder.rgb.") for name in self.entries):
            observation_shape = (self.size(("_encoder.rgb.2.weight", 1)), 64, 64)
            enc_dim = 1  # it has no hidden layers
        else:
            observation_shape = (self.size((f"{encoder}.0.weight", 1)),)
            enc_dim = self.size(
                (f"{encoder}.0.weight", 0), (f"{encoder}.0.bias", 0), (f"{encoder}.1.weight", 1)
            )
        layers = {m[1] for name in self.entries if (m := STATE_LAYER.match(name))}
        size = ModelSize(
            enc_dim=enc_dim,
            mlp_dim=self.size(
                (f"{dynamics}.1.weight", 0), (f"{dynamics}.1.bias", 0), (f"{dynamics}.2.weight", 1)
            ),
            latent_dim=latent,
            num_enc_layers=max(len(layers), 2),
            num_q=self.size((f"{q}.0.bias", 0), (f"{q}.1.bias", 0), (f"{q}.2.bias", 0)),
        )
        num_bins = self.size(("_reward.2.weight", 0), ("_reward.2.bias", 0), (f"{q}.2.bias", 1))
        return observation_shape, both - latent, size, num_bins

    def size(self, *places: tuple[str, int]) -> int:
        """A size as most of the tensors at ``places`` (name, dimension) have it."""
        found = []
        for name, dim in places:
            tensor = self.entries.get(self.stored_name(name))
            if isinstance(tensor, Tensor) and tensor.dim() > dim:
                found.append(tensor.shape[dim])
        if not found:
            name, dim = places[0]
            raise ValueError(
                f"{self.source} has no entry {self.stored_name(name)!r} of {dim + 1} or more "
                "dimensions, as the checkpoint of a published agent has."
            )
        return statistics.mode(found)

    def tensor(
        self, name: str, shape: Sequence[int], dtypes: Sequence[torch.dtype] = (torch.float32,)
    ) -> Tensor:
        """An entry, if it is what it must be."""
        stored = self.stored_name(name)
        allowed = f"{' or '.join(map(_plain, dtypes))} of shape {list(shape)}"
        if stored not in self.entries:
            raise ValueError(f"{self.source} has no entry {stored!r}; it must hold {allowed}.")
        value = self.entries[stored]
        if not isinstance(value, Tensor):
            raise ValueError(
                f"entry {stored!r} of {self.source} is a {type(value).__name__}; it must be "
                f"{allowed}."
            )
        if value.shape != torch.Size(shape) or value.dtype not in dtypes:
            raise ValueError(
                f"entry {stored!r} of {self.source} is {_plain(value.dtype)} of shape "
                f"{list(value.shape)}; it must be {allowed}."
            )
        return value

    def refuse_unknown(self, weights: Iterable[str]) -> None:
        known = {self.stored_name(name) for name in weights}
        if not self.is_older:
            known |= {_detached(name) for name in weights if name.startswith("_Qs.")}
            known |= {"log_std_min", "log_std_dif"}
            known |= {
                f"{group}.__{extra}" for group in Q_GROUPS for extra in ("batch_size", "device")
            }
        for name in self.entries:
            if name not in known:
                raise ValueError(
                    f"{self.source} has the entry {name!r}, which no single-task agent of its "
                    "sizes has."
                )

    def refuse_other_copies(self, weights: dict[str, Tensor]) -> None:
        """The newer format holds the Q-functions twice."""
        if self.is_older:
            return
        for name, weight in weights.items():
            if name.startswith("_Qs."):
                copy = _detached(name)
                if not torch.equal(
                    self.tensor(copy, weight.shape), self.tensor(name, weight.shape)
                ):
                    raise ValueError(
                        f"entry {copy!r} of {self.source} differs from {name!r}; it must equal it."
                    )

    def stored_name(self, name: str) -> str:
        """The name of an entry in this checkpoint's format."""
        group, _, rest = name.partition(".params." if name.startswith("_Qs.") else "_params.")
        if not self.is_older or group not in ("_Qs", "_target_Qs"):
            return name
        layer, _, leaf = rest.partition(".")
        return f"{group}.params.{4 * int(layer) + OLDER_ORDER.index(leaf)}"


def _detached(name: str) -> str:
    """The detached copy of a weight of the Q-functions."""
    return name.replace("_Qs.params.", "_detach_Qs_params.")


def _scalar(value: float) -> Tensor:
    """Whole numbers are int64 in an official checkpoint."""
    return torch.tensor(int(value) if value == int(value) else value)


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
