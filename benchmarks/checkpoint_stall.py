"""How long a checkpoint holds training up when the replay buffer is large.

``python benchmarks/checkpoint_stall.py --transitions 1_000_000`` fills a buffer of states, saves it
once, and then measures checkpoints of the default interval, and the restoration of the last one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from tensordict import TensorDict

from torchrl_tdmpc import TDMPC2Loss, make_networks
from torchrl_tdmpc.checkpoints import ReplayLog, resume_run, save_run
from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.modules import MODEL_SIZES
from torchrl_tdmpc.trainers import TDMPC2Update

OBSERVATION, ACTION, LENGTH = 24, 6, 500


def episodes(number: int) -> TensorDict:
    """Finished episodes, one after the other, ``[1, number * LENGTH]``."""
    steps = number * LENGTH
    observation = torch.randn(1, steps + 1, OBSERVATION)
    return TensorDict(
        observation=observation[:, :-1],
        action=torch.rand(1, steps, ACTION),
        next=TensorDict(
            observation=observation[:, 1:],
            reward=torch.rand(1, steps, 1),
            terminated=torch.zeros(1, steps, 1, dtype=torch.bool),
            done=(torch.arange(1, steps + 1) % LENGTH == 0).reshape(1, steps, 1),
        ),
    ).auto_batch_size_(2)


def make(capacity: int, size: int) -> tuple[EpisodeReplay, dict]:
    """An empty buffer, and what else a checkpoint holds."""
    torch.manual_seed(0)
    networks = make_networks((OBSERVATION,), ACTION, MODEL_SIZES[size])
    update = TDMPC2Update(TDMPC2Loss(*networks, discount=0.99))
    replay = EpisodeReplay(capacity=capacity, horizon=3, batch_size=256)
    components = {
        "loss": update.loss,
        "model_optimizer": update.model_optimizer,
        "actor_optimizer": update.actor_optimizer,
    }
    replay.extend(episodes(1))
    update(replay.sample())  # the optimisers have a state from now on
    return EpisodeReplay(capacity=capacity, horizon=3, batch_size=256), components


def main() -> None:
    """Print seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transitions", type=int, default=1_000_000)
    parser.add_argument("--interval", type=int, default=5000)
    parser.add_argument("--size", type=int, default=5, help="million parameters")
    arguments = parser.parse_args()
    replay, components = make(arguments.transitions, arguments.size)
    with tempfile.TemporaryDirectory() as folder:
        log = ReplayLog(replay, Path(folder, "replay"))

        def save(step: int) -> tuple[float, float]:
            start, cpu = time.perf_counter(), time.process_time()
            save_run(folder, step, components, log, metadata={}, keep_last=2)
            return time.perf_counter() - start, time.process_time() - cpu

        large = episodes(100)
        for _ in range(0, arguments.transitions, large.numel()):
            replay.extend(large)
        print(f"{replay.num_transitions} transitions")
        first = save(0)
        piece = episodes(arguments.interval // LENGTH)
        stalls = []
        for step in range(1, 11):
            replay.extend(piece)
            stalls.append(save(step))
        seconds, cpu = (statistics.median(column) for column in zip(*stalls, strict=True))
        print(f"a first checkpoint, of all of them: {first[0]:.2f} s ({first[1]:.2f} s of the CPU)")
        print(f"one every {piece.numel()}: {seconds:.2f} s ({cpu:.2f} s of the CPU)")

        other, components = make(arguments.transitions, arguments.size)
        start = time.perf_counter()
        newest = max(Path(folder).glob("checkpoint-*"))
        resume_run(newest, components, ReplayLog(other, Path(folder, "replay")))
        print(f"restored in {time.perf_counter() - start:.2f} s")
        torch.manual_seed(0)
        ours = other.sample()
        torch.manual_seed(0)
        print(f"draws the same: {bool((ours == replay.sample()).all())}")


if __name__ == "__main__":
    main()
