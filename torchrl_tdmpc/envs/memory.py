"""What environments remember across episodes: running statistics, curricula."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torchrl.envs import (
    Compose,
    EnvBase,
    ObservationNorm,
    Transform,
    TransformedEnv,
    VecNorm,
    VecNormV2,
)

from torchrl_tdmpc.envs.attributes import NoStateError, pack, unpack
from torchrl_tdmpc.envs.layers import layers

NORMALISING = (VecNorm, VecNormV2, ObservationNorm)
# What Gymnasium's wrappers NormalizeObservation and NormalizeReward remember, alone or in vectors
STATISTICS = ("obs_rms", "return_rms")
SUMS = ("discounted_reward", "accumulated_reward")
Memory = dict[str, Any]


def read_memory(env: EnvBase) -> Memory:
    """What one environment remembers across episodes.

    That are the statistics of Gymnasium's and TorchRL's normalising wrappers and transforms, and
    whatever other layer or transform, not of TorchRL itself, has ``state_dict`` and
    ``load_state_dict``.

    Args:
        env: without batch dimensions, or with those of a vector environment of Gymnasium.

    Returns:
        By layer, in a form that ``torch.load(weights_only=True)`` reads; empty where there is
        nothing.

    Examples:
        >>> import gymnasium
        >>> from torchrl.envs import GymWrapper
        >>> wrapped = gymnasium.wrappers.NormalizeObservation(gymnasium.make("Pendulum-v1"))
        >>> list(read_memory(GymWrapper(wrapped)))
        ['1 NormalizeObservation']
    """
    memory = {}
    for name, part in _parts(env):
        try:
            if state := _state_of(part):
                memory[name] = pack(state, f"the state_dict of {type(part).__name__}")
        except NoStateError:
            continue  # which warn_of_memory said
    return memory


def write_memory(env: EnvBase, memory: Mapping[str, Any]) -> None:
    """Let an environment remember what another one of its task did.

    Args:
        env: as for :func:`read_memory`.
        memory: what that returned.
    """
    for name, part in _parts(env):
        if name not in memory:
            continue
        state = unpack(memory[name])
        if not _is_normalising_wrapper(part):
            with warnings.catch_warnings():  # VecNorm speaks of sharing, for which it is too late
                warnings.filterwarnings("ignore", message="VecNorm wasn't initialized")
                part.load_state_dict(state)
            continue
        for attribute, value in state.items():
            if attribute in STATISTICS:
                vars(vars(part)[attribute]).update(value)
            else:
                vars(part)[attribute] = value


def freeze_memory(env: EnvBase) -> None:
    """Let the statistics of an environment be as they are, where its layers can do so.

    Gymnasium's wrappers are frozen by ``update_running_mean``, others by a method ``freeze``.
    """
    for _, part in _parts(env):
        if _is_normalising_wrapper(part):
            part.update_running_mean = False
        elif callable(getattr(part, "freeze", None)) and _state_of(part) is not None:
            part.freeze()


def warn_of_memory(env: EnvBase, name: str) -> None:
    """Say in one sentence what an environment remembers that cannot be carried.

    Args:
        env: as for :func:`read_memory`.
        name: the task's name.
    """
    for _, part in _parts(env):
        reason = None
        if isinstance(part, VecNormV2) and not part.stateful:
            reason = "VecNormV2 with stateful=False keeps its statistics in the data"
        try:
            pack(_state_of(part), f"of the state_dict of {type(part).__name__}, ''")
        except NoStateError as error:
            reason = f"{error}, which cannot be saved"
        if reason is not None:
            warnings.warn(
                f"what task {name!r} remembers across episodes stays behind ({reason}): "
                "evaluations and resumed runs begin without it.",
                stacklevel=2,
            )


def _parts(env: EnvBase) -> Iterator[tuple[str, Any]]:
    """What may remember something, from outside in, with names that repeat in its like."""
    for place, part in enumerate(_from_outside(env)):
        yield f"{place} {type(part).__name__}", part


def _from_outside(env: EnvBase) -> Iterator[Any]:
    while isinstance(env, TransformedEnv):
        yield from _transforms(env.transform)
        env = env.base_env
    yield env
    yield from layers(env)


def _transforms(transform: Transform) -> Iterator[Transform]:
    if isinstance(transform, Compose):
        for part in transform.transforms:
            yield from _transforms(part)
    else:
        yield transform


def _state_of(part: Any) -> Mapping[str, Any] | None:
    if _is_normalising_wrapper(part):
        own = vars(part)
        statistics = {name: vars(own[name]) for name in STATISTICS if name in own}
        return statistics | {name: own[name] for name in SUMS if name in own}
    of_torchrl = type(part).__module__.partition(".")[0] == "torchrl"
    if of_torchrl and not isinstance(part, NORMALISING):
        return None  # its state is of an episode, or a constant
    if not all(callable(getattr(part, name, None)) for name in ("state_dict", "load_state_dict")):
        return None
    if isinstance(part, nn.Module) and any(map(is_lazy, part.buffers())):
        return None  # nothing was seen yet
    return part.state_dict()


def _is_normalising_wrapper(part: Any) -> bool:
    return hasattr(part, "update_running_mean") and any(name in vars(part) for name in STATISTICS)
