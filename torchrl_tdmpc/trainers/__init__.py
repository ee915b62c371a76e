"""How a run goes: one update, the online loop, evaluation, schedules, callbacks."""

from torchrl_tdmpc.trainers.actors import Actors
from torchrl_tdmpc.trainers.agent import (
    Agent,
    build_networks,
    load_agent,
    recorded_agent,
    recorded_tasks,
    task_discounts,
)
from torchrl_tdmpc.trainers.callbacks import Callbacks
from torchrl_tdmpc.trainers.counters import Counters
from torchrl_tdmpc.trainers.evaluation import evaluate
from torchrl_tdmpc.trainers.failures import CollectionError, SkippedUpdates
from torchrl_tdmpc.trainers.fine_tuning import Pretrained, load_pretrained, place_in_model
from torchrl_tdmpc.trainers.interrupt import GracefulInterrupt
from torchrl_tdmpc.trainers.loop import EVALUATION_SEED
from torchrl_tdmpc.trainers.offline import OfflineCounters, OfflineTrainer
from torchrl_tdmpc.trainers.online import EVAL_MODES, OnlineTrainer
from torchrl_tdmpc.trainers.patience import NoAnswerError, Patience
from torchrl_tdmpc.trainers.replay import build_replay
from torchrl_tdmpc.trainers.schedule import discount_heuristic, seed_steps
from torchrl_tdmpc.trainers.stepper import UpdateStepper
from torchrl_tdmpc.trainers.update import TDMPC2Update, count_parameters

__all__ = [
    "EVALUATION_SEED",
    "EVAL_MODES",
    "Actors",
    "Agent",
    "Callbacks",
    "CollectionError",
    "Counters",
    "GracefulInterrupt",
    "NoAnswerError",
    "OfflineCounters",
    "OfflineTrainer",
    "OnlineTrainer",
    "Patience",
    "Pretrained",
    "SkippedUpdates",
    "TDMPC2Update",
    "UpdateStepper",
    "build_networks",
    "build_replay",
    "count_parameters",
    "discount_heuristic",
    "evaluate",
    "load_agent",
    "load_pretrained",
    "place_in_model",
    "recorded_agent",
    "recorded_tasks",
    "seed_steps",
    "task_discounts",
]
