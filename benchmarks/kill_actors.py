"""Kill random processes of a run with actors, resume it each time, and check what is left.

``python -m benchmarks.kill_actors --kills 20`` prints a table, and exits with 1 if anything is
wrong. Each death is ``kill -9`` of the learner, of an actor or of the evaluator, at a random
moment. The run must end, nothing of it may stay behind, and the same command must go on with it.
The episodes that it stored must be whole. Nothing else may run meanwhile, because what it would
put into shared memory would count as left behind.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from benchmarks.kill_and_resume import SETTINGS, newest, rows
from torchrl_tdmpc.data import EpisodeFiles

ROOT = Path(__file__).parents[1]
STEPS = 1_500
OURS = [
    *(one for one in SETTINGS if not one.startswith(("env.task", "train.steps", "eval", "replay"))),
    *("env.backend=function", "env.task=benchmarks.kill_actors:Counting", "env.episodic=false"),
    *("collector.mode=async", "collector.actors=2", "env.num_envs=2", "eval.mode=background"),
    *("eval.interval=50", "eval.episodes=1", f"train.steps={STEPS}", "compile=off"),
]


class Counting(EnvBase):
    """Observes how many steps its episode has, and which episode it is."""

    def __init__(self):
        super().__init__()
        self.observation_spec = Composite(observation=Unbounded((2,)))
        self.action_spec = Bounded(-1, 1, (1,))
        self.reward_spec = Unbounded((1,))
        self.observed = torch.zeros(2)

    def _set_seed(self, seed: int | None) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        episode = torch.rand((), generator=self.generator)
        self.observed = torch.stack([torch.zeros(()), episode])
        return TensorDict(observation=self.observed, done=torch.zeros(1, dtype=torch.bool))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.observed = self.observed + torch.tensor([1.0, 0.0])
        no = torch.zeros(1, dtype=torch.bool)
        return TensorDict(observation=self.observed, reward=torch.ones(1), done=no, terminated=no)


def start(output_dir: Path) -> subprocess.Popen:
    """Begin the run, or go on with it."""
    command = [sys.executable, "-m", "torchrl_tdmpc.cli.train", *OURS]
    log = (output_dir.parent / "output.txt").open("a")
    return subprocess.Popen(
        [*command, f"output_dir={output_dir}", "resume=auto"],
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def children(leader: int) -> list[int]:
    """The processes that one started, directly."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_at_random(output_dir: Path, generator: random.Random) -> tuple[str, list[str]]:
    """Kill a process of the run some time after it has begun; what was killed, what is wrong."""
    process, before = start(output_dir), len(rows(output_dir / "train.csv"))
    while len(rows(output_dir / "train.csv")) <= before and process.poll() is None:
        time.sleep(0.05)
    time.sleep(generator.uniform(0, 3))
    members = children(process.pid)
    workers = [pid for pid in members if b"resource_tracker" not in command_line(pid)]
    victim = generator.choice([process.pid, *workers])
    who = "learner" if victim == process.pid else "actor or evaluator"
    if process.poll() is None:
        os.kill(victim, signal.SIGKILL)
    try:
        process.wait(120)
    except subprocess.TimeoutExpired:
        process.kill()
        return who, [f"the run hung after its {who} was killed"]
    end = time.monotonic() + 60
    while left := [pid for pid in members if is_alive(pid)]:
        if time.monotonic() > end:
            return who, [f"{len(left)} processes are left after a {who} was killed"]
        time.sleep(0.1)
    return who, []


def command_line(pid: int) -> bytes:
    """How a process was started."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def stored_wrongly(output_dir: Path) -> list[str]:
    """What is wrong with the episodes in the replay of a finished run."""
    data = output_dir.parent / "data"
    command = [sys.executable, "-m", "torchrl_tdmpc.cli.dataset", "export", output_dir, data]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    found, seen = [], set()
    for episode in EpisodeFiles(data):
        first = episode["observation"]
        steps, names = torch.cat([first, episode["next", "observation"][-1:]]).T
        begin = 0 if seen else steps[0]  # the oldest one may be overwritten in part
        if not torch.equal(steps, begin + torch.arange(len(steps), dtype=steps.dtype)):
            found.append(f"an episode has the steps {steps.tolist()}")
        if len(names.unique()) != 1 or (name := names[0].item()) in seen:
            found.append("steps of several episodes are mixed, or one is stored twice")
        else:
            seen.add(name)
    print(f"{len(seen)} episodes are stored")
    return found


def main() -> None:
    """Kill, resume, and look at what is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    shared = set(os.listdir("/dev/shm"))
    found: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        output_dir = Path(folder, "run")
        print(f"{'life':>4} {'killed':>18} {'made':>6} {'saved':>6}", flush=True)
        for life in range(1, arguments.kills + 1):
            who, wrong = kill_at_random(output_dir, generator)
            found += wrong
            made = max(
                (int(row["agent_steps"]) for row in rows(output_dir / "train.csv")), default=0
            )
            print(f"{life:>4} {who:>18} {made:>6} {newest(output_dir):>6}", flush=True)
            if newest(output_dir) >= STEPS:
                print("the run is finished")
                break
        if code := start(output_dir).wait():
            found.append(f"exit code {code}: {Path(folder, 'output.txt').read_text()[-2000:]}")
        evaluated = [int(row["agent_steps"]) for row in rows(output_dir / "eval.csv")]
        if newest(output_dir) != STEPS or evaluated[-1:] != [STEPS]:
            found.append(f"ended at {newest(output_dir)} with evaluations at {evaluated}")
        found += stored_wrongly(output_dir)
    if left := set(os.listdir("/dev/shm")) - shared:
        found.append(f"shared memory is left: {sorted(left)}")
    print("\n".join(found) or "Nothing was lost, mixed or left behind.")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
