"""Whether episodes are as long as the time limit says."""

from __future__ import annotations

from collections.abc import Mapping

from tensordict import TensorDictBase


class Limit:
    """Compares the first episode that is truncated with the limit, and then nothing more.

    Limits count steps of many kinds, and not every one can be read. A wrong one would give a wrong
    discount and a wrong warm-up without a word.

    Args:
        name: the task's name, for the messages.
        steps: the limit, in agent steps.
        is_declared: whether the environment itself says that it truncates there. Otherwise it was
            asked for, and the environment may not truncate before.

    Attributes:
        agent_steps: of the open episode; negative: not compared, because its beginning is unknown
            or an earlier one was as long as it had to be.
    """

    def __init__(self, name: str, steps: int, *, is_declared: bool):
        self.name, self.steps, self.is_declared = name, steps, is_declared
        self.has_held = False
        self.agent_steps = -1

    def begin(self) -> None:
        """An episode begins."""
        if not self.has_held:
            self.agent_steps = 0

    def count(self, data: TensorDictBase) -> None:
        """Count a step.

        Args:
            data: what it gave: the flags ``done`` and ``terminated``.

        Raises:
            ValueError: the environment truncated the episode elsewhere, or goes on.
        """
        if self.agent_steps < 0:
            return
        self.agent_steps = steps = self.agent_steps + 1
        if not data.get("done").item():
            if steps >= self.steps:
                raise ValueError(
                    f"task {self.name!r} declares a limit of {self.steps} agent steps, but its "
                    f"episode goes on after them; choose episode_length {self.steps}, which "
                    "truncates it there."
                )
        elif not data.get("terminated").item():
            if steps < self.steps:
                raise ValueError(self._early(steps))
            self.has_held = True
            self.agent_steps = -1

    def state_dict(self) -> dict[str, int]:
        """How long the open episode is."""
        return {"agent_steps": self.agent_steps}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on counting from there."""
        self.agent_steps = state["agent_steps"]

    def _early(self, steps: int) -> str:
        if self.is_declared:
            return (
                f"task {self.name!r} declares a limit of {self.steps} agent steps, but truncated "
                f"its first episode after {steps}; choose episode_length {steps}."
            )
        return (
            f"episode_length is {self.steps}, but task {self.name!r} truncated its first episode "
            f"after {steps} agent steps; choose {steps}, or change the limit that the environment "
            "has of its own."
        )


class BatchLimit(Limit):
    """The same of a batch of environments, whose steps the transform that truncates counts.

    Args:
        name: the task's name, for the messages.
        steps: the limit that was asked for, in agent steps.
    """

    def __init__(self, name: str, steps: int):
        super().__init__(name, steps, is_declared=False)

    def count(self, data: TensorDictBase) -> None:
        """Compare the episodes that a step truncates, until one was as long as it had to be.

        Args:
            data: what the step gave: the flags ``done`` and ``terminated``, and ``_step_count``,
                each ``[N, 1]``.

        Raises:
            ValueError: an environment truncated its episode elsewhere.
        """
        if self.has_held:
            return
        lengths = data.get("_step_count")[data.get("done") & ~data.get("terminated")]
        if lengths.numel() and (steps := int(lengths.min())) < self.steps:
            raise ValueError(self._early(steps))
        self.has_held = bool(lengths.numel())
