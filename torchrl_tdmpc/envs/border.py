"""What crosses the border of an environment: copied, in range, finite, of the promised shape."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite
from torchrl.envs import EnvBase, Transform, TransformedEnv
from torchrl.envs.gym_like import GymLikeEnv

ROUNDING = 1e-6  # how far beyond [-1, 1] an action may be


class NonFiniteError(FloatingPointError, ValueError):
    """An observation, a reward or an action is NaN, infinite or out of range."""


def innermost(env: EnvBase) -> EnvBase:
    """The environment below every transform.

    Examples:
        >>> from torchrl.testing.mocking_classes import CountingEnv
        >>> type(innermost(TransformedEnv(TransformedEnv(CountingEnv())))).__name__
        'CountingEnv'
    """
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return env


def layers(env: EnvBase) -> Iterator[Any]:
    """The wrappers of another library below TorchRL's own, outermost first, and its environment.

    Examples:
        >>> from torchrl.envs import GymEnv
        >>> [type(layer).__name__ for layer in layers(GymEnv("Pendulum-v1"))][-2:]
        ['OrderEnforcing', 'PendulumEnv']
    """
    layer = getattr(innermost(env), "_env", None) if is_wrapper(env) else None
    while layer is not None:
        yield layer
        if hasattr(layer, "unwrapped"):  # Gymnasium's
            layer = None if layer.unwrapped is layer else layer.env
        else:  # dm_control's
            layer = vars(layer).get("_env")


def is_wrapper(env: EnvBase) -> bool:
    """Whether TorchRL wraps another library's environment, which it steps with arrays."""
    return isinstance(innermost(env), GymLikeEnv)


def guard(env: EnvBase, name: str) -> None:
    """Copy what an environment is given and gives, in each step of its own.

    Whatever it keeps, changes or overwrites, the data stay as they crossed. Transforms and wrappers
    that skip frames hand one action to several steps, so TorchRL's innermost environment is
    guarded, or, where it wraps another library's, the outermost and the innermost layer of that. Of
    Gymnasium's environments the contract is checked too, and flags that are 0 or 1 become booleans.

    Args:
        env: changed in place.
        name: the task's name, for the messages.
    """
    inner, stack = innermost(env), list(layers(env))
    if not stack and not isinstance(inner._step, _CopyingStep):
        inner._step, inner._reset = _CopyingStep(inner._step), _CopyingReset(inner._reset)
    for layer in {id(layer): layer for layer in stack[:1] + stack[-1:]}.values():
        if isinstance(layer.step, _Step):
            continue
        if hasattr(layer, "observation_space"):
            _refuse_reset(stack, name)
            check_reset, check_step = (
                functools.partial(check, layer, name) for check in (_checked_reset, _checked_step)
            )
        else:
            check_reset = check_step = copied
        layer.reset = functools.partial(_reset, layer.reset, check_reset, name)
        layer.step = _Step(layer.step, check_step)


class _CopyingStep:
    """A step of TorchRL's, which keeps nothing of the caller's data."""

    def __init__(self, function: Callable):
        self.function = function
        self.count = 0

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.count += 1
        data = self.function(tensordict.clone())
        if data is None or data.get("reward", None) is None:
            raise RuntimeError("a step gave no reward")
        return data.clone()


class _CopyingReset:
    """A reset of TorchRL's, likewise."""

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        given = None if tensordict is None else tensordict.clone()
        return self.function(given, **kwargs).clone()


def _reset(reset: Callable, check: Callable, name: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return check(reset(*args, **kwargs))
    except TypeError as error:  # TorchRL would take it for an older Gym's
        raise ValueError(f"task {name!r} failed in reset() ({first_line(error)}).") from error


class _Step:
    """Counts the steps of a layer, each of which gets an action of its own."""

    def __init__(self, step: Callable, check: Callable):
        self.step, self.check = step, check
        self.count = 0

    def __call__(self, action: Any) -> Any:
        self.count += 1
        return self.check(self.step(copied(action)))


def num_steps(env: EnvBase) -> int:
    """How many steps the environment below everything has taken, as :func:`guard` counts them."""
    stack = list(layers(env))
    return stack[-1].step.count if stack else innermost(env)._step.count


def copied(value: Any) -> Any:
    """Arrays and tensors copied, in containers too; anything else as it is.

    Examples:
        >>> array = np.zeros(2)
        >>> given = copied({"state": (array, 1.0)})
        >>> array += 1
        >>> given["state"][0].tolist()
        [0.0, 0.0]
    """
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(copied, value))
    if type(value) in (tuple, list):
        return type(value)(map(copied, value))
    return value


# ------------------------------------------------------------------ Gymnasium's contract


