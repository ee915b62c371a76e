"""What the official implementation derives from the length of an episode."""

from __future__ import annotations

__all__ = ["discount_heuristic", "is_due", "seed_steps"]


def discount_heuristic(episode_length: int, maximum: float = 0.995) -> float:
    """Discount factor for episodes of T agent steps: ``clip((T/5 - 1) / (T/5), 0.95, maximum)``.

    Source: appendix on hyper-parameters, arXiv 2310.16828.

    Examples:
        >>> discount_heuristic(500)
        0.99
        >>> discount_heuristic(1000), discount_heuristic(1000, maximum=0.99)
        (0.995, 0.99)
    """
    fifth = episode_length / 5
    return min(max((fifth - 1) / fifth, 0.95), maximum)


def seed_steps(episode_length: int, num_envs: int = 1) -> int:
    """Random agent steps before the first update: ``max(1000, 5 episodes)``, as published.

    Agent steps are summed over environments. Where there are more than five, each one still
    finishes an episode, because only finished episodes are learned from.

    Examples:
        >>> seed_steps(500), seed_steps(100), seed_steps(500, num_envs=16)
        (2500, 1000, 8000)
    """
    return max(1000, max(5, num_envs) * episode_length)


def is_due(interval: int, before: int, now: int) -> bool:
    """Whether a multiple of ``interval`` was reached after ``before`` and by ``now``.

    Examples:
        >>> is_due(10, 8, 12), is_due(10, 10, 12)
        (True, False)
    """
    return now // interval > before // interval
