"""How the hot functions run: the one place where compilation and precision are chosen."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from sysconfig import get_path
from typing import Literal, TypeVar

import torch
from torch import nn
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.utils._pytree import tree_map_only
from torch.utils._triton import has_triton

__all__ = ["Execution", "missing_for_compilation"]

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
        >>> layer = nn.Linear(2, 3)
        >>> product = Execution(precision="bfloat16").prepare(nn.Linear.forward, "cpu")
        >>> product(layer, torch.ones(1, 2)).dtype
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
            function: a function, not a bound method: its first argument is the module whose weights
                it computes with. It runs where that module is when it is called.
            device: where the module is now. On CUDA, compiled functions are CUDA graphs.

        Raises:
            ValueError: compilation or bfloat16 on another device than a CPU or CUDA.
        """
        prepared = _Prepared(self, function)
        prepared.on(torch.device(device).type)
        return prepared


def missing_for_compilation(device_type: str) -> str | None:
    """What ``torch.compile`` needs for a kind of device and this machine lacks; None if nothing.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``.
    """
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "a C++ compiler (g++ or clang++)"
    if not Path(get_path("include"), "Python.h").is_file():
        return "the header file Python.h (package python3-dev)"
    if device_type == "cuda" and not has_triton():
        return "Triton"
    return None


def _refuse_unknown(name: str, word: str, choices: Collection[str]) -> None:
    if word not in choices:
        raise ValueError(f"{name} is {word!r}; the choices are {', '.join(choices)}.")


class _Prepared:
    """A function and how it runs, on each kind of device."""

    def __init__(self, execution: Execution, function: Callable):
        self.execution = execution
        self.function = function
        self._runs: dict[str, Callable] = {}

    def on(self, device_type: str) -> Callable:
        """What runs there."""
        if device_type not in self._runs:
            self._runs[device_type] = self._made_for(device_type)
        return self._runs[device_type]

    def _made_for(self, device_type: str) -> Callable:
        execution = self.execution
        if execution != Execution() and device_type not in MODES:
            raise ValueError(
                f"the networks are on {device_type!r} with compile {execution.compile!r} and "
                f"precision {execution.precision!r}; beyond {', '.join(MODES)} they run with "
                "compile 'off' and precision 'float32' alone."
            )
        if execution.compile == "off":
            return self.function
        # Every planner of a process counts, and beyond the limit torch runs what is written
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 64)
        mode = MODES[device_type][execution.compile]
        options = torch._inductor.list_mode_options(mode) | {"fallback_random": True}
        return torch.compile(self.function, dynamic=False, options=options)

    def __call__(self, module: nn.Module, *args, **kwargs):
        device_type = next(module.parameters()).device.type
        run = self.on(device_type)
        if self.execution.precision == "bfloat16":
            with torch.autocast(device_type, torch.bfloat16):
                result = run(module, *args, **kwargs)
        else:
            result = run(module, *args, **kwargs)
        if device_type == "cuda" and self.execution.compile != "off":
            # The next call of any graph takes the memory of this one's result
            result = tree_map_only(torch.Tensor, torch.clone, result)
        return result

    def __reduce__(self):
        # Compiled anew where it is unpickled
        return _Prepared, (self.execution, self.function)
