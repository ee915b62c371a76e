"""Going on with a run that ended: which checkpoint, whether it fits, and what it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl.checkpoint import Checkpoint, CheckpointRotation, GlobalRNGState

from torchrl_tdmpc.checkpoints.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    read_metadata,
    save_checkpoint,
)
from torchrl_tdmpc.checkpoints.replay_log import ReplayLog, Segment

__all__ = ["find_checkpoint", "resume_run", "save_run"]


def find_checkpoint(resume: str | None, output_dir: str | Path) -> Path | None:
    """The checkpoint that a run goes on from.

    Args:
        resume: None begins a new run. ``"auto"`` is the newest checkpoint of ``output_dir``, if
            there is one. Anything else is the path of a checkpoint, or of a run: its newest one.
        output_dir: where the run writes.

    Returns:
        Its path; None begins a new run.

    Raises:
        FileNotFoundError: if ``resume`` is a path without a checkpoint.

    Examples:
        >>> print(find_checkpoint("auto", "outputs/of-a-run-that-never-was"))
        None
    """
    if resume is None:
        return None
    if resume == "auto":
        folder = Path(output_dir, "checkpoints")
        return newest_checkpoint(folder) if any(folder.glob("checkpoint-*.torchrl")) else None
    path = Path(resume)
    if path.is_file():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    try:
        return newest_checkpoint(folder)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"resume is {resume!r}; choose auto, a checkpoint, or the folder of a run that has one."
        ) from None


def save_run(
    directory: str | Path,
    step: int,
    components: Mapping[str, Any],
    callbacks: Mapping[str, Any],
    replay_log: ReplayLog | None,
    *,
    metadata: Mapping[str, Any],
    keep_last: int,
) -> Path:
    """Write a checkpoint that :func:`resume_run` goes on from, and what is new in the replay.

    Args:
        directory: of the run's checkpoints.
        step: see :func:`save_checkpoint`.
        components: name to object with ``state_dict`` and ``load_state_dict``. The replay and the
            random generators of torch, NumPy and Python are added to them.
        callbacks: likewise; they are restored after all else, because they cut off what was written
            after the checkpoint.
        replay_log: of the run's replay; its files lie in a folder of their own. None for a run
            that has no replay.
        metadata: see :func:`save_checkpoint`.
        keep_last: how many checkpoints remain.

    Returns:
        The path of the checkpoint.

    Raises:
        OSError: if the disk is full or fails; the earlier checkpoints can still be resumed.
    """
    segments: Sequence[Segment] = ()
    if replay_log is not None:
        replay_log.append()
        segments = replay_log.segments
    everything = {**_restored(components, replay_log), **_named(callbacks)}
    metadata = {**metadata, "segments": [list(segment) for segment in segments]}
    path = save_checkpoint(directory, step, everything, metadata=metadata, keep_last=keep_last)
    if replay_log is not None:
        replay_log.prune(_segments_in_use(Path(directory)))
    return path


def resume_run(
    path: str | Path,
    components: Mapping[str, Any],
    callbacks: Mapping[str, Any],
    replay_log: ReplayLog | None,
) -> None:
    """Put everything back as it was at a checkpoint, and drop the checkpoints that came after it.

    Nothing is loaded before every checksum is verified, the replay's too.

    Args:
        path: the checkpoint.
        components: as given to :func:`save_run`.
        callbacks: as given to :func:`save_run`.
        replay_log: of an empty replay, or None; as given to :func:`save_run`.

    Raises:
        CheckpointError: if a file is missing, truncated or altered, or does not fit.
    """
    path = Path(path)
    if replay_log is not None:
        replay_log.verify([Segment(*segment) for segment in read_metadata(path)["segments"]])
    load_checkpoint(path, _restored(components, replay_log))
    load_checkpoint(path, _named(callbacks))
    for other in path.parent.glob("checkpoint-*.torchrl"):
        if other.name > path.name:
            other.unlink()


def _restored(components: Mapping[str, Any], replay_log: ReplayLog | None) -> dict[str, Any]:
    """What is restored before the callbacks are."""
    replay = {} if replay_log is None else {"replay": replay_log}
    return {**components, **replay, "random": GlobalRNGState()}


def _named(callbacks: Mapping[str, Any]) -> dict[str, Any]:
    return {f"callback_{name}": callback for name, callback in callbacks.items()}


def _segments_in_use(directory: Path) -> set[str]:
    """The names of the replay's files that any checkpoint needs."""
    paths = CheckpointRotation(directory, keep_last=1).checkpoints()
    manifests = [Checkpoint.manifest(path) for path in paths]
    segments = [s for m in manifests for s in m["metadata"].get("segments", ())]
    return {Segment(*segment).name for segment in segments}
