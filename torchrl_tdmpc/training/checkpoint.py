"""Checkpoints of a run: one file each, complete or absent, loadable without pickle.

On top of :class:`torchrl.checkpoint.Checkpoint`, which writes and reads the components, this adds
what a run needs: a publication that is a single rename, and loading that never unpickles.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrl.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointRotation,
    StateDictCheckpointAdapter,
)

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(
    directory: str | Path,
    step: int,
    components: Mapping[str, Any],
    *,
    metadata: Mapping[str, Any] | None = None,
    keep_last: int = 2,
) -> Path:
    """Write ``directory/checkpoint-<step>.torchrl`` and keep the newest ``keep_last`` ones.

    The file is written beside its destination and then renamed, so a process that dies at any
    moment leaves the earlier checkpoints as they were; the next call removes what it left over.

    Args:
        directory: Where the checkpoints of one run are; made when absent. One writer at a time.
        step: What the file is named after and sorted by, at least 0. A step that is already there
            is replaced.
        components: Name to object with ``state_dict`` and ``load_state_dict``: loss modules (their
            targets are part of them), optimisers.
        metadata: JSON-compatible, given back by :func:`load_checkpoint`: counters, configuration.
        keep_last: How many checkpoints remain, at least 1.

    Returns:
        The path of the new checkpoint.

    Raises:
        TypeError: If ``metadata`` is not JSON-compatible.
        ValueError: If ``step`` or ``keep_last`` is too small.

    Examples:
        >>> import tempfile, torch
        >>> source, copy = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = save_checkpoint(directory, 500, {"net": source}, metadata={"updates": 7})
        ...     metadata = load_checkpoint(directory, {"net": copy})
        >>> path.name, metadata
        ('checkpoint-000000000500.torchrl', {'updates': 7})
        >>> torch.equal(source.weight, copy.weight)
        True
    """
    if step < 0:
        raise ValueError(f"step is {step}; it must be at least 0")
    directory = Path(directory)
    rotation = CheckpointRotation(directory, keep_last=keep_last)
    staging = directory / ".saving"
    shutil.rmtree(staging, ignore_errors=True)

    staged = _bind(components).save(staging / "checkpoint", format="archive", metadata=metadata)
    with staged.open("rb") as file:
        os.fsync(file.fileno())
    path = directory / f"{rotation.prefix}-{step:012d}.torchrl"
    os.replace(staged, path)

    shutil.rmtree(staging)
    rotation.prune()
    return path


def load_checkpoint(
    path: str | Path, components: Mapping[str, Any], *, map_location: Any = "cpu"
) -> dict[str, Any]:
    """Restore ``components`` from a checkpoint and return its metadata.

    Tensors are read with ``weights_only=True``; a file with any other payload is refused, so a
    checkpoint from elsewhere cannot run code.

    Args:
        path: A file written by :func:`save_checkpoint`, or a directory of them: its newest one.
        components: Name to object, as saved or some of them, changed in place. Build
            ``SoftUpdate`` before loading: it copies the online parameters to the targets.
        map_location: Where tensors are read to before ``load_state_dict`` copies them.

    Returns:
        The metadata that was saved.

    Raises:
        FileNotFoundError: If ``path`` does not exist or is a directory without checkpoints.
        CheckpointError: If ``path`` is not such a checkpoint, or a component is absent from it or
            does not fit.
    """
    path = Path(path)
    if path.is_dir():
        latest = CheckpointRotation(path, keep_last=1).latest()
        if latest is None:
            raise FileNotFoundError(f"there is no checkpoint in {path}")
        path = latest
    if path.is_dir():  # TorchRL's directory format, whose files no inventory limits
        raise CheckpointError(f"{path} is a directory, not a file written by save_checkpoint")
    for name, record in Checkpoint.manifest(path)["components"].items():
        if record["files"] != [StateDictCheckpointAdapter.state_torch]:
            raise CheckpointError(f"component {name!r} of {path} was not saved by save_checkpoint")
    return _bind(components).load(path, map_location=map_location).manifest["metadata"]


def _bind(components: Mapping[str, Any]) -> Checkpoint:
    """Register every component with the one payload that loads with ``weights_only``."""
    checkpoint = Checkpoint()
    for name, component in components.items():
        checkpoint.register(name, component, adapter=StateDictCheckpointAdapter("torch"))
    return checkpoint
