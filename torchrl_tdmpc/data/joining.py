"""One data set of several tasks from one for each, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase

from torchrl_tdmpc.data.dataset import DatasetError, EpisodeFiles, new_folder, write_facts

__all__ = ["join_datasets", "split_dataset"]


def join_datasets(
    sources: Sequence[str | Path], folder: str | Path, *, steps: int | None = None
) -> list[str]:
    """Write the episodes of several data sets as one, padded to the widest.

    Episodes of a task that several of them have become one task's. Files are copied one after the
    other, so that the whole need not fit into memory.

    Args:
        sources: folders of data sets that name their tasks.
        folder: where to; made when absent.
        steps: takes episodes of so many steps alone; None takes all.

    Returns:
        The tasks' names, by index: in the order in which they come.

    Raises:
        DatasetError: a file does not fit, or a data set does not name its tasks.
        FileExistsError: the folder holds a data set already.
        FileNotFoundError: a folder has none.
    """
    every = [EpisodeFiles(source) for source in sources]
    names = [named_tasks(files) for files in every]
    tasks = list(dict.fromkeys(name for of_one in names for name in of_one))
    first = [next(files.chunks())[1] for files in every]
    widths = {key: max(chunk[key].shape[-1] for chunk in first) for key in ("obs", "action")}
    index = [torch.tensor([tasks.index(name) for name in of_one]) for of_one in names]
    written = _Writer(folder)
    for files, ours in zip(every, index):
        for rows in _blocks(files, steps):
            if int(rows["task"].max()) >= len(ours) or int(rows["task"].min()) < 0:
                raise DatasetError(f"{files.folder} has task indices beyond its {len(ours)} tasks.")
            padded = {
                key: F.pad(rows[key], (0, w - rows[key].shape[-1])) for key, w in widths.items()
            }
            padded["task"] = ours[rows["task"].long()]
            written.add(rows.copy().update(padded))
    written.finish(tasks)
    return tasks


def split_dataset(
    source: str | Path,
    folder: str | Path,
    dims: dict[str, tuple[int, int]],
    tasks: Sequence[str] | None = None,
) -> list[str]:
    """Write the episodes of each task of a data set into a folder of their own, without padding.

    Args:
        source: the data set.
        folder: where the tasks' folders go.
        dims: how many numbers each task observes and acts with, by its name; a task that is absent
            keeps its padding.
        tasks: names by index, for a data set that does not tell them.

    Returns:
        The names of the tasks that were written.

    Raises:
        DatasetError: a file does not fit, or there are no names.
        FileExistsError: the folder of a task holds a data set already.
    """
    files = EpisodeFiles(source)
    names = named_tasks(files) if tasks is None else list(tasks)
    writers: dict[str, _Writer] = {}
    for rows in _blocks(files):
        for number in rows["task"][:, 0].unique().tolist():
            if not 0 <= number < len(names):
                raise DatasetError(
                    f"{files.folder} has task {number}; there are names of {len(names)}."
                )
            name = names[number]
            mine = rows[rows["task"][:, 0] == number]
            width = dims.get(name, (mine["obs"].shape[-1], mine["action"].shape[-1]))
            cut = {key: mine[key][..., :w] for key, w in zip(("obs", "action"), width)}
            cut["task"] = torch.zeros_like(mine["task"])
            if name not in writers:
                writers[name] = _Writer(Path(folder, name))
            writers[name].add(mine.copy().update(cut))
    for name, writer in writers.items():
        writer.finish([name])
    return list(writers)


def named_tasks(files: EpisodeFiles) -> list[str]:
    """The names of the tasks of a data set.

    Raises:
        DatasetError: it does not tell them.
    """
    if files.tasks is None:
        raise DatasetError(f"{files.folder} does not tell the names of its tasks (dataset.json).")
    return files.tasks


def _blocks(files: EpisodeFiles, steps: int | None = None) -> Iterator[TensorDictBase]:
    """Checked episodes ``[E, T + 1]``; all of them, or those of so many steps."""
    for _, rows in files.blocks():
        if steps is None or rows.shape[1] - 1 == steps:
            yield rows


class _Writer:
    """Writes blocks of episodes as the numbered files of a data set."""

    def __init__(self, folder: str | Path):
        self.folder = new_folder(folder)
        self.names: list[str] = []

    def add(self, rows: TensorDictBase) -> None:
        self.names.append(f"chunk_{len(self.names)}.pt")
        plain = TensorDict({key: value.contiguous() for key, value in rows.items()}, rows.shape)
        torch.save(plain.clone(), self.folder / self.names[-1])

    def finish(self, tasks: Sequence[str]) -> None:
        if not self.names:
            raise DatasetError(f"no episode is left for {self.folder}.")
        write_facts(self.folder, tasks, self.names)
