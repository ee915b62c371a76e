"""What an environment of Gymnasium must give, and the sentence for one that does not."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from torchrl_tdmpc.envs.copies import copied

NUMBERS = "fiub"  # the kinds of NumPy's dtypes that are numbers


class NonFiniteError(FloatingPointError, ValueError):
    """An observation, a reward or an action is NaN, infinite or out of range."""


def breach(name: str, rule: str, came: str) -> ValueError:
    """The error for an environment that breaks a rule.

    Examples:
        >>> print(breach("tiny", "step() must return five values", "it returned 4"))
        task 'tiny' breaks a rule: step() must return five values; it returned 4.
    """
    return ValueError(f"task {name!r} breaks a rule: {rule}; {came}.")


class Contract:
    """What one layer of Gymnasium's returns: copied, or refused. Flags of 0 or 1 become booleans.

    Args:
        layer: the environment or wrapper.
        name: the task's name, for the messages.
        reads_info: whether anything reads the info dictionary, which is copied then.
    """

    def __init__(self, layer: Any, name: str, reads_info: bool):
        self.space = layer.observation_space
        self.name = name
        self.reads_info = reads_info

    def reset(self, result: Any) -> tuple:
        """The observation and the info dictionary of a reset."""
        if type(result) is not tuple or len(result) != 2 or not isinstance(result[1], dict):
            raise breach(
                self.name,
                "reset() must return an observation and an info dictionary",
                f"it returned {described(result)}",
            )
        observation, info = result
        return self._observation(self.space, observation), self._info(info)

    def step(self, result: Any) -> tuple:
        """The five values of a step."""
        if type(result) is not tuple or len(result) != 5 or not isinstance(result[4], dict):
            raise breach(
                self.name,
                "step() must return five values, which are observation, reward, terminated, "
                "truncated and an info dictionary",
                f"it returned {described(result)}",
            )
        observation, reward, terminated, truncated, info = result
        return (
            self._observation(self.space, observation),
            reward if type(reward) is float else self._reward(reward),
            terminated if type(terminated) is bool else self._flag(terminated, "terminated"),
            truncated if type(truncated) is bool else self._flag(truncated, "truncated"),
            self._info(info),
        )

    def _info(self, info: dict) -> dict:
        return copied(info) if self.reads_info else info

    def _observation(self, space: Any, value: Any, where: str = "observation") -> Any:
        """A copy, if it has the form of its space."""
        spaces = getattr(space, "spaces", None)
        if spaces is not None and hasattr(spaces, "items"):
            if not isinstance(value, dict) or value.keys() != spaces.keys():
                raise breach(
                    self.name,
                    f"the {where} must be a dictionary with the keys {', '.join(map(str, spaces))}",
                    f"it is {described(value)}",
                )
            return {
                key: self._observation(part, value[key], f"{where} {key!r}")
                for key, part in spaces.items()
            }
        if spaces is not None or not hasattr(space, "low"):  # tuples, numbers, texts
            return copied(value)
        array = value if isinstance(value, np.ndarray) else _as_array(value)
        if array.shape != space.shape or array.dtype.kind not in NUMBERS:
            kind = "numbers" if array.dtype.kind in NUMBERS else "other things than numbers"
            raise breach(
                self.name,
                f"the {where} must be numbers of shape {space.shape}, as its space says",
                f"it is of shape {array.shape} and holds {kind}",
            )
        if array.dtype.itemsize > 8 and array.dtype.kind == "f":  # which torch does not know
            return array.astype(np.float64)
        return array.copy()

    def _reward(self, value: Any) -> float:
        array = _as_array(value)
        if array.size != 1 or array.dtype.kind not in NUMBERS:
            raise breach(self.name, "a reward must be one number", f"it is {described(value)}")
        return float(array.reshape(()))

    def _flag(self, value: Any, which: str) -> bool:
        array = _as_array(value)
        is_one = array.size == 1 and array.dtype.kind in NUMBERS
        if not is_one or array.reshape(()) not in (0, 1):
            raise breach(
                self.name, f"{which} must be one boolean, 0 or 1", f"it is {described(value)}"
            )
        return bool(array.reshape(()))


def refuse_reset(stack: Iterable[Any], name: str) -> None:
    """Name a layer of Gymnasium's whose reset takes no seed.

    Raises:
        ValueError: if there is one.
    """
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


def first_line(error: Exception) -> str:
    """An error in one line.

    Examples:
        >>> first_line(KeyError("gravity"))
        "KeyError: 'gravity'"
    """
    return f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".: ")


def described(value: Any) -> str:
    """What came instead, in a few words.

    Examples:
        >>> described((np.zeros(3), {}))
        '2 values (an array of shape (3,), dict)'
    """
    if isinstance(value, (np.ndarray, Tensor)):
        return f"an array of shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"{len(value)} values ({', '.join(map(described, value)) or 'none'})"
    if isinstance(value, dict) and value:
        return f"a dictionary with the keys {', '.join(map(str, value))}"
    if isinstance(value, (bool, int, float, str, type(None), np.generic)):
        return repr(value)
    return type(value).__name__


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
    try:
        return np.asarray(value)
    except ValueError:  # of lists of several lengths
        return np.asarray(None)
