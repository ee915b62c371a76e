"""What a run tells those who listen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

__all__ = ["Callbacks"]


class Callbacks:
    """The callbacks of one run, called in their order.

    A callback is an object with any of these methods. Each gets the trainer, and what happened:

    ======================= ====================================================================
    ``on_begin``            nothing more; once, when the run begins or goes on
    ``on_collect``          the TensorDict ``[num_envs, 1]`` of the steps that were collected
    ``on_update``           the TensorDict of the update's metrics, scalars on their device;
                            entries named in the callback's ``metric_names`` may be added
    ``on_episode``          the row of a training episode that ended, a dict
    ``on_updates``          without training environments: the row of some updates, a dict
    ``on_evaluation_begin`` the evaluation environments, before they are reset
    ``on_evaluation_step``  nothing more; after each step of an evaluation
    ``on_evaluation``       the row of the evaluation, a dict; of several tasks, the row of each
    ``on_checkpoint``       the path of the checkpoint that was written
    ``on_end``              nothing more; once, however the run ends
    ======================= ====================================================================

    A callback with ``state_dict`` and ``load_state_dict`` is in the checkpoint.
    ``trainer.stop()`` ends the run.

    Args:
        callbacks: the objects.

    Raises:
        TypeError: an object without any of the methods.

    Examples:
        >>> class PrintReturn:
        ...     def on_episode(self, trainer, row):
        ...         print(row["return"])
        >>> Callbacks([PrintReturn()]).on_episode(None, {"return": 12.5})
        12.5
    """

    EVENTS = (
        "on_begin",
        "on_collect",
        "on_update",
        "on_episode",
        "on_updates",
        "on_evaluation_begin",
        "on_evaluation_step",
        "on_evaluation",
        "on_checkpoint",
        "on_end",
    )

    def __init__(self, callbacks: Iterable[Any] = ()):
        self._callbacks: list[Any] = []
        for callback in callbacks:
            self.append(callback)

    def append(self, callback: Any) -> None:
        """Add a callback behind the others."""
        if not any(hasattr(callback, event) for event in self.EVENTS):
            raise TypeError(
                f"{type(callback).__name__} is no callback; it must have one of the methods "
                f"{', '.join(self.EVENTS)}."
            )
        self._callbacks.append(callback)

    def __getattr__(self, event: str) -> Any:
        if event not in Callbacks.EVENTS:
            raise AttributeError(event)

        def call(*what: Any) -> None:
            for callback in self._callbacks:
                if (method := getattr(callback, event, None)) is not None:
                    method(*what)

        return call

    @property
    def metric_names(self) -> list[str]:
        """The metrics that callbacks add to those of an update."""
        return [n for callback in self._callbacks for n in getattr(callback, "metric_names", ())]

    @property
    def components(self) -> dict[str, Any]:
        """What a checkpoint holds of them: by class, with ``#2``, ``#3`` where one repeats."""
        seen: Counter[str] = Counter()
        found = {}
        for callback in self._callbacks:
            if hasattr(callback, "state_dict"):
                name = type(callback).__name__
                seen[name] += 1
                found[name if seen[name] == 1 else f"{name}#{seen[name]}"] = callback
        return found
