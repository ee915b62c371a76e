"""Try bad settings, files, environments, signals and kills; print what came of them.

``python -m benchmarks.fuzz --minutes 15 --seed 0`` prints a table and what should not have been,
and exits with 1 if there is any.
"""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from benchmarks.fuzz import environments, files, processes, values
from benchmarks.fuzz.outcome import Trial, table

# What is tried, how often, and its share of the time
Try = Callable[[Trial, Path], None]
TRIALS: list[tuple[str, Try, int, float]] = [
    ("nonsense for a setting", lambda trial, folder: values.try_nonsense(trial), 1200, 0.3),
    ("numbers of any size", lambda trial, folder: values.try_numbers(trial), 500, 0.15),
    ("damaged checkpoints", files.try_damaged_checkpoints, 250, 0.025),
    ("made-up checkpoints", files.try_made_up_checkpoints, 150, 0.1),
    ("damaged official files", files.try_damaged_official_files, 250, 0.025),
    ("made-up official files", files.try_made_up_official_files, 150, 0.025),
    ("environments that misbehave", environments.try_faults, 60, 0.1),
    ("signals and kills", processes.try_signals, 12, 0.2),
    ("two writers", processes.try_two_writers, 5, 0.075),
]
EVALUATIONS = 100


def main() -> None:
    """Try everything, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0, help="about how long at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on how often")
    parser.add_argument("--only", default="", help="a part of the names of what is tried")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("torchrl").setLevel(logging.ERROR)
    values.pretend_small_machine()
    begin, trials, used = time.monotonic(), [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        chosen = [one for one in TRIALS if arguments.only in one[0]]
        whole = sum(share for *_, share in chosen) + 0.05
        for name, function, number, share in chosen:
            used += share / whole
            trials.append(
                Trial(
                    name,
                    max(1, round(number * arguments.scale)),
                    random.Random(f"{arguments.seed} {name}"),
                    begin + 60 * arguments.minutes * used,
                )
            )
            function(trials[-1], Path(folder))
            print(name, dict(trials[-1].counts), f"{time.monotonic() - begin:.0f} s", flush=True)
    leak = environments.evaluate_again_and_again(EVALUATIONS, begin + 60 * arguments.minutes)
    print(f"\n{table(trials)}\n\n{leak}")
    found = [line for trial in trials for line in trial.found]
    print("\n".join(found) or "Nothing that should not be.")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
