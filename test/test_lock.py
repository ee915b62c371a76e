"""Two writers in one folder: the second is refused with the first's process and host."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from runs import configure, make, run

from torchrl_tdmpc.checkpoints import FolderLock

HOST = socket.gethostname()
HOLDER = """
import sys
from torchrl_tdmpc.checkpoints import FolderLock
lock = FolderLock(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_another_process_is_named_and_goes_with_its_death(tmp_path, holder):
    said = f"'{tmp_path}' is in use by process {holder.pid} on host {HOST}; .*end that run first"
    for _ in range(2):  # asking takes nothing away
        with pytest.raises(FileExistsError, match=said):
            FolderLock(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run.lock").read_text() == f"{holder.pid} {HOST}\n"
    lock = FolderLock(tmp_path)
    assert (tmp_path / "run.lock").read_text() == f"{os.getpid()} {HOST}\n"
    lock.release()
    lock.release()
    assert not (tmp_path / "run.lock").exists()


@pytest.mark.parametrize("resume", ["null", "auto"])
def test_a_second_run_is_refused_before_it_writes(tmp_path, holder, resume):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FileExistsError, match=f"in use by process {holder.pid} on host {HOST}"):
        make(configure(f"output_dir={tmp_path}", f"resume={resume}", "logger.backend=tensorboard"))
    assert sorted(tmp_path.iterdir()) == before
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    run(tmp_path, "eval.episodes=0", f"resume={resume}")
    assert not (tmp_path / "run.lock").exists()


def test_two_runs_of_one_process_are_two_writers(tmp_path):
    first = make(configure(f"output_dir={tmp_path}", "eval.episodes=0"))
    with pytest.raises(FileExistsError, match=f"in use by process {os.getpid()} on host {HOST}"):
        make(configure(f"output_dir={tmp_path}", "eval.episodes=0"))
    del first  # never trained: nobody has it, nobody holds the folder
    first = make(configure(f"output_dir={tmp_path}", "eval.episodes=0"))
    first.train()
    make(configure(f"output_dir={tmp_path}", "resume=auto")).lock.release()


def test_a_holder_on_another_host_counts_as_alive_until_its_file_is_removed(tmp_path):
    (tmp_path / "run.lock").write_text("17 elsewhere\n")
    said = re.escape(
        "held by process 17 on host elsewhere, which cannot be asked from here; choose another "
        f"folder, or if that run has ended, remove {tmp_path / 'run.lock'}."
    )
    with pytest.raises(FileExistsError, match=said):
        FolderLock(tmp_path)
    (tmp_path / "run.lock").unlink()
    FolderLock(tmp_path).release()


def test_a_file_that_names_nobody_holds_nothing(tmp_path):
    (tmp_path / "run.lock").write_bytes(b"nonsense " * 1000)
    FolderLock(tmp_path).release()


def test_a_run_that_cannot_begin_lets_the_folder_go(tmp_path):
    (tmp_path / "config.yaml").write_text("mine: true\n")
    with pytest.raises(FileExistsError, match=r"holds a config\.yaml that no run wrote"):
        make(configure(f"output_dir={tmp_path}"))
    assert (tmp_path / "config.yaml").read_text() == "mine: true\n"
    FolderLock(tmp_path).release()


class Delete:
    """Moves the run's folder away after some agent steps."""

    def __init__(self, folder):
        self.folder = folder

    def on_collect(self, trainer, data):
        if trainer.counters.agent_steps == 23:
            self.folder.rename(self.folder.with_name("moved"))


def test_a_folder_that_is_gone_is_noticed_at_the_next_agent_step(tmp_path):
    seen = []

    class Count:
        def on_collect(self, trainer, data):
            seen.append(trainer.counters.agent_steps)

    folder = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match=f"'{folder}' was deleted, moved or replaced"):
        run(folder, callbacks=[Delete(folder), Count()])
    assert seen[-1] == 23
    assert not folder.exists()
