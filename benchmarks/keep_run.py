"""Keep what a finished run wrote as a result: its CSV files and its configuration, no checkpoint.

::

    python -m benchmarks.keep_run outputs/finger-spin-seed1 results/finger-spin-seed1

``config.yaml`` keeps the settings, the machine, the versions and the commit. It loses the settings
that name folders of the machine (``output_dir``, ``resume``).
"""

from __future__ import annotations

import argparse
import csv
import shutil
from pathlib import Path

import yaml

FOLDERS = ("output_dir", "resume")  # settings that say where on a machine a run was


def keep(run: Path, result: Path) -> None:
    """Copy a run's record into a folder of results.

    Raises:
        ValueError: the run has not come to its end, or the result is there already.
    """
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    with (run / "eval.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = config["train"]["steps"]
    done = int(rows[-1]["agent_steps"]) if rows else 0
    if done < steps:
        raise ValueError(f"{run} was evaluated after {done} of {steps} agent steps; let it end.")
    if result.exists():
        raise ValueError(f"{result} is there already.")
    result.mkdir(parents=True)
    for name in ("eval.csv", "train.csv"):
        shutil.copyfile(run / name, result / name)
    kept = {key: value for key, value in config.items() if key not in FOLDERS}
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
    (result / "config.yaml").write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="benchmarks.keep_run", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="the output folder of a finished run")
    parser.add_argument("result", type=Path, help="the folder to make")
    given = parser.parse_args(arguments)
    try:
        keep(given.run, given.result)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