def breach(name: str, rule: str, came: str) -> ValueError:
    """The error for an environment that breaks a rule.

    Examples:
        >>> print(breach("tiny", "step() must return five values", "it returned 4"))
        task 'tiny' breaks a rule: step() must return five values; it returned 4.
    """
    return ValueError(f"task {name!r} breaks a rule: {rule}; {came}.")


def _refuse_reset(stack: list[Any], name: str) -> None:
    for layer in stack:
        try:
            parameters = inspect.signature(layer.reset).parameters
        except (TypeError, ValueError):  # written in C
            continue
        kinds = {parameter.kind for parameter in parameters.values()}
        if "seed" not in parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
            taken = ", ".join(parameters) or "nothing"
            raise breach(
                name,
                "reset() must take seed and options, by which an episode is repeated",
                f"{type(layer).__name__}.reset takes {taken}",
            )


def _checked_reset(env: Any, name: str, result: Any) -> tuple:
    if type(result) is not tuple or len(result) != 2 or not isinstance(result[1], dict):
        raise breach(
            name,
            "reset() must return an observation and an info dictionary",
            f"it returned {_described(result)}",
        )
    observation, info = result
    return _checked_observation(env.observation_space, observation, name), info


def _checked_step(env: Any, name: str, result: Any) -> tuple:
    if type(result) is not tuple or len(result) != 5 or not isinstance(result[4], dict):
        raise breach(
            name,
            "step() must return five values, which are observation, reward, terminated, truncated "
            "and an info dictionary",
            f"it returned {_described(result)}",
        )
    observation, reward, terminated, truncated, info = result
    return (
        _checked_observation(env.observation_space, observation, name),
        _checked_reward(reward, name),
        _checked_flag(terminated, "terminated", name),
        _checked_flag(truncated, "truncated", name),
        info,  # read by TorchRL's readers alone, whose entries Border copies
    )


def _checked_observation(space: Any, value: Any, name: str, where: str = "observation") -> Any:
    """A copy, if it has the form of its space."""
    spaces = getattr(space, "spaces", None)
    if spaces is not None and hasattr(spaces, "items"):
        if not isinstance(value, dict) or set(value) != set(spaces):
            raise breach(
                name,
                f"the {where} must be a dictionary with the keys {', '.join(map(str, spaces))}",
                f"it is {_described(value)}",
            )
        return {
            key: _checked_observation(part, value[key], name, f"{where} {key!r}")
            for key, part in spaces.items()
        }
    if spaces is not None or not hasattr(space, "low"):  # tuples, numbers, texts
        return copied(value)
    array = value if isinstance(value, np.ndarray) else _as_array(value)
    if array.shape != space.shape or array.dtype.kind not in "fiub":
        kind = "numbers" if array.dtype.kind in "fiub" else "other things than numbers"
        raise breach(
            name,
            f"the {where} must be numbers of shape {space.shape}, as its space says",
            f"it is of shape {array.shape} and holds {kind}",
        )
    return array.copy()


def _checked_reward(value: Any, name: str) -> Any:
    if type(value) is float:
        return value
    array = _as_array(value)
    if array.size != 1 or array.dtype.kind not in "fiub":
        raise breach(name, "a reward must be one number", f"it is {_described(value)}")
    return float(array.reshape(()))


def _checked_flag(value: Any, which: str, name: str) -> bool:
    if type(value) is bool:
        return value
    array = _as_array(value)
    if array.size != 1 or array.dtype.kind not in "fiub" or array.reshape(()) not in (0, 1):
        raise breach(name, f"{which} must be one boolean, 0 or 1", f"it is {_described(value)}")
    return bool(array.reshape(()))


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
    try:
        return np.asarray(value)
    except ValueError:  # of lists of several lengths
        return np.asarray(None)


def first_line(error: Exception) -> str:
    """An error in one line.

    Examples:
        >>> first_line(KeyError("gravity"))
        "KeyError: 'gravity'"
    """
    return f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".: ")


def _described(value: Any) -> str:
    """What came instead, in a few words.

    Examples:
        >>> _described((np.zeros(3), {}))
        '2 values (an array of shape (3,), dict)'
    """
    if isinstance(value, (np.ndarray, Tensor)):
        return f"an array of shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"{len(value)} values ({', '.join(map(_described, value)) or 'none'})"
    if isinstance(value, dict) and value:
        return f"a dictionary with the keys {', '.join(map(str, value))}"
    if isinstance(value, (bool, int, float, str, type(None), np.generic)):
        return repr(value)
    return type(value).__name__


# ------------------------------------------------------------------ transforms


