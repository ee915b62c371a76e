"""The plot of a run."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrl_tdmpc.durable import naming_file
from torchrl_tdmpc.recording.report import OFFICIAL, read_references
from torchrl_tdmpc.recording.style import add_legend, draw_level, dress, make_panels

__all__ = ["ReturnsPlot", "plot_returns"]


class ReturnsPlot:
    """Callback that draws ``returns.png`` at each evaluation and at the end.

    It needs matplotlib, which the extra ``cli`` brings, and the files that
    :class:`~torchrl_tdmpc.recording.CsvFiles` writes: give it to a trainer after them.

    Args:
        output_dir: The run's folder.
        title: What is trained.
        task: Its name, by which the official implementation's return is found.
    """

    def __init__(self, output_dir: str | Path, *, title: str = "", task: str = ""):
        self.output_dir = Path(output_dir)
        self.title = title
        self.task = task

    def on_evaluation(self, trainer: Any, row: Mapping[str, Any]) -> None:
        """Draw what there is so far."""
        plot_returns(self.output_dir, title=self.title, task=self.task)

    def on_end(self, trainer: Any) -> None:
        """Draw the whole run."""
        plot_returns(self.output_dir, title=self.title, task=self.task)


def plot_returns(
    output_dir: str | Path,
    *others: str | Path,
    title: str = "",
    task: str = "",
    path: str | Path | None = None,
) -> Path:
    """Draw the returns of one or several runs over environment steps.

    Points are training episodes, which explore; lines are evaluation means with a band of one
    standard deviation over the episodes of an evaluation. Horizontal lines to compare with are the
    mean return of the episodes before the first update, which are random unless a run has no random
    warm-up, and the official implementation's return where it is known.

    Args:
        output_dir: A directory with ``train.csv`` and ``eval.csv``, either without rows or with.
        others: More of them (other seeds, say), named in the legend and one colour each.
        title: What was trained, such as ``"walker-stand, 1M parameters, seed 1"``.
        task: Its name, such as ``"walker-stand"``, by which the official return is found.
        path: Where the plot goes; ``returns.png`` in ``output_dir`` when not given.

    Returns:
        The path of the plot.

    Raises:
        FileNotFoundError: If a directory lacks one of the files.
    """
    output_dirs = [Path(output_dir), *map(Path, others)]
    figure, (axes,) = make_panels(1)
    for index, directory in enumerate(output_dirs):
        prefix = f"{directory.resolve().name}: " if others else ""
        _draw_run(axes, directory, color=f"C{index}", prefix=prefix)
    if untrained := [value for folder in output_dirs for value in _untrained_returns(folder)]:
        label = f"before the first update (mean of {len(untrained)} episodes)"
        draw_level(axes, sum(untrained) / len(untrained), label)
    references = read_references(OFFICIAL).get(task, [])
    for reference in references:
        label = f"{reference['name']}, after {reference['step']:,.0f} environment steps"
        draw_level(axes, reference["mean"], label, dotted=True)
    words = {"title": title, "xlabel": "environment steps", "ylabel": "episode return"}
    dress(axes, **words, to_1000=bool(references))
    add_legend(figure, [axes])
    path = output_dirs[0] / "returns.png" if path is None else Path(path)
    with naming_file(path):
        figure.savefig(path, dpi=120)
    return path


def _draw_run(axes: Any, directory: Path, *, color: str, prefix: str) -> None:
    """Draw one run's training episodes and evaluations, each if there are any."""
    steps, returns = _read_columns(directory / "train.csv", "step", "return")
    if steps:
        label = f"{prefix}training episodes (exploring)"
        axes.plot(steps, returns, ".", color=color, alpha=0.35, markersize=5, label=label)
    steps, means, stds = _read_columns(directory / "eval.csv", "step", "reward", "reward_std")
    if steps:
        low = [mean - std for mean, std in zip(means, stds, strict=True)]
        high = [mean + std for mean, std in zip(means, stds, strict=True)]
        axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        label = f"{prefix}evaluation (mean ± std)"
        axes.plot(steps, means, "o-", color=color, linewidth=2, markersize=4, label=label)


def _untrained_returns(directory: Path) -> list[float]:
    """Returns of the episodes before the first update: their rows have no loss."""
    columns = "return", "loss_consistency"
    with (directory / "train.csv").open(newline="", encoding="utf-8") as file:
        rows = [[row.get(column) for column in columns] for row in csv.DictReader(file)]
    return [float(value) for value, loss in rows if loss == ""]


def _read_columns(path: Path, *columns: str) -> list[list[float]]:
    """Read some columns of a CSV file as numbers."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [[float(row[column]) for row in rows] for column in columns]
