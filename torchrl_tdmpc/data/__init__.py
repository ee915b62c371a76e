"""What the agent learns from: a replay buffer of H-step slices, and episodes on disk."""

from __future__ import annotations

from torchrl_tdmpc.data.dataset import (
    DatasetError,
    EpisodeFiles,
    stored_episodes,
    write_episodes,
)
from torchrl_tdmpc.data.replay import EpisodeReplay, ReplayError

__all__ = [
    "DatasetError",
    "EpisodeFiles",
    "EpisodeReplay",
    "ReplayError",
    "stored_episodes",
    "write_episodes",
]
