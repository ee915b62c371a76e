"""Runs in processes: what signals end, how fast, and what is left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from runs import TINY
from torchrl.testing.mocking_classes import ContinuousActionVecMockEnv

from torchrl_tdmpc.checkpoints import newest_checkpoint
from torchrl_tdmpc.envs import make_env, make_task
from torchrl_tdmpc.trainers import NoAnswerError, Patience

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="reads Linux's /proc")
SECONDS = 300.0  # far more than anything here takes, also beside other work


def until(holds, what):
    """Wait for something; nothing is said about how long it takes."""
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def group(leader):
    """Ids of the living processes whose parents, up to any, or whose group is the leader's."""
    table = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, pgrp = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if state != "Z":
            table[int(path.parent.name)] = int(parent), int(pgrp)
    found = {leader} & table.keys()
    for _ in range(4):
        found |= {pid for pid, (parent, pgrp) in table.items() if parent in found or pgrp == leader}
    return found


@pytest.fixture
def run(tmp_path):
    """A run with two environments in processes, once it steps; and its log."""
    sizes = ("train.steps=100000", "compile=off", "eval.episodes=0")
    sizes += ("env.num_envs=2", "env.workers=process")
    command = [sys.executable, "-m", "torchrl_tdmpc.cli.train", *TINY, *sizes]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"output_dir={tmp_path / 'run'}"],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    csv = tmp_path / "run/train.csv"
    until(lambda: csv.exists() and csv.read_text().count("\n") > 2, "no episode ended")
    members = group(process.pid)
    yield process, members, tmp_path
    for pid in members | group(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def gone(members):
    return not any(Path(f"/proc/{pid}").exists() and not is_zombie(pid) for pid in members)


def is_zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_group_is_the_graceful_end(run, number):
    process, members, folder = run
    os.killpg(process.pid, number)
    assert process.wait(SECONDS) == 0
    log = (folder / "log").read_text()
    assert "Traceback" not in log and f"In {folder / 'run'}: eval.csv, train.csv" in log
    assert newest_checkpoint(folder / "run/checkpoints").stem > "checkpoint-000000000000"
    until(lambda: gone(members), "processes are left")


def test_a_second_interrupt_ends_all_at_once(run):
    process, members, folder = run
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.001)  # or the system makes one signal of both
    assert process.wait(SECONDS) in (0, 1)  # 0: it had ended between the two
    log = (folder / "log").read_text()
    assert "Traceback" not in log
    until(lambda: gone(members), "processes are left")


def test_nothing_outlives_a_kill(run):
    process, members, _ = run
    process.kill()
    process.wait()
    until(lambda: gone(members), "processes are left")


class Sleeps(ContinuousActionVecMockEnv):
    """Never answers in a process of its own."""

    def _step(self, tensordict):
        if multiprocessing.parent_process() is not None:
            time.sleep(1000)
        return super()._step(tensordict)


HANGING = """
import sys
from test_signals import Sleeps
from torchrl_tdmpc.envs import make_env, make_task
if __name__ == "__main__":
    task = make_task(Sleeps, episode_length=4, observation_keys=["observation"])
    env = make_env(task, num_envs=2, workers="process")
    env.reset()
    print(*(worker.pid for worker in env._workers), flush=True)
    if sys.argv[1] == "step":
        env.rollout(3)
    raise RuntimeError("forgotten")
"""


@pytest.mark.parametrize("end", ["kill", "error"])
def test_an_environment_that_hangs_ends_with_the_process_that_made_it(tmp_path, end):
    """Also where nobody closes the environments."""
    script = tmp_path / "hanging.py"
    script.write_text(HANGING)
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, script, "step" if end == "kill" else "none"],
        env=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 2
    if end == "kill":
        process.kill()
    assert process.wait(SECONDS) != 0
    process.stdout.close()
    until(lambda: gone(workers), "processes are left")


def in_a_child(queue):
    before = signal.getsignal(signal.SIGINT), os.getpgrp()
    task = make_task(ContinuousActionVecMockEnv, episode_length=4, observation_keys=["observation"])
    make_env(task, num_envs=2).reset()
    queue.put((signal.getsignal(signal.SIGINT), os.getpgrp()) == before)


def test_a_process_that_somebody_else_started_is_left_as_it_is():
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=in_a_child, args=(queue,))
    child.start()
    assert queue.get(timeout=SECONDS)
    child.join(SECONDS)


def test_an_alarm_of_somebody_else_is_left_as_it_is():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        with Patience(0.01) as patience, patience.waiting():
            signal.setitimer(signal.ITIMER_REAL, 0.03)
            until(lambda: rung, "the alarm does not ring")
    finally:
        signal.signal(signal.SIGALRM, before)


def test_in_another_thread_nothing_is_interrupted():
    errors = []

    def wait():
        try:
            with Patience(0.01) as patience, patience.waiting():
                time.sleep(0.05)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert not errors


class Frees:
    """Takes long to be freed, where Python drops errors."""

    def __del__(self):
        time.sleep(0.1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_error_that_python_drops_comes_again(monkeypatch):
    monkeypatch.setattr("torchrl_tdmpc.trainers.patience.SECONDS_TO_REPEAT", 0.3)
    with Patience(0.01) as patience, pytest.raises(NoAnswerError), patience.waiting():
        Frees()
        until(lambda: False, "nothing rings again")


def test_nothing_rings_after_an_answer():
    with Patience(1000) as patience:
        for _ in range(5):
            with patience.waiting():
                pass
        with patience.waiting():
            for _ in range(5):
                patience.begin()
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
