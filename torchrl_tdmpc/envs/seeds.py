"""The global random generators, from which environments of other people draw."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


def seed_generators(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python.

    Args:
        seed: at least 0.

    Examples:
        >>> seed_generators(3)
        >>> first = random.random()
        >>> seed_generators(3)
        >>> random.random() == first
        True
    """
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def forked_generators(
    seed: int | None = None, devices: Sequence[torch.device] = ()
) -> Iterator[None]:
    """Leave the global generators of torch, NumPy and Python as they were, whatever draws inside.

    Args:
        seed: of the generators inside; None begins with their present state.
        devices: CUDA devices whose generators are torch's too.

    Examples:
        >>> before = np.random.get_state()[1].copy()
        >>> with forked_generators(seed=1):
        ...     _ = np.random.rand(2000)
        >>> bool((np.random.get_state()[1] == before).all())
        True
    """
    state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices):
        try:
            if seed is not None:
                seed_generators(seed)
            yield
        finally:
            np.random.set_state(state[0])
            random.setstate(state[1])
