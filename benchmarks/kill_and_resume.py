"""Kill a small run at random moments, resume it each time, and check what is left.

``python benchmarks/kill_and_resume.py --kills 10`` prints a table and exits with 1 if anything was
lost. Each death is ``kill -9`` of the process, wherever it is: starting, learning, saving.
"""

from __future__ import annotations

import argparse
import csv
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples/tdmpc2_multigamma.py"
INTERVAL, STEPS, LENGTH, SEED_STEPS, EVALUATION = 40, 600, 20, 40, 200
SETTINGS = [
    "device=cpu",
    "env.task=cartpole-swingup",
    f"env.episode_length={LENGTH}",
    f"train.seed_steps={SEED_STEPS}",
    f"train.steps={STEPS}",
    "train.batch_size=16",
    "model.enc_dim=16",
    "model.mlp_dim=16",
    "model.latent_dim=16",
    "planner.num_samples=16",
    "planner.num_elites=4",
    "planner.num_pi_trajs=2",
    "planner.iterations=2",
    "replay.capacity=500",
    f"eval.interval={EVALUATION}",
    "eval.episodes=1",
    f"checkpoint.interval={INTERVAL}",
]


def start(output_dir: Path) -> subprocess.Popen:
    """Begin the run, or go on with it."""
    command = [sys.executable, str(EXAMPLE), *SETTINGS, f"output_dir={output_dir}", "resume=auto"]
    log = (output_dir.parent / "output.txt").open("a")
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def rows(path: Path) -> list[dict[str, str]]:
    """What a CSV file holds; a row that death cut short does not count."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return list(csv.DictReader(line for line in lines if line.endswith("\n")))


def newest(output_dir: Path) -> int:
    """Agent steps at the newest checkpoint; -1 if there is none."""
    names = [path.stem for path in (output_dir / "checkpoints").glob("checkpoint-*.torchrl")]
    return max((int(name.partition("-")[2]) for name in names), default=-1)


def kill_at_random(output_dir: Path, generator: random.Random) -> tuple[float, int, int]:
    """Kill a run while it starts, or within seconds of its first new row.

    Returns the seconds it lived, the agent steps made, as far as rows tell, and those saved.
    """
    begin = time.monotonic()
    before = len(rows(output_dir / "train.csv"))
    process = start(output_dir)
    if generator.random() < 0.7:
        while len(rows(output_dir / "train.csv")) <= before and process.poll() is None:
            time.sleep(0.05)
    time.sleep(generator.uniform(0, 6))
    process.kill()
    process.wait()
    made = [int(row["agent_steps"]) for row in rows(output_dir / "train.csv")]
    return time.monotonic() - begin, max(made, default=0), newest(output_dir)


def failures(output_dir: Path, whole: Path) -> list[str]:
    """What is wrong with a finished run."""
    found = []
    times = ("ms_per_step", "peak_memory_mib", "seconds")
    for name in ("train.csv", "eval.csv"):
        ours, theirs = (
            [{k: v for k, v in row.items() if k not in times} for row in rows(folder / name)]
            for folder in (output_dir, whole)
        )
        if ours != theirs:
            found.append(f"{name} differs from that of a run that was not stopped")
    episodes = [int(row["episode"]) for row in rows(output_dir / "train.csv")]
    if episodes != [*range(1, STEPS // LENGTH + 1)]:
        found.append(f"train.csv has the episodes {episodes}")
    evaluated = [int(row["agent_steps"]) for row in rows(output_dir / "eval.csv")]
    if evaluated != [*range(EVALUATION, STEPS + 1, EVALUATION)]:
        found.append(f"eval.csv has the agent steps {evaluated}")
    return found


def main() -> None:
    """Kill, resume, and compare with a run that lived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        output_dir, whole = Path(folder, "killed"), Path(folder, "whole")
        found = []
        print(
            f"{'life':>4} {'seconds':>8} {'agent_steps':>10} {'saved':>6} {'lost':>5}", flush=True
        )
        for life in range(1, arguments.kills + 1):
            seconds, made, saved = kill_at_random(output_dir, generator)
            lost = max(0, made - max(saved, 0))
            print(f"{life:>4} {seconds:>8.1f} {made:>10} {saved:>6} {lost:>5}", flush=True)
            if lost > INTERVAL:
                found.append(f"life {life} lost {lost} agent steps")
        codes = [start(path).wait() for path in (output_dir, whole)]
        if any(codes):
            found.append(f"exit codes {codes}: {Path(folder, 'output.txt').read_text()[-2000:]}")
        found += failures(output_dir, whole)
        print(f"ended with {newest(output_dir)} of {STEPS} agent steps")
    print("\n".join(found) or "Nothing was lost, doubled or changed.")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
