"""The entries of an official checkpoint: their names, their order and their sizes."""

from __future__ import annotations

import functools
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchrl_tdmpc.checkpoints.archive import first_line
from torchrl_tdmpc.modules import (
    ModelSize,
    PixelEncoder,
    SymlogTwoHot,
    TaskContext,
    make_networks,
    official_order,
)
from torchrl_tdmpc.objectives import TDMPC2Loss

__all__ = ["Entries", "OfficialAgent", "detached", "official_weights", "reorder_latent"]

# The older format numbers the tensors of the stacked Q-functions through: four to a normed layer
OLDER_ORDER = ("weight", "bias", "ln.weight", "ln.bias")
OLDER_LOG_STD = (-10.0, 2.0)  # published values; the older format does not store them
EMBEDDING, MASKS = "_task_emb.weight", "_action_masks"  # of several tasks
STATE_LAYER = re.compile(r"_encoder\.state\.(\d+)\.")
Q_GROUPS = ("_Qs.params", "_detach_Qs_params", "_target_Qs_params")


class OfficialAgent(NamedTuple):
    """What an official checkpoint holds."""

    loss: TDMPC2Loss  #: networks and target Q-functions, with the checkpoint's weights
    observation_shape: tuple[int, ...]  #: ``(D,)``, or ``(C, 64, 64)`` for stacked frames
    action_dim: int  #: size of the action vector, A


def official_weights(loss: TDMPC2Loss) -> dict[str, Tensor]:
    """The loss's own weights by the names they have in an official checkpoint.

    Args:
        loss: holds the networks and target Q-functions.

    Returns:
        Parameters of all networks (``_encoder.state.0.weight``, ``_pi.2.bias``, ...), Q-functions
        (``_Qs.params.0.ln.weight``, ... ``[Q, ...]``) and their targets (``_target_Qs_params.*``);
        of several tasks also ``_task_emb.weight`` and ``_action_masks``.
        They are not copies: what is written into them is written into the loss. The features of
        the latent are in our order; :func:`reorder_latent` translates.
    """
    world_model = loss.world_model
    is_pixels = isinstance(world_model.encoder, PixelEncoder)
    parts = {
        "_encoder.rgb" if is_pixels else "_encoder.state": world_model.encoder,
        "_dynamics": world_model.dynamics,
        "_reward": world_model.reward_head,
        "_termination": world_model.termination_head,
        "_pi": loss.policy_prior.network,
    }
    weights = {}
    if world_model.task_context is not None:
        weights[EMBEDDING] = world_model.task_context.embedding
        weights[MASKS] = world_model.task_context.action_masks
    for part, module in parts.items():
        for name, weight in () if module is None else module.named_parameters():
            if part == "_encoder.rgb":  # counted from two steps of preprocessing on
                layer, leaf = name.split(".")
                name = f"{int(layer) + 2}.{leaf}"
            weights[f"{part}.{name}"] = weight
    stacked = {
        "_Qs.params": loss.q_ensemble_params,
        "_target_Qs_params": loss.target_q_ensemble_params,
    }
    for part, params in stacked.items():
        layers = params["params"].items(True, True)
        weights |= {f"{part}.{'.'.join(key)}": weight for key, weight in layers}
    return weights


