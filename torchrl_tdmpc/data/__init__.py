"""What the agent learns from: a replay buffer of H-step slices, and episodes on disk."""

from __future__ import annotations

from torchrl_tdmpc.data.dataset import (
    DatasetError,
    EpisodeFiles,
    stored_episodes,
    write_episodes,
)
from torchrl_tdmpc.data.joining import join_datasets, named_tasks, split_dataset
from torchrl_tdmpc.data.replay import EpisodeReplay, ReplayError
from torchrl_tdmpc.data.storage import minari_episodes, storage_episodes
from torchrl_tdmpc.data.stream import EpisodeStream

__all__ = [
    "DatasetError",
    "EpisodeFiles",
    "EpisodeReplay",
    "EpisodeStream",
    "ReplayError",
    "join_datasets",
    "minari_episodes",
    "named_tasks",
    "split_dataset",
    "storage_episodes",
    "stored_episodes",
    "write_episodes",
]
