"""Copies and checks where an environment is called: on its own arrays, in each step of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torchrl.data import Binary, Bounded, Composite
from torchrl.envs import EnvBase, Transform

from torchrl_tdmpc.envs.contract import Contract, breach, first_line, refuse_reset
from torchrl_tdmpc.envs.copies import copied, copied_data, copied_inside, nested_copiers
from torchrl_tdmpc.envs.layers import innermost, layers


def guard(env: EnvBase, name: str) -> None:
    """Copy what an environment is given and gives, in each step of its own.

    Whatever it keeps, changes or overwrites, the data stay as they crossed. Transforms and wrappers
    that skip frames hand one action to several steps, so TorchRL's innermost environment is
    guarded, or, where it wraps another library's, the outermost and the innermost layer of that. Of
    Gymnasium's environments the contract is checked too. An action that rounding put outside the
    bounds is put back, and flags that are 0 or 1 become booleans.

    Args:
        env: changed in place.
        name: the task's name, for the messages.
    """
    inner, stack = innermost(env), list(layers(env))
    if not stack:
        if not isinstance(inner._step, _TorchRLStep):
            inner._step = _TorchRLStep(inner, name)
            flags = inner._step.flags
            inner._reset = functools.partial(_reset_torchrl, inner._reset, flags)
        return
    inside = copied_inside(_only(inner.full_action_spec))
    for layer in {id(layer): layer for layer in stack[:1] + stack[-1:]}.values():
        if isinstance(layer.step, _Step):
            continue
        check_reset = check_step = copied
        if hasattr(layer, "observation_space"):
            refuse_reset(stack, name)
            contract = Contract(layer, name, reads_info=bool(inner.info_dict_reader))
            check_reset, check_step = contract.reset, contract.step
        layer.reset = functools.partial(_reset, layer.reset, check_reset, name)
        layer.step = _Step(layer.step, inside if layer is stack[0] else copied, check_step)


def num_steps(env: EnvBase) -> int:
    """How many steps the environment below everything has taken, as :func:`guard` counts them."""
    stack = list(layers(env))
    return stack[-1].step.count if stack else innermost(env)._step.count


class _Step:
    """The step of a layer of another library's; it is given an action of its own.

    Attributes:
        count: steps taken so far.
    """

    def __init__(self, step: Callable, take: Callable, check: Callable):
        self.step, self.take, self.check = step, take, check
        self.count = 0

    def __call__(self, action: Any) -> Any:
        self.count += 1
        return self.check(self.step(self.take(action)))


def _reset(reset: Callable, check: Callable, name: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return check(reset(*args, **kwargs))
    except TypeError as error:  # TorchRL would take it for an older Gym's
        raise ValueError(f"task {name!r} failed in reset() ({first_line(error)}).") from error


class _TorchRLStep:
    """The step of an environment of TorchRL's, likewise."""

    def __init__(self, env: EnvBase, name: str):
        self.step = env._step
        specs = env.full_action_spec.items(True, True)
        self.actions = nested_copiers({key: copied_inside(spec) for key, spec in specs})
        flags = {key: functools.partial(_boolean, key, name) for key in env.done_keys}
        self.flags = nested_copiers(flags)
        self.count = 0

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.count += 1
        data = self.step(copied_data(tensordict, self.actions))
        if data is None or data.get("reward", None) is None:
            raise RuntimeError("a step gave no reward")
        return copied_data(data, self.flags)


def _reset_torchrl(
    reset: Callable, flags: Any, tensordict: TensorDictBase | None = None, **kwargs: Any
) -> TensorDictBase:
    given = None if tensordict is None else copied_data(tensordict)
    return copied_data(reset(given, **kwargs), flags)


def _boolean(key: NestedKey, name: str, flag: torch.Tensor) -> torch.Tensor:
    if flag.dtype == torch.bool:
        return flag.clone()
    if not ((flag == 0) | (flag == 1)).all():
        raise breach(name, f"{key} must be a boolean, 0 or 1", f"it is {flag.tolist()}")
    return flag.bool()


def _only(spec: Composite) -> Any:
    """The one leaf of a spec, or the spec itself where there are several."""
    leaves = list(spec.values(True, True))
    return leaves[0] if len(leaves) == 1 else spec


def declare(env: EnvBase) -> Transform | None:
    """What declares an environment as it is behind :func:`guard`, where it declared otherwise.

    Every flag is a boolean, and there is room around an action whose bounds are one value, so that
    it can be scaled; the guard keeps it at its value.

    Args:
        env: the one below every transform.

    Returns:
        The innermost transform; None where nothing differs.
    """
    flags = any(spec.dtype != torch.bool for spec in env.full_done_spec.values(True, True))
    locked = any(_is_locked(spec) for spec in env.full_action_spec.values(True, True))
    return _Declared() if flags or locked else None


class _Declared(Transform):
    """See :func:`declare`."""

    def transform_done_spec(self, done_spec: Composite) -> Composite:
        for key, spec in list(done_spec.items(True, True)):
            done_spec[key] = Binary(shape=spec.shape, device=spec.device, dtype=torch.bool)
        return done_spec

    def transform_action_spec(self, action_spec: Composite) -> Composite:
        for key, spec in list(action_spec.items(True, True)):
            if _is_locked(spec):
                low, high = spec.space.low, spec.space.high
                locked = low == high
                wider = torch.where(locked, low - 1, low), torch.where(locked, high + 1, high)
                action_spec[key] = Bounded(*wider, low.shape, dtype=low.dtype)
        return action_spec


def _is_locked(spec: Any) -> bool:
    if not isinstance(spec, Bounded) or not spec.dtype.is_floating_point:
        return False
    return bool((spec.space.low == spec.space.high).any())
