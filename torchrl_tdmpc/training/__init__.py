"""How one update runs and what a run saves: update step, evaluation, checkpoints, logging."""

from torchrl_tdmpc.training.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    read_metadata,
    save_checkpoint,
)
from torchrl_tdmpc.training.evaluation import evaluate
from torchrl_tdmpc.training.faults import SkippedUpdates
from torchrl_tdmpc.training.interrupt import GracefulInterrupt
from torchrl_tdmpc.training.logging import RunLog, check_backend, write_config
from torchrl_tdmpc.training.plotting import plot_returns
from torchrl_tdmpc.training.published import (
    PublishedAgent,
    load_published,
    published_weights,
    save_published,
)
from torchrl_tdmpc.training.resume import (
    CollectorState,
    Counters,
    find_checkpoint,
    resume_run,
    save_run,
)
from torchrl_tdmpc.training.schedule import discount_heuristic, seed_decisions
from torchrl_tdmpc.training.snapshot import append_snapshot, take_snapshot
from torchrl_tdmpc.training.update import TDMPC2Update
from torchrl_tdmpc.training.video import FirstEpisodeRecorder, check_video

__all__ = [
    "CollectorState",
    "Counters",
    "FirstEpisodeRecorder",
    "GracefulInterrupt",
    "PublishedAgent",
    "RunLog",
    "SkippedUpdates",
    "TDMPC2Update",
    "append_snapshot",
    "check_backend",
    "check_video",
    "discount_heuristic",
    "evaluate",
    "find_checkpoint",
    "load_checkpoint",
    "load_published",
    "newest_checkpoint",
    "plot_returns",
    "published_weights",
    "read_metadata",
    "resume_run",
    "save_checkpoint",
    "save_published",
    "save_run",
    "seed_decisions",
    "take_snapshot",
    "write_config",
]
