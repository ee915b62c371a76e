"""A collector in the middle of its episodes, saved and restored."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torchrl.collectors import BaseCollector, Collector

from torchrl_tdmpc.envs import (
    env_memory,
    env_state,
    has_lost_processes,
    set_env_memory,
    set_env_state,
    why_no_state,
)
from torchrl_tdmpc.torchrl_series import carried_data

__all__ = ["ActorsState", "CollectorState", "SavedMemory"]


class CollectorState:
    """A collector and the environments that it is in the middle of, for a checkpoint.

    On top of what TorchRL's collector saves of itself (its counters and its transforms) these are
    the environments' states, what they remember across episodes, and the data it carries from step
    to step: observations, the planner's warm start, returns and lengths so far, trajectory ids. The
    next id goes on from the saved collector's, so that a replay takes no new trajectory for an old
    one.

    Args:
        collector: of environments that :func:`torchrl_tdmpc.envs.env_state` understands, or not.

    Attributes:
        env: the collector's, which it lets go of when it shuts down.
        failed: set it when a step failed, and the environments are not saved any more.
        restarted: whether the environments of the state that was loaded had not been saved. They
            begin new episodes, from seeds of their own; the open ones do not go on.
    """

    def __init__(self, collector: Collector):
        self.collector = collector
        self.env = collector.env
        self.failed = self.restarted = False
        self._warned = False
        self._memory: list[dict[str, Any]] | None = None

    @property
    def memory(self) -> list[dict[str, Any]] | None:
        """What each environment remembers across episodes; the last known, where it has ended."""
        if not (self.failed or self.collector.closed or has_lost_processes(self.env)):
            self._memory = env_memory(self.env)
        return self._memory

    def state_dict(self) -> dict[str, Any]:
        """The state; without environments if they or the collector cannot tell theirs in full."""
        has_ended = self.failed or self.collector.closed
        if has_ended:
            self.collector.env = self.env
        state = dict(self.collector.state_dict())
        state.pop("policy_state_dict", None)  # saved with the losses
        environments = None if has_ended else env_state(self.env)
        carried = carried_data(self.collector)
        reason = None if has_ended or environments is not None else why_no_state(self.env)
        # Other kinds of environments never tell their state, which the documentation says
        if reason is not None and reason.startswith("of the task") and not self._warned:
            self._warned = True
            warnings.warn(
                f"the checkpoints hold no environments ({reason}); a run that is "
                "resumed truncates the open episodes.",
                stacklevel=2,
            )
        if environments is not None and carried is not None:
            state |= {"environments": environments, "carried": carried.cpu().to_dict()}
        state["memory"] = self.memory
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a new collector where the saved one was, as far as its environments can be put."""
        collector = self.collector
        collector.load_state_dict(state, strict=False)
        carrier = carried_data(collector)
        self.restarted = "environments" not in state or carrier is None
        self._memory = state.get("memory")
        if self.restarted:
            collector.env.set_seed(_next_seed(state["frames"]))
            self._give_memory()
            collector.reset()
        else:
            carrier.update(TensorDict(state["carried"], carrier.batch_size).to(_device(carrier)))
            set_env_state(collector.env, state["environments"])
            self._give_memory()

    def _give_memory(self) -> None:
        if self._memory is not None:
            set_env_memory(self.collector.env, self._memory)


class ActorsState:
    """The same of a collector whose environments step in processes beside the learner.

    They are never saved: a resumed run begins new episodes, and the open ones do not go on.

    Args:
        collector: actors, whose environments remember nothing across episodes. It has
            ``num_frames``, and goes on after so many by ``go_on(frames, seed)``.

    Attributes:
        env: the collector itself, whose processes may fail.
        failed: set it when a step failed.
        restarted: whether a state was loaded.
        memory: None.
    """

    memory = None

    def __init__(self, collector: BaseCollector):
        self.collector = self.env = collector
        self.failed = self.restarted = False

    def state_dict(self) -> dict[str, Any]:
        """How many agent steps there were."""
        return {"frames": self.collector.num_frames, "memory": None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after as many agent steps, with new episodes."""
        self.restarted = True
        self.collector.go_on(state["frames"], _next_seed(state["frames"]))


class SavedMemory:
    """What the first environment of a run remembered across episodes, read from its checkpoint.

    Attributes:
        first: None where it remembered nothing.
    """

    first: dict[str, Any] | None = None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it from the state of a :class:`CollectorState`."""
        memories = state.get("memory")
        self.first = memories[0] if memories else None

    def state_dict(self) -> dict[str, Any]:
        """As it was read."""
        return {"memory": None if self.first is None else [self.first]}


def _next_seed(frames: int) -> int:
    """Not the run's seeds again: they give the episodes that it began with."""
    return int(np.random.SeedSequence([torch.initial_seed(), frames]).generate_state(1)[0])


def _device(carrier: TensorDict) -> torch.device:
    return next(iter(carrier.values(True, True))).device
