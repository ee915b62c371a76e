"""What the agent remembers: a replay buffer of H-step slices of finished episodes."""

from __future__ import annotations

from torchrl_tdmpc.data.replay import EpisodeReplay, ReplayError
from torchrl_tdmpc.data.replay_log import ReplayLog, Segment

__all__ = ["EpisodeReplay", "ReplayError", "ReplayLog", "Segment"]
