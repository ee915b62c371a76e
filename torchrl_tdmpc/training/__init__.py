"""How one update runs and what a run saves: update step, evaluation, checkpoints, logging."""

from torchrl_tdmpc.training.acceleration import accelerate
from torchrl_tdmpc.training.checkpoint import load_checkpoint, save_checkpoint
from torchrl_tdmpc.training.evaluation import evaluate
from torchrl_tdmpc.training.interrupt import GracefulInterrupt
from torchrl_tdmpc.training.logging import RunLog, check_backend, plot_returns, write_config
from torchrl_tdmpc.training.published import (
    PublishedAgent,
    load_published,
    published_weights,
    save_published,
)
from torchrl_tdmpc.training.schedule import discount_heuristic, seed_decisions
from torchrl_tdmpc.training.snapshot import append_snapshot, take_snapshot
from torchrl_tdmpc.training.update import TDMPC2Update
from torchrl_tdmpc.training.video import FirstEpisodeRecorder, check_video

__all__ = [
    "FirstEpisodeRecorder",
    "GracefulInterrupt",
    "PublishedAgent",
    "RunLog",
    "TDMPC2Update",
    "accelerate",
    "append_snapshot",
    "check_backend",
    "check_video",
    "discount_heuristic",
    "evaluate",
    "load_checkpoint",
    "load_published",
    "plot_returns",
    "published_weights",
    "save_checkpoint",
    "save_published",
    "seed_decisions",
    "take_snapshot",
    "write_config",
]
