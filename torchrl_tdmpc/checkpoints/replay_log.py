"""The replay buffer on disk: what was added since the last time, in a file of its own."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torchrl.checkpoint import CheckpointError

from torchrl_tdmpc.data.replay import EpisodeReplay
from torchrl_tdmpc.durable import checksum, publish

__all__ = ["ReplayLog", "Segment"]


class Segment(NamedTuple):
    """One file of the log: transitions ``begin`` to ``end`` of the replay, as they were written."""

    begin: int
    end: int
    checksum: int

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.begin:012d}-{self.end:012d}.pt"


class ReplayLog:
    """Saves a replay bit by bit, and restores it exactly.

    The ring is a function of what was written to it, in order. So each :meth:`append` writes what
    is new to a file that is never changed again, and a checkpoint is the list of files at its time:
    whatever is written later takes nothing away from it. Files whose transitions have all left the
    ring are not listed any more. The unfinished episodes and counters are in :meth:`state_dict`.

    Args:
        replay: what is saved, or an empty one to be filled.
        directory: where the files are; made when absent.

    Attributes:
        segments: the files that hold the replay as it was last saved or restored.

    Examples:
        >>> import tempfile
        >>> data = TensorDict(
        ...     observation=torch.zeros(1, 5, 2),
        ...     action=torch.zeros(1, 5, 1),
        ...     next=TensorDict(
        ...         observation=torch.zeros(1, 5, 2),
        ...         reward=torch.zeros(1, 5, 1),
        ...         terminated=torch.zeros(1, 5, 1, dtype=torch.bool),
        ...         done=(torch.arange(5) == 4).reshape(1, 5, 1),
        ...     ),
        ... ).auto_batch_size_(2)
        >>> replay, copy = (EpisodeReplay(capacity=8, horizon=2, batch_size=3) for _ in range(2))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     log = ReplayLog(replay, directory)
        ...     for _ in range(3):
        ...         _ = replay.extend(data)
        ...         log.append()
        ...     state = log.state_dict()
        ...     ReplayLog(copy, directory).load_state_dict(state)
        >>> copy.num_written, copy.num_transitions, [segment.name for segment in log.segments]
        (18, 8, ['000000000006-000000000012.pt', '000000000012-000000000018.pt'])
    """

    def __init__(self, replay: EpisodeReplay, directory: str | Path):
        self.replay = replay
        self.directory = Path(directory)
        self.segments: list[Segment] = []

    def append(self) -> None:
        """Write what the replay has written to its ring since the last call.

        Raises:
            OSError: if the disk is full or fails. The log is then as it was.
        """
        now = self.replay.num_written
        oldest = now - self.replay.num_transitions
        begin = max(oldest, self.segments[-1].end if self.segments else 0)
        if begin < now:
            self.directory.mkdir(parents=True, exist_ok=True)
            staged = self.directory / "saving.pt"
            save(self.replay.written(begin).cpu().to_dict(), staged)
            segment = Segment(begin, now, checksum(staged))
            publish(staged, self.directory / segment.name)
            self.segments.append(segment)
        self.segments = [segment for segment in self.segments if segment.end > oldest]

    def verify(self, segments: Collection[Segment]) -> None:
        """Read every file in full, before anything is restored.

        Raises:
            CheckpointError: if one is absent, truncated or altered.
        """
        for segment in segments:
            path = self.directory / segment.name
            if not path.is_file():
                raise CheckpointError(f"{path}, a part of the replay buffer, is missing.")
            if checksum(path) != segment.checksum:
                raise CheckpointError(
                    f"{path}, a part of the replay buffer, is truncated or altered."
                )

    def prune(self, in_use: Collection[str]) -> None:
        """Remove the files whose names are not in ``in_use``."""
        for path in self.directory.glob("*-*.pt"):
            if path.name not in in_use:
                path.unlink()

    def state_dict(self) -> dict[str, Any]:
        """What the files do not hold, and which they are."""
        return {"replay": self.replay.state_dict(), "segments": [tuple(s) for s in self.segments]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Fill the empty replay.

        Raises:
            CheckpointError: if a file is absent, truncated or altered.
        """
        segments = [Segment(*segment) for segment in state["segments"]]
        self.verify(segments)
        begin = segments[0].begin if segments else 0
        self.replay.load_state_dict(state["replay"], begin, map(self._read, segments))
        self.segments = segments

    def _read(self, segment: Segment) -> TensorDict:
        path = self.directory / segment.name
        transitions = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return TensorDict(transitions, batch_size=segment.end - segment.begin)


def save(entries: dict[str, Any], path: Path) -> None:
    """Write nested tensors.

    Raises:
        OSError: if the disk is full or fails.
    """
    try:
        torch.save(entries, path)
    except RuntimeError as error:  # how PyTorch's writer reports what the system refused it
        raise OSError(f"{path} cannot be written: {error}") from error
