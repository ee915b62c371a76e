"""How the hot functions run: the one place where compilation and precision are chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch.utils._pytree import tree_map_only

__all__ = ["Execution"]

Result = TypeVar("Result")

# What torch.compile is asked for, on a CPU and on a GPU, where both make CUDA graphs
MODES = {
    "cpu": {"default": "default", "max": "max-autotune-no-cudagraphs"},
    "cuda": {"default": "reduce-overhead", "max": "max-autotune"},
}


@dataclass(frozen=True)
class Execution:
    """How planner and update run their hot functions; the mathematics stay the same.

    Args:
        compile: ``"off"`` runs them as written; ``"default"`` and ``"max"`` send them through
            ``torch.compile``, the latter with a longer search for the fastest kernels. The first
            calls take a minute or more, and some seconds again for another number of environments
            or another batch size. Random draws are those of eager mode.
        precision: of the networks' forward passes, ``"float32"`` or ``"bfloat16"``. Two-hot coding,
            returns, elites, losses, weights and the optimisers' state are float32 in both.
        device: where the networks are, ``"cpu"`` or ``"cuda"``. On CUDA, compiled functions are
            CUDA graphs.

    Raises:
        ValueError: a word that is none of the choices.

    Examples:
        >>> product = Execution(precision="bfloat16").prepare(torch.nn.functional.linear)
        >>> product(torch.ones(1, 2), torch.ones(3, 2)).dtype
        torch.bfloat16
    """

    compile: Literal["off", "default", "max"] = "off"
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"

    def __post_init__(self):
        choices = {
            "compile": ("off", "default", "max"),
            "precision": ("float32", "bfloat16"),
            "device": tuple(MODES),
        }
        for name, words in choices.items():
            if str(getattr(self, name)).partition(":")[0] not in words:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; the choices are {', '.join(words)}."
                )

    def prepare(self, function: Callable[..., Result]) -> Callable[..., Result]:
        """The function, to be called with the same arguments.

        Args:
            function: a function, not a bound method: a copy of the object whose methods it is to
                run passes itself.
        """
        return _Prepared(self, function)


class _Prepared:
    """A function and how it runs."""

    def __init__(self, execution: Execution, function: Callable):
        self.execution = execution
        self.function = function
        self.device_type = torch.device(execution.device).type
        self.run = function
        if execution.compile != "off":
            mode = MODES[self.device_type][execution.compile]
            options = torch._inductor.list_mode_options(mode) | {"fallback_random": True}
            self.run = torch.compile(function, dynamic=False, options=options)
        self.makes_graphs = self.device_type == "cuda" and execution.compile != "off"

    def __call__(self, *args, **kwargs):
        halves = self.execution.precision == "bfloat16"
        with torch.autocast(self.device_type, torch.bfloat16, enabled=halves):
            result = self.run(*args, **kwargs)
        if self.makes_graphs:  # the next call of any graph takes the memory of this one's result
            result = tree_map_only(torch.Tensor, torch.clone, result)
        return result

    def __reduce__(self):
        return _Prepared, (self.execution, self.function)  # compiled anew where it is unpickled
