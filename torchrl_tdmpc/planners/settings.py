"""What the numbers of a planner may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

__all__ = ["LIMITS", "default_iterations", "refuse_settings"]

# The least whole number (None for a positive number of any kind) and the largest, which may be
# that of another setting
LIMITS: dict[str, tuple[int | None, float | str]] = {
    "horizon": (1, 1000),
    "iterations": (1, 1000),
    "num_samples": (1, 1_000_000),
    "num_elites": (1, "num_samples"),
    "num_pi_trajs": (0, "num_samples"),
    "max_std": (None, 100),
    "min_std": (None, "max_std"),
    "temperature": (None, 1_000_000),
}


def default_iterations(action_dim: int) -> int:
    """The published number of refinements of a plan: 6, or 8 from 20 action dimensions on."""
    return 6 if action_dim < 20 else 8


def refuse_settings(settings: Mapping[str, Any]) -> None:
    """Refuse numbers that no plan can be made with.

    Args:
        settings: any of those in ``LIMITS``.

    Raises:
        ValueError: the first one that is no number of its kind, or out of its range.

    Examples:
        >>> refuse_settings({"num_samples": 24, "num_elites": 25})
        Traceback (most recent call last):
        ValueError: num_elites is 25; it must be a whole number from 1 to num_samples = 24.
    """
    for name, value in settings.items():
        least, most = LIMITS[name]
        largest = settings.get(most, math.inf) if isinstance(most, str) else most
        shown = f"{most} = {largest}" if isinstance(most, str) else f"{most:,}"
        if least is None:
            holds = _is(Real, value) and 0 < value <= largest
            allowed = f"positive and at most {shown}"
        else:
            holds = _is(Integral, value) and least <= value <= largest
            allowed = f"a whole number from {least} to {shown}"
        if not holds:
            raise ValueError(f"{name} is {value!r}; it must be {allowed}.")


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
