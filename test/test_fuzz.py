"""The fuzz script: how it judges, and a small share of what it tries."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.fuzz import environments, files, values, watch
from benchmarks.fuzz.outcome import ACCEPTED, REFUSED, TRACEBACK, WRONG, Trial, table
from torchrl_tdmpc.modules import memory

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
needs_proc = pytest.mark.skipif(not Path("/proc").exists(), reason="reads Linux's /proc")


def trial(number=1, seed=0):
    return Trial("a trial", number, random.Random(seed), time.monotonic() + 1000)


def raises(error):
    raise error


@pytest.mark.parametrize(
    ("function", "outcome"),
    [
        (lambda: True, ACCEPTED),
        (lambda: False, WRONG),
        (lambda: raises(ValueError("lr is -1; it must be positive.")), REFUSED),
        (lambda: raises(ValueError("lr is -1\nit must be positive")), TRACEBACK),
        (lambda: raises(KeyError("lr")), TRACEBACK),
        (lambda: raises(SystemExit(1)), TRACEBACK),
    ],
)
def test_an_outcome_is_judged(function, outcome):
    one = trial()
    one.attempt("x", function)
    assert dict(one.counts) == {outcome: 1}
    assert bool(one.found) == (outcome not in (ACCEPTED, REFUSED))
    assert not one.goes_on
    assert f"| a trial | {int(outcome == REFUSED)} |" in table([one])


def test_an_accepted_nonsense_is_found(monkeypatch):
    one = trial(20)
    monkeypatch.setattr(values, "builds", lambda base, key, value: True)
    values.try_nonsense(one)
    assert dict(one.counts) == {WRONG: 20}


@pytest.mark.parametrize(
    ("attempt", "number"),
    [
        (lambda one, _: values.try_nonsense(one), 40),
        (lambda one, _: values.try_numbers(one), 15),
        (files.try_damaged_checkpoints, 15),
        (files.try_made_up_checkpoints, 8),
        (files.try_damaged_official_files, 15),
        (files.try_made_up_official_files, 15),
        (environments.try_faults, 3),
    ],
)
def test_a_share_of_it_is_refused_or_right(attempt, number, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 2.5e8)
    one = trial(number, seed=7)
    attempt(one, tmp_path)
    assert not one.found
    assert sum(one.counts.values()) == number
    assert one.counts[REFUSED] > 0


def program(code, log):
    """A program in a session of its own, whose errors go to a file."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=log.open("w"),
        start_new_session=True,
        env={"PYTHONFAULTHANDLER": "1"},
    )


@needs_proc
@pytest.mark.parametrize(
    ("limits", "body"),
    [({"QUIET": 0.5}, "time.sleep(1000)"), ({"BUSY": 0.5}, "for _ in iter(int, 1): pass")],
)
def test_a_program_that_hangs_is_told_with_its_stack(limits, body, tmp_path, monkeypatch):
    for name, value in limits.items():
        monkeypatch.setattr(watch, name, value)
    log = tmp_path / "log"
    process = program(f"import time\ndef wait_for_nobody():\n {body}\nwait_for_nobody()", log)
    stacks = watch.ended(process, log)
    assert "in wait_for_nobody" in stacks and f"{process.pid} " in stacks.splitlines()[0]
    assert process.poll() is not None and not watch.members(process.pid)


@needs_proc
def test_a_program_that_ends_is_none_that_hangs(tmp_path):
    log = tmp_path / "log"
    process = program("import time; time.sleep(0.2)", log)
    assert watch.ended(process, log) is None
    assert process.returncode == 0 and log.read_text() == ""


@pytest.mark.parametrize(
    ("state", "seconds_a_look", "hangs"),
    [
        ("R", 0.0, False),  # it wants to run, and others do
        ("D", 0.0, False),  # the disk is slow
        ("S", 0.01, True),  # it looks at a clock, and sleeps again
        ("S", 0.1, False),  # it works now and then
    ],
)
def test_a_program_on_a_busy_machine_is_none_that_hangs(state, seconds_a_look, hangs, monkeypatch):
    clock, looks = [0.0], [0]

    def members(*sessions):
        looks[0] += 1
        return {7: watch.Process(state, seconds_a_look * looks[0])}

    monkeypatch.setattr(watch, "members", members)
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    one, found = watch.Watch(7), []
    for _ in range(100):
        clock[0] += 1.0
        found.append(one.hangs())
    assert any(found) == hangs
    if hangs:
        assert found.index(True) == 60  # after more than QUIET seconds


def test_evaluations_keep_no_descriptor_open():
    told = environments.evaluate_again_and_again(14, time.monotonic() + 1000)
    first, last = (int(part.split(": ")[1].split()[0]) for part in told.split("; "))
    assert first == last
