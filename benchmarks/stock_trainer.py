"""The same parts in TorchRL's Trainer and in OnlineTrainer: returns side by side.

``PYTHONPATH=examples python -m benchmarks.stock_trainer --seeds 1 2 3`` trains both on Pendulum-v1
and prints a row for each seed. OnlineTrainer also makes up for the updates of the random warm-up.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch
from stock_trainer import make_parts, make_trainer

from torchrl_tdmpc import OnlineTrainer, evaluate
from torchrl_tdmpc.envs import load_task


def main() -> None:
    """Train, evaluate, print."""
    warnings.filterwarnings("ignore", message=".*leaked semaphore")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--seed-steps", type=int, default=1_000)
    arguments = parser.parse_args()
    task = load_task("gym", "Pendulum-v1")
    print("| seed | TorchRL's Trainer | minutes | OnlineTrainer | minutes |", flush=True)
    print("|---|---|---|---|---|", flush=True)
    for seed in arguments.seeds:
        settings = {"steps": arguments.steps, "seed_steps": arguments.seed_steps, "seed": seed}
        cells = []
        for loop in ("stock", "online"):
            torch.manual_seed(seed)
            update, planner, replay = make_parts(task, steps=arguments.steps)
            parts = {"update": update, "planner": planner, "replay": replay}
            begin = time.monotonic()
            if loop == "stock":
                make_trainer(task, **parts, **settings).train()
            else:
                OnlineTrainer(task, **parts, **settings, eval_episodes=0).train()
            minutes = (time.monotonic() - begin) / 60
            returns = [row["return"] for row in evaluate(planner, task, episodes=10, seed=12_345)]
            cells += [f"{sum(returns) / len(returns):.1f}", f"{minutes:.1f}"]
        print(f"| {seed} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