def reorder_latent(weights: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    """Weights, or gradients, for another order of the latent's features.

    Args:
        weights: by their published names.
        order: int64 ``[L]``. From the published order to ours it is
            :func:`~torchrl_tdmpc.modules.official_order`; back again, that one's ``argsort()``.

    Returns:
        New tensors where the latent goes in or out, the others as they are.
    """
    state_layers = [int(m[1]) for name in weights if (m := STATE_LAYER.match(name))]
    gives_latent = ("_dynamics.2.", f"_encoder.state.{max(state_layers, default=None)}.")
    return {
        name: _reorder(
            weight,
            order,
            rows=name.startswith(gives_latent),
            columns=name.endswith(".0.weight") and not name.startswith("_encoder."),
        )
        for name, weight in weights.items()
    }


def _reorder(weight: Tensor, order: Tensor, *, rows: bool, columns: bool) -> Tensor:
    """A weight whose outputs, or whose first inputs, are the latent's features."""
    if rows:
        weight = weight[order]
    if columns:
        latent, action = weight.tensor_split([len(order)], -1)
        weight = torch.cat([latent[..., order], action], -1)
    return weight


@dataclass(frozen=True)
class Entries:
    """The entries of a checkpoint of either format, asked for by the newer format's names.

    Args:
        source: what messages call it.
        entries: by their names in its format.
        discount: of the task, or of each of several.
        action_dims: of each of several tasks, for a file without ``_action_masks``.
    """

    source: str
    entries: dict[str, Any]
    discount: float | Sequence[float] | None
    action_dims: Sequence[int] | None = None

    def restore(
        self,
        networks: dict[str, Any],
        support: dict[str, float],
        device: torch.device | str,
        **settings: Any,
    ) -> OfficialAgent:
        """Build the agent that the weights are of, and copy them into it."""
        try:
            self.refuse_discount()
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
            shapes = {name: w.shape for name, w in official_weights(build("meta")).items()}
            if MASKS not in self.entries:  # as in older files
                shapes.pop(MASKS, None)
            stored = self.stored(shapes)
        except ValueError:
            raise
        except Exception as error:  # whatever entries lead torch into
            raise ValueError(
                f"{self.source} is no checkpoint of a published agent ({first_line(error)})."
            ) from error
        stored = reorder_latent(stored, official_order(size.latent_dim, networks["simnorm_dim"]))
        loss = build("cpu").to(device)  # the first weights are drawn, and overwritten
        with torch.no_grad():
            ours = official_weights(loss)
            for name, weight in stored.items():
                ours[name].copy_(weight)
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
            if self.num_tasks:
                networks = {**networks, "task_context": self.task_context()}
            else:
                settings = {**settings, "discount": self.discount}
            return TDMPC2Loss(*make_networks(*shapes, episodic=episodic, **networks), **settings)

    @property
    def num_tasks(self) -> int:
        """0 where there is one alone."""
        return self.task_dims[0]

    @property
    def task_dims(self) -> tuple[int, int]:
        """Number of tasks, and size of their embedding; zeros for one task."""
        if EMBEDDING not in self.entries:
            return 0, 0
        return self.size((EMBEDDING, 0)), self.size((EMBEDDING, 1))

    def refuse_discount(self) -> None:
        """Ask for the discount of one task, or for one of each of several."""
        is_one = isinstance(self.discount, float)
        if not self.num_tasks and not is_one:
            raise ValueError(
                f"{self.source} is of one task; discount is {self.discount!r} and must be a number."
            )
        if self.num_tasks and (is_one or len(self.discount or ()) != self.num_tasks):
            raise ValueError(
                f"{self.source} is of {self.num_tasks} tasks; discount is {self.discount!r} and "
                "must have a number for each."
            )

    def task_context(self) -> TaskContext:
        """The tables of several tasks, the embedding of any weights."""
        action_dims = self.action_dims
        if MASKS in self.entries:
            masks = self.tensor(MASKS, (self.num_tasks, self.sizes()[1])).cpu()
            own = masks.sum(1)
            column = torch.arange(masks.shape[1], device="cpu")
            if not torch.equal(masks, (column < own.unsqueeze(1)).float()):
                raise ValueError(
                    f"entry {MASKS!r} of {self.source} must have ones, then zeros, in each row."
                )
            action_dims = own.int().tolist()
        elif action_dims is None or len(action_dims) != self.num_tasks:
            raise ValueError(
                f"{self.source} has no entry {MASKS!r}, so action_dims must tell the number of "
                f"action dimensions of each of the {self.num_tasks} tasks."
            )
        return TaskContext(action_dims, self.discount, self.task_dims[1])

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
        """Whether the Q-functions' tensors are numbered through."""
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
        _, task = self.task_dims
        latent = self.size(
            (f"{dynamics}.2.weight", 0), (f"{dynamics}.2.bias", 0), ("_pi.0.weight", 1, task)
        )
        both = self.size(
            (f"{dynamics}.0.weight", 1, task),
            ("_reward.0.weight", 1, task),
            (f"{q}.0.weight", 2, task),
        )
        if both <= latent:
            raise ValueError(
                f"the dynamics of {self.source} read {both} numbers, latent and action together; "
                f"they must be more than the {latent} of the latent."
            )
        if any(name.startswith("_encoder.rgb.") for name in self.entries):
            observation_shape = (self.size(("_encoder.rgb.2.weight", 1)), 64, 64)
            enc_dim = 1  # it has no hidden layers
        else:
            observation_shape = (self.size((f"{encoder}.0.weight", 1, task)),)
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

    def size(self, *places: tuple[str, int] | tuple[str, int, int]) -> int:
        """A size as most tensors at ``places`` have it: name, dimension, and what else is in it."""
        found = []
        for name, dim, *beside in places:
            tensor = self.entries.get(self.stored_name(name))
            if isinstance(tensor, Tensor) and tensor.dim() > dim:
                found.append(tensor.shape[dim] - sum(beside))
        if not found:
            name, dim, *_ = places[0]
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
        """Name an entry that the weights do not explain."""
        known = {self.stored_name(name) for name in weights}
        if not self.is_older:
            known |= {detached(name) for name in weights if name.startswith("_Qs.")}
            known |= {"log_std_min", "log_std_dif"}
            known |= {
                f"{group}.__{extra}" for group in Q_GROUPS for extra in ("batch_size", "device")
            }
        for name in self.entries:
            if name not in known:
                raise ValueError(
                    f"{self.source} has the entry {name!r}, which no published agent of its "
                    "sizes has."
                )

    def refuse_other_copies(self, weights: dict[str, Tensor]) -> None:
        """The newer format holds the Q-functions twice."""
        if self.is_older:
            return
        for name, weight in weights.items():
            if name.startswith("_Qs."):
                copy = detached(name)
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


def detached(name: str) -> str:
    """The detached copy of a weight of the Q-functions."""
    return name.replace("_Qs.params.", "_detach_Qs_params.")


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
