"""Environments that misbehave, and evaluations again and again."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path

import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from benchmarks.fuzz.outcome import Trial
from torchrl_tdmpc import OnlineTrainer
from torchrl_tdmpc.envs import Task, make_task
from torchrl_tdmpc.trainers import evaluate

MODEL = {"enc_dim": 16, "mlp_dim": 16, "latent_dim": 16}
EPISODE = 6
FAULTS = (
    *("error in step", "error in reset", "nan observation", "infinite reward", "reward of two"),
    *("longer observation", "nothing", "text", "hang", "no reward"),
)


class Misbehaving(EnvBase):
    """Does one thing wrong from one of its calls on.

    Attributes:
        fault: one of ``FAULTS``, of every environment; None does nothing wrong.
        begin: the number of calls of each environment that are right.
    """

    fault: str | None = None
    begin = 0

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.observation_spec = Composite(observation=Unbounded((3,)))
        self.action_spec = Bounded(-1.0, 1.0, (2,))
        self.reward_spec = Unbounded((1,))

    def _set_seed(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def _observe(self) -> torch.Tensor:
        return torch.randn(3, generator=self.generator)

    def _reset(self, tensordict: TensorDict | None = None) -> TensorDict:
        if self._is_bad() and self.fault == "error in reset":
            raise OSError("the door is closed.\nIt has to be opened.")
        return TensorDict(observation=self._observe())

    def _step(self, tensordict: TensorDict) -> TensorDict:
        data = TensorDict(observation=self._observe(), reward=torch.ones(1), done=False)
        if not self._is_bad():
            return data
        match self.fault:
            case "error in step":
                raise RuntimeError("the motor is hot.\nIt has to cool down.")
            case "nan observation":
                data["observation"][1] = torch.nan
            case "infinite reward":
                data["reward"][0] = torch.inf
            case "reward of two":
                data["reward"] = torch.ones(2)
            case "longer observation":
                data["observation"] = torch.ones(4)
            case "nothing":
                return None
            case "text":
                data["observation"] = "somewhere"
            case "hang":
                time.sleep(60)
            case "no reward":
                del data["reward"]
        return data

    def _is_bad(self) -> bool:
        self.calls += 1
        return self.calls > self.begin


def try_faults(trial: Trial, folder: Path) -> None:
    """A run in such an environment ends in one sentence with a checkpoint."""
    Misbehaving.fault = None
    task = make_task(Misbehaving, episode_length=EPISODE)
    while trial.goes_on:
        Misbehaving.fault = trial.generator.choice(FAULTS)
        Misbehaving.begin = trial.generator.randrange(2, 20)
        output_dir = folder / f"fault-{sum(trial.counts.values())}"
        what = f"{Misbehaving.fault} after {Misbehaving.begin} calls"
        trial.attempt(what, functools.partial(train, task, output_dir))
    Misbehaving.fault = None


def train(task: Task, output_dir: Path) -> bool:
    """Train with a fault. Returns False: such a run must not come to its end."""
    sizes = {"model": MODEL, "steps": 30, "seed_steps": 12, "eval_interval": 12}
    trainer = OnlineTrainer(task, output_dir=output_dir, **sizes)
    trainer.patience.seconds = 1.0
    try:
        trainer.train()
    finally:
        assert [*(output_dir / "checkpoints").glob("*.torchrl")], "no checkpoint"
    return False


def evaluate_again_and_again(number: int, deadline: float) -> str:
    """How many descriptors and how much memory are in use before and after evaluations."""
    task = make_task(Misbehaving, episode_length=EPISODE)
    lines = []
    for count in range(number + 1):
        if count in (10, number) or time.monotonic() > deadline:
            descriptors = len(os.listdir("/proc/self/fd"))
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20
            lines.append(f"{count} evaluations: {descriptors} descriptors, {resident} MiB")
        if time.monotonic() > deadline:
            break
        evaluate(None, task, episodes=3, seed=count)
    return "; ".join(lines)
