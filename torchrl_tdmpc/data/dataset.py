"""Episodes on disk, in the format in which TD-MPC2's data sets are published."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict._reductions import _make_td
from torch import Tensor

from torchrl_tdmpc.data.replay import EpisodeReplay

__all__ = ["DatasetError", "EpisodeFiles", "stored_episodes", "write_episodes"]

FACTS = "dataset.json"  # names of tasks and files, beside a data set that this module wrote
BLOCK_ROWS = 100_000  # rows that are checked together


class DatasetError(ValueError):
    """A file is no part of a data set, or does not fit to the others."""


class EpisodeFiles:
    """The episodes of a folder of ``.pt`` files, one after the other.

    Each file is a TensorDict ``[episodes, T + 1]``. Row t has the observation ``obs``
    ``[..., O]``, and the ``action`` ``[..., A]`` and ``reward`` that led to it. Row 0 has nothing
    but the first observation. ``task`` is the index of the episode's task, and ``terminated``, if
    it is there, says that the episode ended in this row for good. Files are read with
    ``weights_only=True``, one at a time, and need not fit into memory together.

    Args:
        folder: where the files are.

    Raises:
        FileNotFoundError: there is none.
        DatasetError: a file is damaged, no such TensorDict, of other sizes than the first, or one
            is missing.

    Attributes:
        num_steps: agent steps in all episodes.
        num_episodes: of all files.

    Examples:
        >>> import tempfile
        >>> episode = TensorDict(
        ...     obs=torch.arange(4.0).reshape(4, 1), action=torch.zeros(4, 2), reward=torch.ones(4)
        ... ).auto_batch_size_(1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_episodes(folder, [episode], tasks=["walker-walk"])
        ...     files = EpisodeFiles(folder)
        ...     steps = next(iter(files))
        >>> files.num_steps, steps["observation"].flatten().tolist()
        (3, [0.0, 1.0, 2.0])
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.paths = sorted(self.folder.glob("*.pt"))
        if not self.paths:
            raise FileNotFoundError(f"there is no data set (*.pt) in {self.folder}.")
        self.num_steps = self.num_episodes = 0
        sizes = None
        for path, episodes in self.chunks():
            found = [episodes[key].shape[-1] for key in ("obs", "action")]
            sizes = sizes or found
            if found != sizes:
                raise DatasetError(
                    f"{path} has observations of {found[0]} numbers and actions of {found[1]}; "
                    f"{self.paths[0].name} has {sizes[0]} and {sizes[1]}."
                )
            self.num_episodes += episodes.shape[0]
            self.num_steps += episodes.shape[0] * (episodes.shape[1] - 1)
        self._refuse_missing()

    @property
    def tasks(self) -> list[str] | None:
        """The names of the tasks, by their index; None where the folder does not tell them."""
        facts = self._facts
        if facts is None:
            return None
        try:
            return [str(name) for name in facts["tasks"]]
        except (KeyError, TypeError) as error:
            raise DatasetError(
                f"{self.folder / FACTS} does not list the tasks ({error})."
            ) from None

    def chunks(self) -> Iterator[tuple[Path, TensorDictBase]]:
        """Each file and its TensorDict ``[episodes, T + 1]``, which stays on disk until read."""
        for path in self.paths:
            yield path, _read(path)

    def blocks(self) -> Iterator[tuple[Path, TensorDictBase]]:
        """Each file and a few of its episodes ``[E, T + 1]``, checked, one block after the other.

        Raises:
            DatasetError: an episode has numbers that cannot be learned from.
        """
        for path, episodes in self.chunks():
            size = max(1, BLOCK_ROWS // episodes.shape[1])
            for first in range(0, len(episodes), size):
                block = episodes[first : first + size]
                _check_values(path, first, block)
                yield path, block

    def __iter__(self) -> Iterator[TensorDict]:
        """Each episode as steps ``[T]`` in TorchRL's root/next layout, with its ``task``."""
        for _, block in self.blocks():
            yield from map(_steps, block)

    @property
    def _facts(self) -> dict[str, Any] | None:
        path = self.folder / FACTS
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DatasetError(f"{path} does not list the tasks ({error}).") from None

    def _refuse_missing(self) -> None:
        """Name the first file that a list of files, or the numbers in their names, ask for."""
        names = {path.name for path in self.paths}
        numbers = {int(m[1]) for name in names if (m := re.fullmatch(r"chunk_(\d+)\.pt", name))}
        asked = [f"chunk_{number}.pt" for number in range(max(numbers, default=-1))]
        facts = self._facts
        if isinstance(facts, dict) and isinstance(facts.get("files"), list):
            asked += map(str, facts["files"])
        if missing := [name for name in asked if name not in names]:
            raise DatasetError(f"{self.folder} lacks {missing[0]}, a file of this data set.")


def write_episodes(
    folder: str | Path, episodes: Sequence[TensorDictBase], tasks: Sequence[str]
) -> None:
    """Write episodes of any lengths: a file for each length, and the names of the tasks.

    Args:
        folder: where to; made when absent.
        episodes: each ``[T + 1]``, with the entries that :class:`EpisodeFiles` tells; ``task`` may
            be absent where there is one task.
        tasks: the name of each task, by index.

    Raises:
        FileExistsError: the folder holds a data set already.
    """
    folder = new_folder(folder)
    by_length: dict[int, list[TensorDictBase]] = {}
    for episode in episodes:
        by_length.setdefault(len(episode), []).append(episode)
    names = []
    for length, alike in sorted(by_length.items()):
        chunk = torch.stack([_with_task(episode) for episode in alike]).contiguous()
        names.append(f"episodes-{length - 1:06d}.pt")
        torch.save(chunk, folder / names[-1])
    write_facts(folder, tasks, names)


def new_folder(folder: str | Path) -> Path:
    """Make a folder for a data set.

    Raises:
        FileExistsError: it holds one already.
    """
    folder = Path(folder)
    if any(folder.glob("*.pt")):
        raise FileExistsError(f"{folder} holds a data set already; choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_facts(folder: Path, tasks: Sequence[str], files: Sequence[str]) -> None:
    """Say beside a data set which tasks and files it has."""
    facts = {"tasks": list(tasks), "files": list(files)}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def stored_episodes(replay: EpisodeReplay, observation: str = "observation") -> list[TensorDict]:
    """The finished episodes that a replay of vectors holds, as :func:`write_episodes` takes them.

    Of an episode that the ring has begun to overwrite, what is left is one that begins later.
    """
    rows = replay.written(replay.num_written - replay.num_transitions).cpu()
    ends = rows["next", "done"].flatten().nonzero().flatten() + 1
    columns = TensorDict(
        obs=rows[observation],
        action=rows["action"],
        reward=rows["next", "reward"].squeeze(-1),
        terminated=rows["next", "terminated"].squeeze(-1),
        batch_size=rows.batch_size,
    )
    lengths = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
    return [episode for episode in columns.split(lengths) if len(episode) > 1]


def _with_task(episode: TensorDictBase) -> TensorDictBase:
    if "task" in episode.keys():  # noqa: SIM118
        return episode
    return episode.copy().set("task", torch.zeros(len(episode), dtype=torch.int64))


def _steps(rows: TensorDictBase) -> TensorDict:
    """Steps ``[T]`` from rows ``[T + 1]``."""
    reward = rows["reward"][1:].float().unsqueeze(-1)
    terminated = rows.get("terminated", None)
    if terminated is None:
        terminated = torch.zeros(len(rows), dtype=torch.bool)
    terminated = terminated[1:].bool().unsqueeze(-1)
    done = torch.zeros_like(terminated)
    done[-1] = True
    following = {
        "observation": rows["obs"][1:].float(),
        "reward": reward,
        "terminated": terminated,
        "truncated": done & ~terminated,
        "done": done,
    }
    return TensorDict(
        observation=rows["obs"][:-1].float(),
        action=rows["action"][1:].float(),
        task=rows["task"][1:].long(),
        next=TensorDict(following, batch_size=len(reward)),
        batch_size=len(reward),
    )


def _read(path: Path) -> TensorDictBase:
    """A file's TensorDict, whose numbers stay on disk until they are looked at."""
    try:
        with torch.serialization.safe_globals([TensorDict, _make_td]):
            data = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever strange bytes lead torch into
        first_line = str(error).partition("\n")[0]
        raise DatasetError(f"{path} cannot be read as a data set ({first_line}).") from None
    if not isinstance(data, TensorDictBase) or data.ndim != 2 or data.shape[1] < 2:
        raise DatasetError(f"{path} is no TensorDict [episodes, T + 1] with T of at least 1.")
    entries: dict[str, Any] = {key: data.get(key, None) for key in ("obs", "action", "reward")}
    for key, value in {**entries, "task": data.get("task", None)}.items():
        if not isinstance(value, Tensor):
            raise DatasetError(f"{path} has no entry {key!r}.")
    for key, num_dims in (("obs", 3), ("action", 3), ("reward", 2)):
        if entries[key].ndim != num_dims or not entries[key].is_floating_point():
            dtype = str(entries[key].dtype).removeprefix("torch.")
            raise DatasetError(
                f"{path} has {key!r} of shape {list(entries[key].shape)} and type {dtype}; it must "
                f"have {num_dims} dimensions and floating-point numbers."
            )
    return data


def _check_values(path: Path, first: int, rows: TensorDictBase) -> None:
    """Refuse episodes ``[E, T + 1]`` to learn nothing from; row 0 has no action and no reward.

    Args:
        path: of the file, for the message.
        first: number of the first of the episodes in it.
        rows: the episodes.
    """
    action = rows["action"][:, 1:]
    for key, value in (("obs", rows["obs"]), ("action", action), ("reward", rows["reward"][:, 1:])):
        refuse(path, first, ~value.isfinite(), f"NaN or infinity in {key!r}")
    largest = float(action.abs().max())
    refuse(path, first, action.abs() > 1, f"an action of {largest:.4g}, beyond [-1, 1],")
    task = rows["task"]
    refuse(path, first, task != task[:, :1], "several tasks")
    terminated = rows.get("terminated", None)
    if terminated is not None:
        refuse(path, first, terminated[:, 1:-1], "an early termination")


def refuse(path: Path, first: int, bad: Tensor, what: str) -> None:
    """Name the first episode that has something bad.

    Args:
        path: of the file.
        first: number of the first of the episodes in it.
        bad: whether each number is, ``[E, ...]``.
        what: is bad.

    Raises:
        DatasetError: something is.
    """
    if bad.any():
        number = first + int(bad.reshape(len(bad), -1).any(1).nonzero()[0])
        raise DatasetError(f"{path} has {what} in episode {number}.")
