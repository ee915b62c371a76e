"""Each observation is stored once: how a step is taken apart, and a slice put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor


class Frames:
    """Observations as stacks of K frames, of which a step brings one new.

    A vector is a stack of one frame: K is 1. A slice of H steps is then made from H + K
    transitions, each with the newest frame of the observation that its step led to. TorchRL's
    ``compact_obs`` and ``NextStateReconstructor`` also store an observation once, but drop the one
    after the last step of a trajectory, from which TD-MPC2 bootstraps at a time limit, and know no
    stacks.

    Args:
        observation_keys: the observations, at the root and under
            ``"next"``.
        channels: channels of one frame, where the one observation is a stack of
            frames ``[K * channels, height, width]``, newest last; None for anything else.

    Attributes:
        num_frames: K; 0 until the first stack is seen.
    """

    def __init__(self, observation_keys: Sequence[NestedKey], channels: int | None):
        self.keys = list(observation_keys)
        self.channels = channels
        self.num_frames = 1 if channels is None else 0
        # Known from the first stack: the type of its frames, and the one that they are stored as,
        # the widest that fits a row of pixels: single bytes are gathered several times more slowly
        self._dtype = self._stored_dtype = None

    def measure(self, data: TensorDictBase) -> None:
        """Refuse what is no stack, or not the last one moved on by a frame.

        Args:
            data: ``[M]`` steps. Of the first ones K becomes known.

        Raises:
            ValueError: the observation has another shape, or does not move on by a frame.
        """
        if self.channels is None:
            return
        key, channels = self.keys[0], self.channels
        stacks = data[key]
        if stacks.ndim != 4 or stacks.shape[1] % channels:
            raise ValueError(
                f"{key!r} has shape {list(stacks.shape[1:])}; with frame_channels {channels} it "
                f"must be [a multiple of {channels}, height, width]."
            )
        if not (data["next", key][:, :-channels] == stacks[:, channels:]).all():
            raise ValueError(
                f"{key!r} is not a stack of frames of {channels} channels, newest last: a next one "
                "does not continue it by one frame."
            )
        if not self.num_frames:
            self.num_frames, self._dtype = stacks.shape[1] // channels, stacks.dtype
            bytes_in_row = stacks.shape[-1] * stacks.element_size()
            self._stored_dtype = stacks.dtype if bytes_in_row % 8 else torch.int64

    def split(self, data: TensorDictBase) -> tuple[TensorDict, TensorDictBase]:
        """Take steps apart.

        Args:
            data: ``[M]`` steps.

        Returns:
            The K frames ``[M, K]`` that each begins with, and transitions ``[M]``: at the root the
            newest frame of what each led to, and all entries that are no observation.
        """
        histories = TensorDict(batch_size=[len(data), self.num_frames], device=data.device)
        transitions = data.exclude(*self.keys, *(_next(key) for key in self.keys))
        for key in self.keys:
            first, following = data[key], data[_next(key)]
            if self.channels is None:
                histories[key], transitions[key] = first.unsqueeze(1), following
            else:
                first = first.unflatten(1, (self.num_frames, self.channels))
                histories[key] = first.contiguous().view(self._stored_dtype)
                newest = following[:, -self.channels :].contiguous()
                transitions[key] = newest.view(self._stored_dtype)
        return histories, transitions

    def join(self, transitions: TensorDictBase) -> TensorDictBase:
        """Slices ``[B, H]`` from transitions ``[B, H + K]``.

        A frame that is in several stacks is not copied.
        """
        slices = transitions[:, self.num_frames :]
        for key in self.keys:
            stacks = self._stacks(transitions[key])  # [B, H + 1, ...]
            slices[key], slices[_next(key)] = stacks[:, :-1], stacks[:, 1:]
        return slices.contiguous() if self.channels is None else slices

    def state_dict(self) -> dict[str, Any]:
        """What the first stack told."""
        return {name: getattr(self, name) for name in ("num_frames", "_dtype", "_stored_dtype")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As if that stack had been seen here."""
        vars(self).update(state)

    def _stacks(self, frames: Tensor) -> Tensor:
        """``[B, H + K, channels, ...]`` as ``[B, H + 1, K * channels, ...]``."""
        if self.channels is None:
            return frames
        stacks = frames.view(self._dtype).unfold(1, self.num_frames, 1)
        return stacks.movedim(-1, 2).flatten(2, 3)


def _next(key: NestedKey) -> tuple[str, ...]:
    return ("next", key) if isinstance(key, str) else ("next", *key)
