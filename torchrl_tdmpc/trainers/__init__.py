"""How a run goes: one update, evaluation, counts and schedules."""

from torchrl_tdmpc.trainers.counters import Counters
from torchrl_tdmpc.trainers.evaluation import evaluate
from torchrl_tdmpc.trainers.failures import SkippedUpdates
from torchrl_tdmpc.trainers.interrupt import GracefulInterrupt
from torchrl_tdmpc.trainers.schedule import discount_heuristic, seed_steps
from torchrl_tdmpc.trainers.update import TDMPC2Update

__all__ = [
    "Counters",
    "GracefulInterrupt",
    "SkippedUpdates",
    "TDMPC2Update",
    "discount_heuristic",
    "evaluate",
    "seed_steps",
]
