"""How the hot functions run: the one place where compilation and precision are chosen."""

from __future__ import annotations

from collections.abc import Callable, Collection
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
        compile: ``"off"`` runs them eagerly; ``"default"`` and ``"max"`` send them through
            ``torch.compile``, the latter with a longer search for the fastest kernels. The first
            calls take a minute or more, and some seconds again for another number of environments
            or another batch size. Random draws are those of eager mode.
        precision: of the networks' forward passes, ``"float32"`` or ``"bfloat16"``. Two-hot coding,
            returns, elites, losses, weights and the optimisers' state are float32 in both.

    Raises:
        ValueError: a word that is none of the choices.

    Examples:
        >>> product = Execution(precision="bfloat16").prepare(torch.nn.functional.linear, "cpu")
        >>> product(torch.ones(1, 2), torch.ones(3, 2)).dtype
        torch.bfloat16
    """

    compile: Literal["off", "default", "max"] = "off"
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        choices = {"compile": ("off", "default", "max"), "precision": ("float32", "bfloat16")}
        for name, words in choices.items():
            _refuse_unknown(name, getattr(self, name), words)

    def prepare(
        self, function: Callable[..., Result], device: torch.device | str
    ) -> Callable[..., Result]:
        """The function, to be called with the same arguments.

        Args:
            function: a function, not a bound method: a copy of the object whose methods it is to
                run passes itself.
            device: where the networks are, a CPU or CUDA. On CUDA, compiled functions are CUDA
                graphs.

        Raises:
            ValueError: another kind of device.
        """
        return _Prepared(self, function, torch.device(device).type)


def _refuse_unknown(name: str, word: str, choices: Collection[str]) -> None:
    if word not in choices:
        raise ValueError(f"{name} is {word!r}; the choices are {', '.join(choices)}.")


class _Prepared:
    """A function and how it runs."""

    def __init__(self, execution: Execution, function: Callable, device_type: str):
        _refuse_unknown("device", device_type, MODES)
        self.execution = execution
        self.function = function
        self.device_type = device_type
        self.run = function
        if execution.compile != "off":
            # Every planner of a process counts, and beyond the limit torch runs what is written
            config = torch._dynamo.config
            config.recompile_limit = max(config.recompile_limit, 64)
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
        # Compiled anew where it is unpickled
        return _Prepared, (self.execution, self.function, self.device_type)
