"""The three functions that rewards are made of, all with values in [0, 1]."""

from __future__ import annotations

__all__ = ["clip", "down", "up"]


def up(x: float, bound: float, margin: float) -> float:
    """1 from ``bound`` on, and a Gaussian slope below: 0.1 at ``bound - margin``.

    Examples:
        >>> up(2.0, 1.0, 0.5), up(0.5, 1.0, 0.5)
        (1.0, 0.1)
    """
    return 1.0 if x >= bound else 0.1 ** (((bound - x) / margin) ** 2)


def down(x: float, bound: float, margin: float) -> float:
    """1 up to ``bound``, and a Gaussian slope above: 0.1 at ``bound + margin``.

    Examples:
        >>> down(0.5, 1.0, 0.5), down(1.5, 1.0, 0.5)
        (1.0, 0.1)
    """
    return 1.0 if x <= bound else 0.1 ** (((x - bound) / margin) ** 2)


def clip(x: float) -> float:
    """``x`` within [0, 1]: a linear slope.

    Examples:
        >>> clip(-0.5), clip(0.25), clip(7.0)
        (0.0, 0.25, 1.0)
    """
    return min(max(x, 0.0), 1.0)
