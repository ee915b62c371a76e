"""What may come of a bad input, and how often it did."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from torchrl_tdmpc.cli.failures import in_one_sentence

REFUSED = "refused in one sentence"
TRACEBACK = "traceback"
ACCEPTED = "accepted, with right results"
WRONG = "accepted, with other results"
HANG = "hang or orphan"
OUTCOMES = (REFUSED, ACCEPTED, TRACEBACK, WRONG, HANG)


@dataclass
class Trial:
    """One kind of badness: tried until its number or its time is used up.

    Args:
        name: what is tried.
        number: how often at most.
        generator: of every choice.
        deadline: when to end, by ``time.monotonic()``.
    """

    name: str
    number: int
    generator: random.Random
    deadline: float
    counts: Counter[str] = field(default_factory=Counter)
    found: list[str] = field(default_factory=list)

    @property
    def goes_on(self) -> bool:
        """Whether there is another one to try."""
        return sum(self.counts.values()) < self.number and time.monotonic() < self.deadline

    def add(self, what: str, outcome: str, detail: str = "", more: str = "") -> None:
        """Count an outcome; what should not have come is kept to be told.

        Args:
            what: the bad input.
            outcome: what came of it.
            detail: said beside it, in short.
            more: said below it, in full: where a program hangs.
        """
        self.counts[outcome] += 1
        if outcome in (TRACEBACK, WRONG, HANG):
            line = f"{self.name}: {what}: {outcome} {detail}"[:300]
            self.found.append(f"{line}\n{more}".rstrip())

    def attempt(self, what: str, function: Callable[[], bool]) -> None:
        """Call a function as a command does, which says whether its result is right.

        Args:
            what: the bad input, for the report.
            function: returns True for a right result; whatever it raises is judged.
        """
        try:
            with in_one_sentence():
                is_right = function()
        except SystemExit as error:
            message = str(error)
            is_sentence = message.startswith("error: ") and "\n" not in message
            self.add(what, REFUSED if is_sentence else TRACEBACK, message)
        except Exception as error:
            self.add(what, TRACEBACK, f"{type(error).__name__}: {error}")
        else:
            self.add(what, ACCEPTED if is_right else WRONG)


def table(trials: list[Trial]) -> str:
    """The counts of all trials, in Markdown."""
    rows = [["", *OUTCOMES], ["---"] * (1 + len(OUTCOMES))]
    rows += [[trial.name, *(str(trial.counts[o]) for o in OUTCOMES)] for trial in trials]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
