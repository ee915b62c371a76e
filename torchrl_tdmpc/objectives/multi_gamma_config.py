"""The settings of the auxiliary value heads, refused in one place when they break a rule."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["MultiGammaConfig"]

PRIMARY = "primary"
MAX_DISCOUNTS = 6


@dataclass(frozen=True)
class MultiGammaConfig:
    """What auxiliary value heads are trained, and how.

    Args:
        enabled: False builds nothing, whatever the rest says.
        gammas: discounts, the primary one first; the word ``"primary"`` stands for its value, and
            may be repeated (a control of capacity). Each one after the first gets a head.
        head: ``"joint"``: one linear layer for all heads; ``"separate"``: one for each.
        loss_weight: weight of each head's loss.
        bootstrap: ``"primary"``: targets bootstrap from the Q-functions; ``"self"``: from an
            exponential average of the head itself.
        detach_latent: keeps the heads' gradients out of encoder and dynamics (a control).
        debug_logging: log more about each evaluation's examples.
        log_num_examples: at most so many examples when ``debug_logging`` is on.

    Raises:
        ValueError: a rule that does not depend on the primary discount is broken.

    Examples:
        >>> MultiGammaConfig(enabled=True, gammas=["primary", 0.97]).discounts(0.99)
        (0.99, 0.97)
        >>> MultiGammaConfig(enabled=False, gammas=["primary", 0.97]).discounts(0.99)
        ()
    """

    enabled: bool = False
    gammas: Sequence[float | str] = ()
    head: Literal["joint", "separate"] = "joint"
    loss_weight: float = 0.5
    bootstrap: Literal["primary", "self"] = "primary"
    detach_latent: bool = False
    debug_logging: bool = False
    log_num_examples: int = 8

    def __post_init__(self):
        is_list = isinstance(self.gammas, Sequence) and not isinstance(self.gammas, str)
        weight, examples = self.loss_weight, self.log_num_examples
        limits = {
            "enabled": (isinstance(self.enabled, bool), "true or false"),
            "gammas": (is_list, "a list, such as [primary, 0.97, 0.995]"),
            "head": (self.head in ("joint", "separate"), "one of joint, separate"),
            "loss_weight": (
                _is_number(weight) and 0 <= weight <= 1e6,
                "a finite number, at least 0 and at most 1,000,000",
            ),
            "bootstrap": (self.bootstrap in ("primary", "self"), "one of primary, self"),
            "detach_latent": (isinstance(self.detach_latent, bool), "true or false"),
            "debug_logging": (isinstance(self.debug_logging, bool), "true or false"),
            "log_num_examples": (
                _is_number(examples) and isinstance(examples, int) and 1 <= examples <= 1_000_000,
                "an integer, at least 1 and at most 1,000,000",
            ),
        }
        for name, (holds, allowed) in limits.items():
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {allowed}.")
        gammas = list(self.gammas)
        if self.enabled and not gammas:
            raise ValueError(
                "gammas is [] although enabled is true; name the primary "
                "discount and others, such as [primary, 0.97, 0.995]."
            )
        if len(gammas) > MAX_DISCOUNTS:
            raise ValueError(
                f"gammas has {len(gammas)} discounts ({gammas}); at most "
                f"{MAX_DISCOUNTS} are allowed, the primary one included."
            )
        for gamma in gammas:
            if gamma != PRIMARY and not (_is_number(gamma) and 0 < gamma < 1):
                raise ValueError(
                    f"gammas has {gamma!r}; a discount is the word primary or lies "
                    "strictly between 0 and 1."
                )

    def discounts(self, primary: float) -> tuple[float, ...]:
        """The discounts as numbers, or none if there is nothing to build.

        Args:
            primary: the discount of the Q-functions.

        Returns:
            The primary discount and those of the heads; empty when off or when there is no other
            (which warns).

        Raises:
            ValueError: the first discount is not the primary one, or a number stands twice.
        """
        if not self.enabled:
            return ()
        discounts = tuple(primary if gamma == PRIMARY else float(gamma) for gamma in self.gammas)
        if abs(discounts[0] - primary) > 1e-6:
            raise ValueError(
                f"gammas begins with {discounts[0]}; the first must be the primary "
                f"discount {primary} (or the word primary)."
            )
        discounts = (primary, *discounts[1:])
        # To six digits, which is how metrics name them
        values = [round(value, 6) for value in discounts]
        numbers = Counter(value for gamma, value in zip(self.gammas, values) if gamma != PRIMARY)
        numbers.update({values[0]} if self.gammas[0] == PRIMARY else ())
        for value, count in numbers.items():
            if count > 1:
                raise ValueError(
                    f"gammas has {value} {count} times ({list(self.gammas)}); only the "
                    "word primary may be repeated."
                )
        if len(discounts) == 1:
            warnings.warn(
                "enabled is true, but gammas has the primary discount "
                "alone: there is no head to train.",
                stacklevel=2,
            )
            return ()
        return discounts


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
