"""A program that hangs, told from one that a busy machine makes slow."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

QUIET = 60.0  # seconds in which a program that is not ready to run does less than a second of work
BUSY = 300.0  # seconds of processor time; a run here takes less than half of it
TICKS = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """A living process."""

    state: str  #: the system's letter: R is ready to run, D waits for a disk, S sleeps
    seconds: float  #: processor time used so far


def members(*sessions: int) -> dict[int, Process]:
    """The living processes of some sessions, by their ids."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) in sessions and fields[0] != "Z":
            seconds = (int(fields[11]) + int(fields[12])) / TICKS
            found[int(path.parent.name)] = Process(fields[0], seconds)
    return found


class Watch:
    """Looks at a program's processes, whose pace a busy machine decides.

    It hangs if for ``QUIET`` seconds its processes do next to nothing and seldom want to, or if
    they use ``BUSY`` seconds of processor time. Wall-clock time alone says nothing.

    Args:
        sessions: of the program; each has the id of the process that it began with.
    """

    def __init__(self, *sessions: int):
        self.sessions = sessions
        self._used = 0.0
        self._before = members(*sessions)
        self._mark(self._before)

    def hangs(self) -> bool:
        """Look once; to be called again and again."""
        now = members(*self.sessions)
        self._used += sum(
            process.seconds - self._before[pid].seconds if pid in self._before else process.seconds
            for pid, process in now.items()
        )
        self._before = now
        self._looks += 1
        self._ready += any(process.state in "RD" for process in now.values())
        if now.keys() != self._pids or self._used - self._used_then >= 1.0:
            self._mark(now)
        is_quiet = time.monotonic() - self._since > QUIET and self._ready < 0.1 * self._looks
        return bool(now) and (is_quiet or self._used > BUSY)

    def _mark(self, now: dict[int, Process]) -> None:
        """Something went on: begin to wait anew."""
        self._pids, self._used_then, self._since = now.keys(), self._used, time.monotonic()
        self._looks = self._ready = 0


def wait_until(holds: Callable[[], bool], *sessions: int) -> bool:
    """Wait for something that a program does. Returns False if the program hangs before."""
    watch = Watch(*sessions)
    while not holds():
        if watch.hangs():
            return False
        time.sleep(0.05)
    return True


def ended(process: subprocess.Popen, log: Path) -> str | None:
    """Wait for the end of a program and of all its processes; what hangs is ended.

    Args:
        process: leads a session, and was started with PYTHONFAULTHANDLER=1.
        log: gets its errors.

    Returns:
        None if it ended; else what each process that was left was doing.
    """
    session = process.pid
    if wait_until(lambda: process.poll() is not None and not members(session), session):
        return None
    begin = log.stat().st_size
    left = members(session)
    for pid in left:
        os.kill(pid, signal.SIGABRT)  # its stack goes to the log
        time.sleep(0.5)  # one after the other
    for pid in members(session):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    stacks = log.read_bytes()[begin:].decode(errors="replace").strip()
    states = ", ".join(f"{pid} {process.state}" for pid, process in left.items())
    return f"processes {states}\n{stacks}"
