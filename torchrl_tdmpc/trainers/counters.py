"""How far a run is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

__all__ = ["Counters"]


@dataclass
class Counters:
    """How far a run is.

    What is due follows from the differences: updates from agent steps and updates, an evaluation or
    a checkpoint from the last one. So a run that ends between any two updates goes on there.

    Attributes:
        agent_steps: actions chosen, summed over environments.
        updates: updates done.
        evaluated: agent steps at the last evaluation.
        saved: agent steps at the last checkpoint; -1 before the first, which is due at 0.
        nan_values: of the last plan, for the log.
        utd: updates for each agent step.

    Raises:
        ValueError: ``utd`` is not more than 0 and finite.

    Examples:
        >>> [Counters(agent_steps=steps, utd=0.29).updates_due for steps in (3, 4, 100)]
        [0, 1, 29]
    """

    agent_steps: int = 0
    updates: int = 0
    evaluated: int = 0
    saved: int = -1
    nan_values: Tensor = field(default_factory=lambda: torch.zeros(()))
    utd: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.utd < math.inf:
            raise ValueError(f"utd is {self.utd}; it must be more than 0 and finite.")

    @property
    def updates_due(self) -> int:
        """Updates that are still to do for the agent steps so far, exact for a decimal ``utd``."""
        return math.floor(Fraction(str(self.utd)) * self.agent_steps) - self.updates

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the counts of another run.

        Raises:
            ValueError: that run had another ``utd``.
        """
        recorded = state.get("utd", 1.0)  # before there was a choice
        if self.utd != recorded:
            raise ValueError(
                f"utd is {self.utd}, but {recorded} in the run to be resumed; resume it with its "
                "own."
            )
        vars(self).update(state)
