"""What is saved: runs to go on with, and the official formats."""

from torchrl_tdmpc.checkpoints.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    read_metadata,
    save_checkpoint,
)
from torchrl_tdmpc.checkpoints.collector import ActorsState, CollectorState, SavedMemory
from torchrl_tdmpc.checkpoints.lock import FolderLock
from torchrl_tdmpc.checkpoints.official import (
    OfficialAgent,
    load_official,
    num_official_tasks,
    official_size,
    official_weights,
    save_official,
)
from torchrl_tdmpc.checkpoints.replay_log import ReplayLog, Segment
from torchrl_tdmpc.checkpoints.run import find_checkpoint, resume_run, save_run

__all__ = [
    "ActorsState",
    "CollectorState",
    "SavedMemory",
    "FolderLock",
    "OfficialAgent",
    "ReplayLog",
    "Segment",
    "find_checkpoint",
    "load_checkpoint",
    "load_official",
    "newest_checkpoint",
    "num_official_tasks",
    "official_size",
    "official_weights",
    "read_metadata",
    "resume_run",
    "save_checkpoint",
    "save_official",
    "save_run",
]
