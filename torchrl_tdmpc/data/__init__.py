"""What the agent learns from: a replay buffer of H-step slices of finished episodes."""

from __future__ import annotations

from torchrl_tdmpc.data.replay import EpisodeReplay, ReplayError

__all__ = ["EpisodeReplay", "ReplayError"]
