"""The rows of a run in two CSV files."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_tdmpc.durable import naming_file
from torchrl_tdmpc.recording.rows import EVAL_COLUMNS

__all__ = ["CsvFiles", "refuse_other_run", "truncate_to"]

# How a line begins in the files of a run that are written anew
FIRST_LINES = {
    "train.csv": b"step,",
    "eval.csv": (b"step,reward,", b"step,task,"),
    "config.yaml": b"versions:",
}


class CsvFiles:
    r"""Callback that writes ``train.csv`` and ``eval.csv``.

    Rows reach the disk as they are written, in full precision; a cell without a value is empty.

    Args:
        output_dir: Where the files go; made when absent.
        train_columns: The columns of ``train.csv``; see :class:`RunRecord`.
        eval_columns: The columns of ``eval.csv``.
        resume: Go on with the files in ``output_dir``; :meth:`load_state_dict` says from where.

    Raises:
        FileExistsError: If ``output_dir`` already holds a run, and it is not resumed.
        ValueError: If the files to go on with are missing or have other columns.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = CsvFiles(folder, ["step", "return"])
        ...     files.on_episode(None, {"step": 1000, "return": 12.5})
        ...     files.on_end(None)
        ...     Path(folder, "train.csv").read_text()
        'step,return\n1000,12.5\n'
    """

    def __init__(
        self,
        output_dir: str | Path,
        train_columns: Sequence[str],
        eval_columns: Sequence[str] = EVAL_COLUMNS,
        *,
        resume: bool = False,
    ):
        output_dir = Path(output_dir)
        if not resume:
            refuse_other_run(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        self._train = _CsvFile(output_dir / "train.csv", train_columns, resume)
        self._eval = _CsvFile(output_dir / "eval.csv", eval_columns, resume)

    def on_episode(self, trainer: Any, row: Mapping[str, Any]) -> None:
        """Write a row of ``train.csv``."""
        self._train.write(row)

    on_updates = on_episode

    def on_evaluation(self, trainer: Any, row: Mapping[str, Any]) -> None:
        """Write a row of ``eval.csv``."""
        self._eval.write(row)

    def on_end(self, trainer: Any) -> None:
        """Close the files."""
        self._train.close()
        self._eval.close()

    def state_dict(self) -> dict[str, int]:
        """How far the files reach, which are on disk then."""
        return {file.path.name: file.sync() for file in (self._train, self._eval)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Cut off the rows that were written after :meth:`state_dict`.

        Raises:
            ValueError: If a file is shorter than it was then.
        """
        for file in (self._train, self._eval):
            truncate_to(file.path, state[file.path.name])


class _CsvFile:
    """A CSV file with fixed columns, flushed at each row."""

    def __init__(self, path: Path, columns: Sequence[str], resume: bool):
        self.path = path
        header = ",".join(columns) + "\n"
        if resume and not path.exists():
            raise ValueError(f"{path} is missing; a run is resumed in the folder that it wrote to.")
        if not resume:
            with naming_file(path):
                path.write_text(header, encoding="utf-8", newline="\n")
        self.file = path.open("a+", newline="", encoding="utf-8")  # writes at its end, wherever
        self.file.seek(0)
        if self.file.readline() != header:
            self.file.close()
            raise ValueError(f"{path} has other columns than this version writes.")
        self._writer = csv.DictWriter(self.file, columns, lineterminator="\n")

    def sync(self) -> int:
        """Make the rows outlive the machine, and return the file's size in bytes."""
        with naming_file(self.path):
            os.fsync(self.file.fileno())
            return self.path.stat().st_size

    def write(self, row: Mapping[str, Any]) -> None:
        with naming_file(self.path):
            self._writer.writerow(row)
            self.file.flush()

    def close(self) -> None:
        with naming_file(self.path):
            self.file.close()


def refuse_other_run(output_dir: Path) -> None:
    """Keep a new run out of a folder that holds one.

    Raises:
        FileExistsError: If there are checkpoints, rows in ``train.csv``, or files of the names that
            a run writes which are no run's.
    """
    where = f"output_dir {str(output_dir)!r}"
    if any(output_dir.glob("checkpoints/checkpoint-*")):
        raise FileExistsError(
            f"{where} already holds a run: "
            "choose another directory, move that run away, or continue it with resume=auto"
        )
    train = output_dir / "train.csv"
    if train.exists() and train.read_bytes().count(b"\n") > 1:
        raise FileExistsError(
            f"{where} holds the train.csv of a run without a checkpoint, which cannot be resumed: "
            "choose another directory, or move that file away"
        )
    for name, beginning in FIRST_LINES.items():
        path = output_dir / name
        content = path.read_bytes() if path.exists() else b""
        if content and not any(line.startswith(beginning) for line in content.splitlines()):
            raise FileExistsError(
                f"{where} holds a {name} that no run wrote, and would be written over: "
                "choose another directory, or move that file away"
            )


def truncate_to(path: Path, size: int) -> None:
    """Cut off what was written to a file after a checkpoint.

    Args:
        path: The file; absent counts as empty.
        size: Its size in bytes at the checkpoint.

    Raises:
        ValueError: If the file is shorter than it was then.
    """
    present = path.stat().st_size if path.exists() else 0
    if present < size:
        raise ValueError(f"{path} has {present} bytes; it had {size} at the checkpoint.")
    if present > size:
        os.truncate(path, size)
