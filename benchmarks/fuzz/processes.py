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
from benchmarks.fuzz.watch import ended, wait_until

SETTINGS = {**TINY, "train.steps": 2000, "eval.interval": 500, "eval.episodes": 1}
PROCESSES = {"env.num_envs": 2, "env.workers": "process"}


def start(folder: Path, log: Path, **more: object) -> subprocess.Popen:
    """Begin a run, or go on with it, in a process group of its own."""
    settings = {**SETTINGS, "output_dir": folder, "resume": "auto", "checkpoint.interval": 40}
    words = [f"{key}={value}" for key, value in {**settings, **more}.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "torchrl_tdmpc.cli.train", *words],
        stdout=log.open("a"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},  # see ended()
    )


def rows(folder: Path) -> int:
    """How many training episodes are recorded."""
    path = folder / "train.csv"
    return path.read_text().count("\n") if path.exists() else 0


def after_a_while(
    process: subprocess.Popen, folder: Path, generator: random.Random, once_it_learns: bool
) -> None:
    """Return at a random moment of a run: while it starts, or once it learns, or if it hangs."""
    before = rows(folder)
    if once_it_learns or generator.random() < 0.5:
        wait_until(lambda: rows(folder) > before or process.poll() is not None, process.pid)
    time.sleep(generator.uniform(0, 4))


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
        if (stacks := ended(process, log)) is not None:
            trial.add(how, HANG, more=stacks)
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
        sessions = [process.pid for process in processes]
        wait_until(lambda ps=processes: any(p.poll() is not None for p in ps), *sessions)
        loser = 0 if processes[0].poll() is not None else 1
        winner = processes[1 - loser]
        said = re.search(r"in use by process (\d+) on host \S+;", logs[loser].read_text())
        names_winner = said is not None and int(said[1]) == winner.pid
        is_alone = winner.poll() is None and processes[loser].poll() == 1
        winner.kill()
        stacks = [ended(process, log) for process, log in zip(processes, logs)]
        if any(stacks):
            trial.add("two writers", HANG, more="\n".join(filter(None, stacks)))
        elif is_alone and names_winner:
            trial.add("two writers", REFUSED)
        else:
            trial.add("two writers", WRONG, logs[loser].read_text()[-200:])
