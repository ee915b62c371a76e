"""How one update runs and what a run saves: update step, evaluation, checkpoints, logging."""

from torchrl_tdmpc.training.update import TDMPC2Update

__all__ = ["TDMPC2Update"]
