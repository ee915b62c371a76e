"""What a size would need, compared with what the machine has, before anything is made."""

from __future__ import annotations

import os
from pathlib import Path

import torch

__all__ = ["machine_memory", "refuse_beyond_memory"]


def machine_memory() -> float:
    """Bytes of memory that this process may take at most; infinity where the system hides it."""
    limits = [float("inf")]
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # another system, or "max"
            continue
    return min(limits)


def refuse_beyond_memory(what: str, num_bytes: float) -> None:
    """Refuse what the machine has no memory for.

    Args:
        what: the arguments with their values, and what they ask memory for.
        num_bytes: how much it would take.

    Raises:
        ValueError: the machine has less, and so have all its GPUs.

    Examples:
        >>> refuse_beyond_memory("capacity is 5; its transitions", 800.0)
        >>> refuse_beyond_memory("capacity is 5; its transitions", 8e20)
        Traceback (most recent call last):
        ValueError: capacity is 5; its transitions would take 800,000,000,000 GB, ...
    """
    most = machine_memory()
    for number in range(torch.cuda.device_count()):
        most = max(most, torch.cuda.get_device_properties(number).total_memory)
    if num_bytes > most:
        raise ValueError(
            f"{what} would take {num_bytes / 1e9:,.0f} GB, and this machine has {most / 1e9:,.0f}."
        )
