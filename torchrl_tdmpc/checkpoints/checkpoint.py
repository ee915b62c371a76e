"""Checkpoints of a run: one file each, complete or absent, loadable without pickle.

On top of :class:`torchrl.checkpoint.Checkpoint`, which writes and reads the components, this adds
what a run needs: a publication that is a single rename, and loading that never unpickles.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchrl.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointRotation,
    StateDictCheckpointAdapter,
)

from torchrl_tdmpc.checkpoints.archive import first_line, verify_archive
from torchrl_tdmpc.checkpoints.part import PartOfLoss
from torchrl_tdmpc.durable import naming_file, publish

FORMAT = 2  # of what is written here; 1 had none of its own
EXTRA = "_extra_state"  # torch's name for what a module saves beside its weights
LARGEST = {"manifest.json": 16 * 2**20}  # it names the parts and the files of the replay

__all__ = ["load_checkpoint", "newest_checkpoint", "read_metadata", "save_checkpoint"]


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
        OSError: If the disk is full or fails; the earlier checkpoints are as they were.
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

    path = directory / f"{rotation.prefix}-{step:012d}.torchrl"
    metadata = {"format": FORMAT, **(metadata or {})}
    try:
        with naming_file(path):
            staged = _bind(components).save(
                staging / "checkpoint", format="archive", metadata=metadata
            )
    except RuntimeError as error:  # how PyTorch's writer reports what the system refused it
        raise OSError(f"{path} cannot be written: {error}") from error
    publish(staged, path)

    shutil.rmtree(staging)
    rotation.prune()
    return path


def load_checkpoint(
    path: str | Path,
    components: Mapping[str, Any],
    *,
    part: str | None = None,
    map_location: Any = "cpu",
) -> dict[str, Any]:
    """Restore ``components`` from a checkpoint and return its metadata.

    Tensors are read with ``weights_only=True``; a file with any other payload is refused, so a
    checkpoint from elsewhere cannot run code. The checksum of every part is verified before the
    first one is loaded.

    Args:
        path: A file written by :func:`save_checkpoint`, or a directory of them: its newest one.
        components: Name to object, as saved or some of them, changed in place. Build
            ``SoftUpdate`` before loading: it copies the online parameters to the targets.
        part: Loads one network of a loss alone, named as an attribute of it, such as
            ``world_model.encoder``; ``components`` then names that loss.
        map_location: Where tensors are read to before ``load_state_dict`` copies them.

    Returns:
        The metadata that was saved.

    Raises:
        FileNotFoundError: If ``path`` does not exist or is a directory without checkpoints.
        CheckpointError: If ``path`` is not such a checkpoint, truncated or altered, or a component
            is absent from it or does not fit.
    """
    path = newest_checkpoint(path) if Path(path).is_dir() else Path(path)
    metadata = read_metadata(path)
    if part is not None:
        components = {name: PartOfLoss(loss, part) for name, loss in components.items()}
    try:
        _bind(components).load(path, map_location=map_location)
    except CheckpointError as error:
        cause = error.__cause__
        if isinstance(cause, pickle.UnpicklingError):
            reason = "a part is no tensors and plain values alone, and weights_only opens no other"
        else:
            reason = first_line(error)
        raise CheckpointError(f"{path} does not fit: {reason}.") from error
    return metadata


def newest_checkpoint(directory: str | Path) -> Path:
    """The checkpoint with the highest step, whole or damaged.

    Raises:
        FileNotFoundError: If there is none.
    """
    paths = sorted(Path(directory).glob("checkpoint-*.torchrl"))
    if not paths:
        raise FileNotFoundError(f"there is no checkpoint in {directory}")
    return paths[-1]


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Verify a checkpoint's checksums, and return its metadata without loading anything.

    Args:
        path: A file written by :func:`save_checkpoint`.

    Raises:
        FileNotFoundError: If ``path`` does not exist.
        CheckpointError: If ``path`` is not such a checkpoint, or truncated or altered.
    """
    path = Path(path)
    manifest = _manifest(path)
    for name, record in manifest["components"].items():
        if record["files"] != [StateDictCheckpointAdapter.state_torch]:
            raise CheckpointError(f"component {name!r} of {path} was not saved by save_checkpoint")
    metadata = dict(manifest["metadata"] or {})
    if (version := metadata.pop("format", 1)) != FORMAT:
        raise CheckpointError(
            f"{path} has format {version}, of another version of torchrl_tdmpc; this version reads "
            f"format {FORMAT}."
        )
    return metadata


def _manifest(path: Path) -> dict[str, Any]:
    """TorchRL's manifest of a file of which every byte that matters is as it was written."""
    try:
        verify_archive(path, LARGEST)
        manifest = Checkpoint.manifest(path)
        if not isinstance(manifest.get("metadata"), dict | None):
            raise CheckpointError("its manifest has no metadata")
        return manifest
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except Exception as error:  # whatever a manifest leads TorchRL's reader into
        raise CheckpointError(
            f"{path} is no checkpoint, or truncated or altered: it {first_line(error)}."
        ) from error


def _bind(components: Mapping[str, Any]) -> Checkpoint:
    """Register every component with the one payload that loads with ``weights_only``."""
    checkpoint = Checkpoint()
    for name, component in components.items():
        checkpoint.register(name, component, adapter=_Adapter("torch"))
    return checkpoint


class _Adapter(StateDictCheckpointAdapter):
    """Names the first entry of another shape, instead of every one."""

    def load(self, component: Any, path: Path, **settings: Any) -> Any:
        if isinstance(component, nn.Module):
            component = _SameShapes(component)
        return super().load(component, path, **settings)


class _SameShapes:
    """Passes a state on to a module, if every entry has the shape that it has there."""

    def __init__(self, module: nn.Module):
        self.module = module

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        own = self.module.state_dict()
        if EXTRA in own and EXTRA in state:
            self.module.set_extra_state(state[EXTRA])  # which may refuse in words of its own
        differ = [
            (name, list(state[name].shape), list(value.shape))
            for name, value in own.items()
            if isinstance(value, torch.Tensor)
            and isinstance(state.get(name), torch.Tensor)
            and state[name].shape != value.shape
        ]
        if differ:
            name, saved, here = differ[0]
            raise ValueError(
                f"{name!r} has the shape {saved} in the file and {here} here; {len(differ)} of "
                f"{len(own)} entries differ"
            )
        if unlike := own.keys() ^ state.keys():
            where = "the file" if min(unlike) in own else "what is loaded into"
            raise ValueError(
                f"{min(unlike)!r} is missing in {where}; {len(unlike)} names stand in one alone"
            )
        self.module.load_state_dict(state)
