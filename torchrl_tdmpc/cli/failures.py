"""What a person who starts a command sees of an error: one sentence, or on request all of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from omegaconf.errors import OmegaConfBaseException
from torchrl.checkpoint import CheckpointError

from torchrl_tdmpc.checkpoints.archive import first_line
from torchrl_tdmpc.data import ReplayError
from torchrl_tdmpc.trainers import CollectionError

__all__ = ["in_one_sentence", "wants_traceback"]

# What is wrong with settings, files, environments; anything else is a mistake of this package
REFUSALS = (CheckpointError, CollectionError, ImportError, OSError, ValueError)
LARGE = "train.batch_size, planner.num_samples, model.size, env.num_envs or replay.capacity"
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """End the program with what is wrong in one sentence, and exit code 1.

    With the environment variable ``HYDRA_FULL_ERROR=1``, which is Hydra's own, the error goes on
    instead, with its traceback.

    Examples:
        >>> with in_one_sentence():
        ...     raise ValueError("train.steps is -1; it must be at least 1.")
        Traceback (most recent call last):
        SystemExit: error: train.steps is -1; it must be at least 1.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit("error: interrupted; the last checkpoint is kept.") from None
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None or wants_traceback():
            raise
        raise SystemExit(f"error: {sentence}") from None


def wants_traceback() -> bool:
    """Whether the person who started the command asked for all of an error."""
    return os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")


def _sentence(error: Exception) -> str | None:
    """What to say; None for what only a traceback explains."""
    if isinstance(error, (FloatingPointError, ReplayError)):
        return f"{error} The last checkpoint is kept."
    if isinstance(error, OmegaConfBaseException):
        return f"the settings do not fit together ({first_line(error)})."
    is_full = isinstance(error, RuntimeError) and any(w in str(error) for w in OUT_OF_MEMORY)
    if is_full or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return f"the memory does not suffice ({first_line(error)}); choose a smaller {LARGE}."
    return str(error) if isinstance(error, REFUSALS) else None
