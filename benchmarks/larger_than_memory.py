"""Train on a data set of ten times the memory that a process may have, and on a part of it.

``python -m benchmarks.larger_than_memory --limit 256`` writes a data set of 2,560 MB and trains on
it in a process that may take 256 MB beyond what torch and the networks have (``RLIMIT_DATA``, to
which a copy of the data would count, and pages of files that are mapped for sharing do not). The
same updates on a data set of a twentieth of the limit, which the machine keeps in memory, take
turns with them. It prints the updates a second of both, and their ratio.

The limit is that of the process. A machine whose disk cache is smaller than the data reads them
from the disk again and again, and then its disk decides; a memory cgroup around this command shows
that case.
"""

from __future__ import annotations

import argparse
import mmap
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tensordict import TensorDict

from torchrl_tdmpc import TDMPC2Loss, TDMPC2Update, make_networks
from torchrl_tdmpc.data import EpisodeFiles, EpisodeStream
from torchrl_tdmpc.data.dataset import write_facts
from torchrl_tdmpc.modules import MODEL_SIZES, TaskContext

OBSERVATION, ACTION, LENGTH = 24, 6, 500
EPISODE_BYTES = 4 * (LENGTH + 1) * (OBSERVATION + ACTION + 1 + 2)  # with an int64 index
FILE_MB = 64
ROUNDS = 5


def write(folder: Path, megabytes: int) -> None:
    """Random episodes of one task, in files of at most ``FILE_MB``."""
    folder.mkdir()
    left, names = megabytes * 10**6 // EPISODE_BYTES, []
    while left > 0:
        episodes = min(left, FILE_MB * 10**6 // EPISODE_BYTES)
        left -= episodes
        shape = (episodes, LENGTH + 1)
        rows = TensorDict(
            obs=torch.randn(*shape, OBSERVATION),
            action=torch.rand(*shape, ACTION) * 2 - 1,
            reward=torch.rand(shape),
            task=torch.zeros(shape, dtype=torch.int64),
            batch_size=shape,
        )
        names.append(f"chunk_{len(names)}.pt")
        torch.save(rows, folder / names[-1])
    write_facts(folder, ["random"], names)


def open_stream(folder: Path, batch_size: int) -> EpisodeStream:
    """What samples from a data set."""
    return EpisodeStream(
        EpisodeFiles(folder),
        ["random"],
        observation_dims=[OBSERVATION],
        action_dims=[ACTION],
        horizon=3,
        batch_size=batch_size,
    )


def measure(large: Path, small: Path, limit: int, updates: int, batch_size: int) -> None:
    """Print the updates a second of each round, with the large and with the small data set."""
    torch.manual_seed(0)
    context = TaskContext([ACTION], [0.99])
    networks = make_networks((OBSERVATION,), ACTION, MODEL_SIZES[1], task_context=context)
    update = TDMPC2Update(TDMPC2Loss(*networks))
    # torch maps files privately by default, which the system counts as if they were written to
    torch.serialization.set_default_mmap_options(mmap.MAP_SHARED)
    resource.setrlimit(resource.RLIMIT_DATA, 2 * (memory_of_data() + limit * 10**6,))
    streams = [open_stream(folder, batch_size) for folder in (large, small)]
    for number in range(ROUNDS + 1):
        for stream in streams if number % 2 else streams[::-1]:
            start = time.perf_counter()
            for _ in range(updates):
                update(stream.sample())
            rate = updates / (time.perf_counter() - start)
            if number:  # the first round is a warm-up
                print("large" if stream is streams[0] else "small", rate, flush=True)


def memory_of_data() -> int:
    """Bytes that count towards ``RLIMIT_DATA`` now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmData"))
    return int(line.split()[1]) * 1024


def is_refused(limit: int) -> bool:
    """Whether a process with this limit can no longer take the memory of the whole data set."""
    code = (
        "import resource, torch\n"
        "from benchmarks.larger_than_memory import memory_of_data\n"
        f"limit = memory_of_data() + {limit} * 10**6\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))\n"
        f"torch.zeros(10 * {limit} * 10**6 // 4)\n"
    )
    return subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode != 0


def main() -> None:
    """Make the data, measure in a process of its own, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=256, help="memory of the process, in MB")
    parser.add_argument("--updates", type=int, default=40, help="in each of the rounds")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--folders", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folders is not None:
        measure(*given.folders, given.limit, given.updates, given.batch_size)
        return
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder, "large"), Path(folder, "small")
        write(large, 10 * given.limit)
        write(small, max(1, given.limit // 20))
        command = [sys.executable, "-m", "benchmarks.larger_than_memory", *sys.argv[1:]]
        done = subprocess.run(
            [*command, "--folders", str(large), str(small)], stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            raise SystemExit(done.returncode)
        size = sum(path.stat().st_size for path in large.iterdir()) / 1e6
    rates = {name: [] for name in ("large", "small")}
    for line in done.stdout.splitlines():
        name, rate = line.split()
        rates[name].append(float(rate))
    ratio = statistics.median(a / b for a, b in zip(rates["large"], rates["small"]))
    refused = "cannot" if is_refused(given.limit) else "CAN"
    print(f"{size:,.0f} MB of data, {given.limit} MB of memory, which {refused} hold them")
    for name, of_one in rates.items():
        print(f"{name}: {statistics.median(of_one):.2f} updates a second")
    print(f"ratio {ratio:.3f}; it must be at least 0.9")
    raise SystemExit(0 if ratio >= 0.9 else 1)


if __name__ == "__main__":
    main()
