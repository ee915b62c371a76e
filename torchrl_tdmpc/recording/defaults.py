"""What every run records."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchrl.record.loggers import Logger

from torchrl_tdmpc.recording.csv_files import CsvFiles
from torchrl_tdmpc.recording.loggers import LoggerRows
from torchrl_tdmpc.recording.plots import ReturnsPlot
from torchrl_tdmpc.recording.progress import Progress
from torchrl_tdmpc.recording.rows import RunRecord

__all__ = ["default_callbacks"]


def default_callbacks(
    output_dir: Path | None,
    record: RunRecord,
    *,
    title: str,
    task: str,
    is_resumed: bool,
    logger: Logger | None,
) -> Iterator[Any]:
    """Progress; with a folder CSV files and their plot; with a logger its rows.

    Progress and plot need tqdm and matplotlib, which the extra ``cli`` brings.

    Args:
        output_dir: the run's folder, if it writes.
        record: makes the rows.
        title: of the plot.
        task: name of the task, by which the plot finds the official return.
        is_resumed: whether the files go on.
        logger: one of TorchRL's.
    """
    if importlib.util.find_spec("tqdm") is not None:
        yield Progress()
    if output_dir is not None:
        yield CsvFiles(output_dir, record.train_columns, record.eval_columns, resume=is_resumed)
        if importlib.util.find_spec("matplotlib") is not None:
            yield ReturnsPlot(output_dir, title=title, task=task)
    if logger is not None:
        yield LoggerRows(logger)
