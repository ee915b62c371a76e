"""How far a run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Counters"]


@dataclass
class Counters:
    """How far a run is.

    What is due follows from the differences: updates from ``agent_steps - updates``, an evaluation
    or a checkpoint from the last one. So a run that ends between any two updates goes on there.

    Attributes:
        agent_steps: actions chosen, summed over environments.
        updates: updates done.
        evaluated: agent steps at the last evaluation.
        saved: agent steps at the last checkpoint; -1 before the first, which is due at 0.
        nan_values: of the last plan, for the log.
    """

    agent_steps: int = 0
    updates: int = 0
    evaluated: int = 0
    saved: int = -1
    nan_values: Tensor = field(default_factory=lambda: torch.zeros(()))

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the counts of another run."""
        vars(self).update(state)
