"""Measure everything, round after round, and write a table, a plot and the numbers.

``make bench`` is this command; ``make bench ARGS="--rounds 1 --sizes 5"`` a part of it. Every
measurement is a process of its own, so that compilation, caches and memory are its own, and those
of the peer and of this package alternate, so that a machine that gets slower or faster meets both.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from benchmarks.speed.report import write
from torchrl_tdmpc.recording.provenance import machine

ROOT = Path(__file__).parents[2]
PYTHONS = {"ours": sys.executable, "peer": str(ROOT / ".venv-nightly/bin/python")}
SIZES = [1, 5, 19, 48, 317]
SETTINGS = [f"{c}-{p}" for c in ("off", "default", "max") for p in ("float32", "bfloat16")]
ENVS, TRANSITIONS, LOOP_SIZE = [1, 4, 16], [10_000, 1_000_000], 1
MEMORY_PROCESSES = 5  # what the allocator makes of the same calls differs by tens of MiB


class Job(NamedTuple):
    """One process: what it measures, and in which variant."""

    what: str
    who: str = "ours"
    size: int | None = None
    setting: str = "off-float32"
    options: tuple = ()

    def command(self) -> list[str]:
        """How the process is started."""
        size = [] if self.size is None else ["--size", self.size]
        words = [self.what, "--who", self.who, *size, "--setting", self.setting, *self.options]
        return [PYTHONS[self.who], "-m", "benchmarks.speed.worker", *map(str, words)]


def one_round(sizes: list[int], settings: list[str], repeats: int) -> Iterator[Job]:
    """The processes of a round, in their order."""
    calls = ("--repeats", repeats)
    for size in sizes:
        yield Job("compute", "peer", size, options=("--envs", *ENVS, *calls))
        for setting in settings:
            yield Job("compute", "ours", size, setting, ("--envs", *ENVS, *calls))
        for setting in settings:
            yield Job("heads", "ours", size, setting, ("--repeats", 3 * repeats))
        for who in MEMORY_PROCESSES * ("peer", "ours"):
            yield Job("memory", who, size, options=("--envs", 1))
        for num_envs in ENVS[1:]:
            yield Job("memory", "ours", size, options=("--envs", num_envs))
    for transitions in TRANSITIONS:
        episodes = max(1, repeats // 5)
        yield Job("replay", options=("--transitions", transitions, "--repeats", episodes))
    if LOOP_SIZE in sizes:
        for setting in settings:
            yield Job("loop", size=LOOP_SIZE, setting=setting, options=("--repeats", 20 * repeats))


def measure(job: Job) -> dict:
    """What its process printed last; the run ends if it failed."""
    process = subprocess.run(job.command(), cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"error: {' '.join(job.command())} failed:\n{process.stderr[-3000:]}")
    return json.loads(process.stdout.splitlines()[-1])


def about() -> dict[str, str]:
    """What the numbers depend on."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    return {
        **{name: str(value) for name, value in machine().items() if value is not None},
        "python": platform.python_version(),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments, or an end in one sentence."""
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 5], help=f"of {SIZES}")
    parser.add_argument(
        "--settings",
        nargs="+",
        default=SETTINGS[:4],
        help=f"compilation and precision, of {', '.join(SETTINGS)}",
    )
    parser.add_argument("--repeats", type=int, default=10, help="of each call in a process")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results")
    parsed = parser.parse_args(arguments)
    for name in ("rounds", "repeats"):
        if getattr(parsed, name) < 1:
            parser.error(f"--{name} is {getattr(parsed, name)}; it must be at least 1.")
    for name, choices in (("sizes", SIZES), ("settings", SETTINGS)):
        for value in getattr(parsed, name):
            if value not in choices:
                words = ", ".join(map(str, choices))
                parser.error(f"--{name} has {value}; the choices are {words}.")
    return parsed


def main() -> None:
    """Measure, and write after each round."""
    arguments = parse()
    if not Path(PYTHONS["peer"]).exists():
        raise SystemExit("error: the peer has no .venv-nightly; make bench installs it.")
    jobs = list(one_round(arguments.sizes, arguments.settings, arguments.repeats))
    results = {"machine": about(), "rounds": 0, "repeats": arguments.repeats, "records": []}
    with tqdm(total=arguments.rounds * len(jobs), unit=" processes") as progress:
        for number in range(arguments.rounds):
            for job in jobs:
                progress.set_description(f"{job.what} {job.who} {job.size or ''} {job.setting}")
                output = measure(job)
                results["machine"] |= output["machine"]
                record = {"round": number, **job._asdict(), "values": output["values"]}
                results["records"].append(record)
                progress.update()
            results["rounds"] = number + 1
            path = write(results, arguments.output)
    print(f"{path}, with speed.png and speed.json beside it")


if __name__ == "__main__":
    main()
