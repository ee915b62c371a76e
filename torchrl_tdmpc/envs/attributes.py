"""The attributes of an object as tensors and plain values, whole or not at all."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

PLAIN = (bool, int, float, str, type(None))
# What is code, not state
CODE = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type)


class NoStateError(ValueError):
    """An attribute cannot be saved; the message names it."""


def pack(value: Any, name: str) -> Any:
    """A value in a form that ``torch.load(weights_only=True)`` reads.

    Args:
        value: a number, a text, an array, a tensor, a random generator, or containers of them.
        name: of the attribute, for the message.

    Raises:
        NoStateError: if it is, or contains, something else.

    Examples:
        >>> unpack(pack({"goal": [np.arange(2), (1, None)]}, "memory"))
        {'goal': [array([0, 1]), (1, None)]}
    """
    if type(value) in PLAIN:
        return value
    if isinstance(value, Tensor):
        return {"tensor": value.detach().clone()}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "fiub":
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return {kind: torch.from_numpy(np.array(value))}
    if type(value) in (list, tuple, set):
        kind = type(value).__name__
        return {kind: [pack(item, f"{name}[{place}]") for place, item in enumerate(value)]}
    if isinstance(value, dict):
        items = [(pack(k, name), pack(v, f"{name}[{k!r}]")) for k, v in value.items()]
        return {"dict": items}
    if isinstance(value, np.random.RandomState):
        return {"random_state": pack(value.get_state(), name)}
    if isinstance(value, np.random.Generator):
        return {"generator": pack(value.bit_generator.state, name)}
    if isinstance(value, torch.Generator):
        return {"torch_generator": value.get_state()}
    raise NoStateError(f"{name} is of type {type(value).__name__}")


def unpack(packed: Any, old: Any = None) -> Any:
    """What :func:`pack` was given.

    Args:
        packed: its result.
        old: what is there now. Arrays and generators of the same kind are changed in place, because
            others may share them.
    """
    if type(packed) in PLAIN:
        return packed
    ((kind, value),) = packed.items()
    if kind == "tensor":
        return value.clone()
    if kind in ("array", "scalar"):
        array = value.numpy().copy()
        if kind == "scalar":
            return array[()]
        same = isinstance(old, np.ndarray) and (old.shape, old.dtype) == (array.shape, array.dtype)
        if same and old.flags.writeable:
            np.copyto(old, array)
            return old
        return array
    if kind in ("list", "tuple", "set"):
        before = list(old) if isinstance(old, (list, tuple)) and len(old) == len(value) else None
        items = [unpack(v, before and before[place]) for place, v in enumerate(value)]
        return {"list": list, "tuple": tuple, "set": set}[kind](items)
    if kind == "dict":
        before = old if isinstance(old, dict) else {}
        pairs = [(unpack(key), item) for key, item in value]
        return {key: unpack(item, before.get(key)) for key, item in pairs}
    if kind == "random_state":
        generator = old if isinstance(old, np.random.RandomState) else np.random.RandomState()
        generator.set_state(unpack(value))
        return generator
    if kind == "generator":
        state = unpack(value)
        if not isinstance(old, np.random.Generator):
            old = np.random.Generator(getattr(np.random, state["bit_generator"])())
        old.bit_generator.state = state
        return old
    generator = old if isinstance(old, torch.Generator) else torch.Generator()
    return generator.set_state(value)


def pack_attributes(instance: Any, constants: tuple = ()) -> dict[str, Any]:
    """Every attribute of an object.

    Args:
        instance: the object.
        constants: objects among its attributes that are saved elsewhere, or never change.

    Raises:
        NoStateError: if one cannot be saved.
    """
    return {
        name: pack(value, name)
        for name, value in vars(instance).items()
        if not isinstance(value, CODE) and not any(value is constant for constant in constants)
    }


def unpack_attributes(instance: Any, state: Mapping[str, Any]) -> None:
    """Give an object the attributes of :func:`pack_attributes`."""
    attributes = vars(instance)
    for name, packed in state.items():
        attributes[name] = unpack(packed, attributes.get(name))
