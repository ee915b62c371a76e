"""How much memory a run takes."""

from __future__ import annotations

import importlib.util
import sys

import torch

__all__ = ["peak_memory_mib"]


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory so far in MiB: PyTorch's on CUDA, otherwise the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if importlib.util.find_spec("resource") is None:  # Windows
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB on Linux