class Border(Transform):
    """The border itself: the first transform around an environment, below those of its own.

    Flags that are 0 or 1 become booleans, and an action that rounding put outside the bounds is put
    back, in the environment's own dtype. Where both bounds of an action are one value, it gets it.

    Args:
        env: what is below.
        name: the task's name, for the messages.
    """

    invertible = True

    def __init__(self, env: EnvBase, name: str):
        super().__init__()
        self.name = name
        self.done_keys = list(env.done_keys)
        specs = env.full_action_spec.items(True, True)
        self._bounds = {
            key: (spec.space.low.clone(), spec.space.high.clone())
            for key, spec in specs
            if isinstance(spec, Bounded) and spec.dtype.is_floating_point
        }

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        for key, (low, high) in self._bounds.items():
            action = tensordict.get(key, None)
            if action is not None:  # as it is at a reset
                tensordict.set(key, action.to(low.dtype).clamp(low, high))
        return tensordict

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        return self._out(next_tensordict)

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return self._out(tensordict_reset)

    def _out(self, tensordict: TensorDictBase) -> TensorDictBase:
        for key in self.done_keys:
            flag = tensordict.get(key)
            if flag.dtype != torch.bool:
                if not ((flag == 0) | (flag == 1)).all():
                    raise breach(
                        self.name, f"{key} must be a boolean, 0 or 1", f"it is {flag.tolist()}"
                    )
                tensordict.set(key, flag.bool())
        return tensordict

    def transform_done_spec(self, done_spec: Composite) -> Composite:
        """Every flag is a boolean."""
        for key, spec in list(done_spec.items(True, True)):
            if spec.dtype != torch.bool:
                done_spec[key] = Binary(shape=spec.shape, device=spec.device, dtype=torch.bool)
        return done_spec

    def transform_action_spec(self, action_spec: Composite) -> Composite:
        """Room around a value that is both bounds, so that it can be scaled; it is clamped back."""
        for key, (low, high) in self._bounds.items():
            if (locked := low == high).any():
                action_spec[key] = Bounded(
                    torch.where(locked, low - 1, low),
                    torch.where(locked, high + 1, high),
                    low.shape,
                    dtype=low.dtype,
                )
        return action_spec


class Promise(Transform):
    """The last check before an agent sees the data, and the first of its action.

    Observation and reward must be finite and of the shapes promised; the action must be in [-1, 1].

    Args:
        name: the task's name, for the messages.
        shape: of one observation.
        asked: agent steps before which the environment must not truncate its first episode; None
            where its own limit is known.
    """

    invertible = True

    def __init__(self, name: str, shape: torch.Size, asked: int | None = None):
        super().__init__()
        self.name, self.shape, self.asked = name, shape, asked
        # A buffer, so that it is part of an environment's state; negative: the beginning is unknown
        self.register_buffer("agent_steps", torch.tensor(-1))

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict.get("action", None)
        # NaN fails this comparison too
        if action is not None and not (action.abs() <= 1 + ROUNDING).all():
            raise NonFiniteError(
                f"task {self.name!r} was given the action {action.tolist()}; it must be finite and "
                "in [-1, 1]."
            )
        return tensordict

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        if self.asked is not None:
            self.agent_steps.zero_()
        self._check(tensordict_reset, "observation", "by reset()")
        return tensordict_reset

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        reward = next_tensordict.get("reward")
        if reward.shape != (1,):
            if reward.numel() != 1:
                raise breach(
                    self.name, "a reward must be one number", f"it is {_described(reward)}"
                )
            next_tensordict.set("reward", reward.reshape(1))
        self._check(next_tensordict, "observation", "by step()")
        self._check(next_tensordict, "reward", "by step()")
        if self.asked is not None:
            self._compare_limit(next_tensordict)
        return next_tensordict

    def _check(self, tensordict: TensorDictBase, key: NestedKey, by: str) -> None:
        value = tensordict.get(key)
        if key == "observation" and value.shape != self.shape:
            raise breach(
                self.name,
                f"an observation must be of shape {tuple(self.shape)}, as its spec says",
                f"it is of shape {tuple(value.shape)} {by}",
            )
        if not value.dtype.is_floating_point:
            return
        if value.dtype != torch.float32:
            tensordict.set(key, value := value.float())
        # The sum is faster, and infinite where a finite one is too large
        if not value.sum().isfinite() and not value.isfinite().all():
            raise NonFiniteError(f"task {self.name!r} gives NaN or infinity as its {key} {by}.")

    def _compare_limit(self, next_tensordict: TensorDictBase) -> None:
        """Stop where a limit that counts other steps ends the first episode too early or late."""
        if self.agent_steps < 0:
            return
        self.agent_steps += 1
        truncated = next_tensordict.get("truncated", None)
        if truncated is not None and truncated.any():
            steps = int(self.agent_steps)
            self.agent_steps.fill_(-1)
            self.asked, asked = None, self.asked
            if steps < asked:
                raise ValueError(
                    f"episode_length is {asked}, but task {self.name!r} truncated its first "
                    f"episode after {steps} agent steps; choose {steps}, or change the limit that "
                    "the environment has of its own."
                )
