"""Write the returns of the official implementation that plots and reports are compared with.

``python -m benchmarks.official.returns CHECKOUT`` reads the result files of a checkout (one CSV
file a task: ``step`` in environment steps, ``reward``, ``seed``) and writes
``torchrl_tdmpc/recording/official.csv``: for each task of DMControl the mean over seeds, and their
standard deviation, after 100,000 environment steps.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Iterator
from pathlib import Path

from dm_control import suite

from torchrl_tdmpc.envs.custom import TASKS
from torchrl_tdmpc.envs.dmcontrol import published_name
from torchrl_tdmpc.recording.report import OFFICIAL

STEP = 100_000
NAME = "official, 5M parameters"


def rows(checkout: Path) -> Iterator[tuple]:
    """A row for each task that has results."""
    known = {published_name(*task) for task in suite.ALL_TASKS} | set(TASKS)
    for path in sorted((checkout / "results" / "tdmpc2").glob("*.csv")):
        if path.stem not in known:
            continue
        with path.open(newline="", encoding="utf-8") as file:
            returns = [float(r["reward"]) for r in csv.DictReader(file) if int(r["step"]) == STEP]
        if returns:
            spread = f"{statistics.stdev(returns):.1f}" if len(returns) > 1 else ""
            yield path.stem, STEP, f"{statistics.fmean(returns):.1f}", spread, NAME


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(prog="benchmarks.official.returns", description=__doc__)
    parser.add_argument("checkout", type=Path, help="of the official implementation")
    found = list(rows(parser.parse_args(arguments).checkout))
    if not found:
        raise SystemExit("error: the checkout has no results/tdmpc2/TASK.csv of a DMControl task.")
    with OFFICIAL.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("task", "step", "mean", "std", "name"))
        writer.writerows(found)
    print(f"{OFFICIAL}: {len(found)} tasks")


if __name__ == "__main__":
    main()
