"""Runs in processes of their own: killed, interrupted, and two in one folder."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.fuzz.outcome import ACCEPTED, HANG, REFUSED, TRACEBACK, WRONG, Trial
from benchmarks.fuzz.values import TINY

SETTINGS = {**TINY, "train.steps": 2000, "eval.interval": 500, "eval.episodes": 1}
PROCESSES = {"env.num_envs": 2, "env.workers": "process"}
SECONDS_TO_END = 240.0  # where many programs share few cores, a start alone takes a minute


def start(folder: Path, log: Path, **more: object) -> subprocess.Popen:
    """Begin a run, or go on with it, in a process group of its own."""
    settings = {**SETTINGS, "output_dir": folder, "resume": "auto", "checkpoint.interval": 40}
    words = [f"{key}={value}" for key, value in {**settings, **more}.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "torchrl_tdmpc.cli.train", *words],
        stdout=log.open("a"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def rows(folder: Path) -> int:
    """How many training episodes are recorded."""
    path = folder / "train.csv"
    return path.read_text().count("\n") if path.exists() else 0


def after_a_while(
    process: subprocess.Popen, folder: Path, generator: random.Random, once_it_learns: bool
) -> None:
    """Return at a random moment of a run: while it starts, or once it learns."""
    before, end = rows(folder), time.monotonic() + SECONDS_TO_END
    if once_it_learns or generator.random() < 0.5:
        while rows(folder) <= before and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
    time.sleep(generator.uniform(0, 4))


def members(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of_session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of_session) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def ended(process: subprocess.Popen) -> bool:
    """Whether a run and all its processes end in time; what is left is killed."""
    end = time.monotonic() + SECONDS_TO_END
    while (process.poll() is None or members(process.pid)) and time.monotonic() < end:
        time.sleep(0.05)
    left = members(process.pid)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    return not left


def try_signals(trial: Trial, folder: Path) -> None:
    """Kills and interrupts at random moments: no orphan, no traceback, and the run goes on."""
    run, log = folder / "signalled", folder / "signals.log"
    while trial.goes_on:
        how = trial.generator.choice(("kill", "kill", "SIGINT", "SIGTERM", "SIGINT twice"))
        log.write_text("")
        process = start(run, log, **PROCESSES)
        # While Python imports, its own handler of interrupts holds, which some packages swallow
        after_a_while(process, run, trial.generator, once_it_learns=how != "kill")
        if how == "kill":
            process.kill()
        else:
            number = signal.SIGTERM if how == "SIGTERM" else signal.SIGINT
            for _ in range(2 if "twice" in how else 1):
                if process.poll() is None:
                    os.killpg(process.pid, number)
                    time.sleep(0.2)
        if not ended(process):
            trial.add(how, HANG)
        elif how != "kill" and "Traceback" in log.read_text() and was_going_on(run, log):
            trial.add(how, TRACEBACK, log.read_text()[-200:])
        else:
            trial.add(how, ACCEPTED)


def was_going_on(run: Path, log: Path) -> bool:
    """Whether a run was between its first and last words; else Python's own handlers hold."""
    words = log.read_text()
    return " parameters\n" in words and f"In {run}:" not in words


def try_two_writers(trial: Trial, folder: Path) -> None:
    """Two runs in one folder, started in any order: one writes, and the other names it."""
    while trial.goes_on:
        run = folder / f"two-{sum(trial.counts.values())}"
        logs = [folder / f"{run.name}-{name}.log" for name in "ab"]
        processes = []
        for log in logs:
            processes.append(start(run, log, **{"train.steps": 10**6}))
            time.sleep(trial.generator.choice((0, 0.1, 4)))
        end = time.monotonic() + SECONDS_TO_END
        while all(p.poll() is None for p in processes) and time.monotonic() < end:
            time.sleep(0.05)
        loser = 0 if processes[0].poll() is not None else 1
        winner = processes[1 - loser]
        said = re.search(r"in use by process (\d+) on host \S+;", logs[loser].read_text())
        names_winner = said is not None and int(said[1]) == winner.pid
        is_alone = winner.poll() is None and processes[loser].poll() == 1
        winner.kill()
        have_ended = [ended(process) for process in processes]
        if not all(have_ended):
            trial.add("two writers", HANG)
        elif is_alone and names_winner:
            trial.add("two writers", REFUSED)
        else:
            trial.add("two writers", WRONG, logs[loser].read_text()[-200:])
