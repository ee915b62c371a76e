"""The update for TorchRL's own trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensordict import TensorDictBase
from torchrl.trainers.trainers import OptimizationStepper, Trainer

from torchrl_tdmpc.trainers.update import TDMPC2Update

__all__ = ["UpdateStepper"]


class UpdateStepper(OptimizationStepper):
    """Lets a :class:`torchrl.trainers.Trainer` do :class:`TDMPC2Update` in the published order.

    Give it to the trainer as ``optimization_stepper``, with ``update.loss`` as ``loss_module`` and
    without an optimizer: the update owns its two optimizers, its clipping and its targets.
    ``examples/stock_trainer.py`` is a whole run.

    Args:
        update: the update.
    """

    def __init__(self, update: TDMPC2Update):
        self.update = update

    def step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        """Do one update with consecutive transitions ``[B, H]``.

        Returns:
            The update's metrics, detached scalars.
        """
        return self.update(sub_batch)

    def state_dict(self) -> dict[str, Any]:
        """Losses and optimizers, for the trainer's checkpoints."""
        return {name: part.state_dict() for name, part in self.update.components.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from there."""
        for name, part in self.update.components.items():
            part.load_state_dict(state_dict[name])
