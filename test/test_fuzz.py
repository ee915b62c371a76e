"""The fuzz script: how it judges, and a small share of what it tries."""

from __future__ import annotations

import random
import time

import pytest

from benchmarks.fuzz import environments, files, values
from benchmarks.fuzz.outcome import ACCEPTED, REFUSED, TRACEBACK, WRONG, Trial, table
from torchrl_tdmpc.modules import memory

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


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


def test_evaluations_keep_no_descriptor_open():
    told = environments.evaluate_again_and_again(14, time.monotonic() + 1000)
    first, last = (int(part.split(": ")[1].split()[0]) for part in told.split("; "))
    assert first == last
