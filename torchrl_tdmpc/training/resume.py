"""Going on with a run that ended: which checkpoint, whether it fits, and what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.checkpoint import Checkpoint, CheckpointRotation, GlobalRNGState
from torchrl.collectors import Collector

from torchrl_tdmpc.data import ReplayLog, Segment
from torchrl_tdmpc.envs import env_state, set_env_state
from torchrl_tdmpc.torchrl_series import carried_data
from torchrl_tdmpc.training.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    read_metadata,
    save_checkpoint,
)

__all__ = ["CollectorState", "Counters", "find_checkpoint", "resume_run", "save_run"]


@dataclass
class Counters:
    """How far a run is.

    What is due follows from the differences: updates from ``decisions - updates``, an evaluation or
    a checkpoint from the last one. So a run that ends anywhere between two updates goes on there.

    Attributes:
        decisions: actions chosen, summed over environments.
        updates: updates done.
        evaluated: decisions at the last evaluation.
        saved: decisions at the last checkpoint; -1 before the first, which is due at 0.
        nan_values: of the last plan, for the log.
    """

    decisions: int = 0
    updates: int = 0
    evaluated: int = 0
    saved: int = -1
    nan_values: Tensor = field(default_factory=lambda: torch.zeros(()))

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the counts of another run."""
        vars(self).update(state)


class CollectorState:
    """A collector and the environments that it is in the middle of, for a checkpoint.

    On top of what TorchRL's collector saves of itself (its counters and its transforms) these are
    the environments' states and the data it carries from step to step: observations, the planner's
    warm start, returns and lengths so far, trajectory numbers.

    Args:
        collector: of environments that :func:`torchrl_tdmpc.envs.env_state` understands, or not.

    Attributes:
        failed: set it when a step failed, and the environments are not saved any more.
        restarted: whether the environments of the state that was loaded had not been saved. They
            begin new episodes, from seeds of their own; the open ones do not go on.
    """

    def __init__(self, collector: Collector):
        self.collector = collector
        self.failed = self.restarted = False

    def state_dict(self) -> dict[str, Any]:
        """The state; without environments if they, or the collector, cannot tell theirs in full."""
        state = dict(self.collector.state_dict())
        state.pop("policy_state_dict", None)  # saved with the losses
        environments = None if self.failed else env_state(self.collector.env)
        carried = carried_data(self.collector)
        if environments is not None and carried is not None:
            state |= {"environments": environments, "carried": carried.cpu().to_dict()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a new collector where the saved one was, as far as its environments can be put."""
        collector = self.collector
        collector.load_state_dict(state, strict=False)
        carrier = carried_data(collector)
        self.restarted = "environments" not in state or carrier is None
        if self.restarted:
            # Not the run's seeds again: they give the episodes that it began with
            seeds = np.random.SeedSequence([torch.initial_seed(), state["frames"]])
            collector.env.set_seed(int(seeds.generate_state(1)[0]))
            collector.reset()
        else:
            carrier.update(TensorDict(state["carried"], carrier.batch_size).to(_device(carrier)))
            set_env_state(collector.env, state["environments"])


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
    replay_log: ReplayLog,
    *,
    metadata: Mapping[str, Any],
    keep_last: int,
) -> None:
    """Write a checkpoint that :func:`resume_run` goes on from, and what is new in the replay.

    Args:
        directory: of the run's checkpoints.
        step: see :func:`save_checkpoint`.
        components: name to object with ``state_dict`` and ``load_state_dict``. The replay and the
            random generators of torch, NumPy and Python are added to them.
        replay_log: of the run's replay; its files lie in a folder of their own.
        metadata: see :func:`save_checkpoint`.
        keep_last: how many checkpoints remain.

    Raises:
        OSError: if the disk is full or fails; the earlier checkpoints can still be resumed.
    """
    replay_log.append()
    everything = {**components, "replay": replay_log, "random": GlobalRNGState()}
    metadata = {**metadata, "segments": [list(segment) for segment in replay_log.segments]}
    save_checkpoint(directory, step, everything, metadata=metadata, keep_last=keep_last)
    replay_log.prune(_segments_in_use(Path(directory)))


def resume_run(path: str | Path, components: Mapping[str, Any], replay_log: ReplayLog) -> None:
    """Put everything back as it was at a checkpoint, and drop the checkpoints that came after it.

    Nothing is loaded before every checksum is verified, the replay's too.

    Args:
        path: the checkpoint.
        components: as given to :func:`save_run`.
        replay_log: of an empty replay.

    Raises:
        CheckpointError: if a file is missing, truncated or altered, or does not fit.
    """
    path = Path(path)
    replay_log.verify([Segment(*segment) for segment in read_metadata(path)["segments"]])
    everything = {**components, "replay": replay_log, "random": GlobalRNGState()}
    log = everything.pop("log", None)
    load_checkpoint(path, everything)
    if log is not None:  # last: it cuts the rows off that came after the checkpoint
        load_checkpoint(path, {"log": log})
    for other in path.parent.glob("checkpoint-*.torchrl"):
        if other.name > path.name:
            other.unlink()


def _segments_in_use(directory: Path) -> set[str]:
    """The names of the replay's files that any checkpoint needs."""
    paths = CheckpointRotation(directory, keep_last=1).checkpoints()
    manifests = [Checkpoint.manifest(path) for path in paths]
    segments = [s for m in manifests for s in m["metadata"].get("segments", ())]
    return {Segment(*segment).name for segment in segments}


def _device(carrier: TensorDict) -> torch.device:
    return next(iter(carrier.values(True, True))).device
