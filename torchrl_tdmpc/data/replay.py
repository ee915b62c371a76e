"""A replay buffer that hands out H-step slices of finished episodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.utils import unravel_key
from torch import Tensor
from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer


class ReplayError(RuntimeError):
    """What the environments sent cannot be learned from."""


class EpisodeReplay:
    """Remembers finished episodes and samples slices of H consecutive steps from them.

    The steps of an unfinished episode wait outside the storage, one list per environment. When the
    episode ends (terminated or truncated) it is written to a ring of ``capacity`` steps in one
    piece. So the steps of an episode lie side by side, its last step is the one that says
    ``done``, and whatever the ring has left of an overwritten episode ends in the same way: no
    slice ever crosses an episode or an environment, and nothing but a write moves a boundary, which
    is why the sampler may keep its index between writes.

    Slices are drawn with replacement: first an episode, uniformly, then one of its H-step windows,
    uniformly. Every draw comes from torch's global generator (of the storage's device).

    Args:
        capacity (int): places in the ring, one for each step; the oldest are overwritten.
        horizon (int): steps in a slice, H.
        batch_size (int): slices in a batch, B.
        device (torch.device or str): where the storage lives.
        observation_keys (sequence of NestedKey): the entries of the environment to keep, at the
            root and under ``"next"``.
        action_key (NestedKey): the action's entry.
        frame_channels (int, optional): given when the one observation is a stack of K frames of so
            many channels each, ``[K * frame_channels, height, width]``, newest last. Each frame is
            then stored once: an episode of T steps takes T + K places of the ring, the K frames of
            its first observation and the newest frame of every next one. At 3 x 64 x 64 bytes a
            frame, an episode of 500 steps takes 12.4 kB a step (not 73.8). Slices are the same.
        episodic (bool): whether episodes may terminate; a model without a termination head cannot
            learn from those that do.

    Attributes:
        num_steps (int): steps given to :meth:`extend` so far, all environments together.
        num_short_episodes (int): finished episodes of fewer than H steps. They hold no slice and
            are dropped.
        num_written (int): places written so far, the overwritten ones too. The ring is a function
            of what was written, in order: place number ``i`` went to ``i % capacity``.

    Raises:
        ValueError: if ``horizon``, ``batch_size`` or ``frame_channels`` is less than 1, if
            ``capacity`` is less than a slice takes, or if there are frames and several
            ``observation_keys``.

    Examples:
        >>> from torchrl.envs import StepCounter, TransformedEnv
        >>> from torchrl.testing.mocking_classes import ContinuousActionVecMockEnv
        >>> env = TransformedEnv(ContinuousActionVecMockEnv(), StepCounter(20))
        >>> replay = EpisodeReplay(capacity=1000, horizon=3, batch_size=4)
        >>> replay.extend(env.rollout(20).unsqueeze(0))  # one environment, 20 steps: an episode
        1
        >>> replay.sample()["next", "reward"].shape
        torch.Size([4, 3, 1])
    """

    def __init__(
        self,
        *,
        capacity: int,
        horizon: int,
        batch_size: int,
        device: torch.device | str = "cpu",
        observation_keys: Sequence[NestedKey] = ("observation",),
        action_key: NestedKey = "action",
        frame_channels: int | None = None,
        episodic: bool = True,
    ):
        if horizon < 1:
            raise ValueError(f"horizon {horizon} is too short for a slice; choose at least 1.")
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is too small; choose at least 1.")
        if frame_channels is not None and (frame_channels < 1 or len(observation_keys) != 1):
            raise ValueError(
                f"frame_channels {frame_channels} with observation_keys {list(observation_keys)}; "
                "choose at least 1 channel, and one key."
            )
        self.capacity = capacity
        self.horizon = horizon
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.frame_channels = frame_channels
        self.episodic = episodic
        self.num_steps = 0
        self.num_short_episodes = 0
        self.num_written = 0
        following = (*observation_keys, "reward", "terminated", "done")
        self._keys = [
            *map(unravel_key, (*observation_keys, action_key)),
            *(unravel_key(("next", key)) for key in following),
        ]
        self._pending: list[list[TensorDictBase]] = []  # per environment: pieces of its episode
        # Known from the first stack: its frames, their type, and the type that they are stored as,
        # the widest that fits a row of pixels: single bytes are gathered several times more slowly
        self._num_frames = 0
        self._frame_dtype = self._stored_dtype = None
        self._make_buffer()

    def _make_buffer(self) -> None:
        """An empty ring, and the sampler of slices of it: H places, or H + K with frames."""
        slice_len = self.horizon + self._num_frames
        self._least = max(slice_len, 2)  # TorchRL's sampler cannot index a storage of one step
        if self.capacity < self._least:
            raise ValueError(
                f"replay.capacity {self.capacity} cannot hold a slice of {self.horizon} steps; "
                f"choose at least {self._least}."
            )
        self._buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(self.capacity, device=self.device),
            sampler=SliceSampler(
                slice_len=slice_len,
                end_key=("next", "done"),
                strict_length=True,
                cache_values=True,
                init_key=None,
                truncated_key=None,
            ),
            batch_size=self.batch_size * slice_len,
        )

    @property
    def num_transitions(self) -> int:
        """Places taken: steps of finished episodes, and with frames K more for each episode."""
        return len(self._buffer)

    @property
    def num_pending(self) -> int:
        """Places that the unfinished episodes will take, which wait outside the storage."""
        return sum(len(piece) for pieces in self._pending for piece in pieces)

    def extend(self, data: TensorDictBase) -> int:
        """Takes the steps that a collector returned.

        Args:
            data (TensorDictBase): ``[num_envs, T]`` consecutive steps of each environment, in
                TorchRL's root/next layout. Entries other than those kept are ignored.

        Returns:
            int: how many episodes finished.

        Raises:
            ValueError: if ``data`` has another shape, or the number of environments changes.
            FloatingPointError: if an entry to be kept is NaN or infinite. Nothing is stored then.
            ReplayError: if an episode terminated although ``episodic`` is false.
        """
        if data.ndim != 2:
            raise ValueError(f"Expected data of shape [num_envs, T], got {list(data.shape)}.")
        data = data.select(*self._keys).clone().to(self.device)  # a collector may reuse its own
        self._pending = self._pending or [[] for _ in range(data.shape[0])]
        if len(self._pending) != data.shape[0]:
            raise ValueError(
                f"The data come from {data.shape[0]} environments, but the episodes begun here "
                f"from {len(self._pending)}; one replay serves one number of environments."
            )
        self._check_finite(data)
        if self.frame_channels is not None:
            self._check_stacks(data)
        self._check_terminations(data)
        self.num_steps += data.numel()

        num_finished = 0
        for pieces, steps in zip(self._pending, data.unbind(0), strict=True):
            begin = 0
            for end in steps["next", "done"].flatten().nonzero().flatten().tolist():
                pieces.append(self._places(steps[begin : end + 1], is_first=not pieces))
                self._store(torch.cat(pieces))
                pieces.clear()
                num_finished += 1
                begin = end + 1
            if begin < len(steps):
                pieces.append(self._places(steps[begin:], is_first=not pieces))
        return num_finished

    def sample(self) -> TensorDict:
        """Draws a batch of slices.

        Returns:
            TensorDict: ``[B, H]`` with the observations (s_t), the action (a_t) and ``"next"``: the
            observations (s_{t+1}), ``reward``, ``terminated`` and ``done`` (``[B, H, 1]``).

        Raises:
            ReplayError: if no episode of at least H steps has finished yet.
        """
        if self.num_transitions < self._least:
            raise ReplayError(
                f"No slice of {self.horizon} steps can be sampled yet: finished episodes left "
                f"{self.num_transitions} steps in storage ({self.num_short_episodes} were shorter "
                f"than {self.horizon}) and unfinished ones have {self.num_pending}; "
                f"collect at least {self._least} in one episode, by a larger train.seed_steps "
                "or a shorter planner.horizon."
            )
        slices = self._buffer.sample().select(*self._keys, strict=False)
        slices = slices.reshape(self.batch_size, -1)
        return slices if self.frame_channels is None else self._stacked(slices)

    def truncate(self) -> int:
        """Ends the open episodes where they are, as truncated ones.

        Returns:
            int: number of episodes that were open.
        """
        open_episodes = [torch.cat(pieces) for pieces in self._pending if pieces]
        for episode in open_episodes:
            episode["next", "done"][-1] = True
            self._store(episode)
        self._pending = []
        return len(open_episodes)

    def written(self, begin: int) -> TensorDictBase:
        """The places in storage from number ``begin`` to the newest, ``[num_written - begin]``.

        Raises:
            ValueError: if number ``begin`` is overwritten or not written yet.
        """
        if not self.num_written - len(self._buffer) <= begin < self.num_written:
            raise ValueError(f"Place number {begin} is not in storage.")
        return self._buffer[torch.arange(begin, self.num_written) % self.capacity]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the places in storage: counters, and the unfinished episodes."""
        return {
            "num_steps": self.num_steps,
            "num_short_episodes": self.num_short_episodes,
            "num_written": self.num_written,
            "frames": (self._num_frames, self._frame_dtype, self._stored_dtype),
            "pending": [torch.cat(p).to_dict() if p else None for p in self._pending],
        }

    def load_state_dict(self, state: dict[str, Any], begin: int, pieces: Iterable[Any]) -> None:
        """Fills an empty replay: afterwards it draws what the saved one would have drawn.

        Args:
            state (dict): what :meth:`state_dict` returned.
            begin (int): the number of the first place in ``pieces``.
            pieces (iterable of TensorDictBase): what :meth:`written` returned at one time and
                another: all that was in storage, oldest first, without gaps.

        Raises:
            ValueError: if the pieces do not reach from the oldest place in storage to the newest.
        """
        oldest = max(0, state["num_written"] - self.capacity)
        self._num_frames, self._frame_dtype, self._stored_dtype = state["frames"]
        self._make_buffer()
        writer = self._buffer.writer
        writer.load_state_dict(writer.state_dict() | {"_cursor": begin % self.capacity})
        self.num_written = begin
        for piece in pieces:
            self._write(piece)
        if begin > oldest or self.num_written != state["num_written"]:
            raise ValueError(
                f"Places {begin} to {self.num_written} do not cover those in storage, {oldest} to "
                f"{state['num_written']}."
            )
        self.num_steps = state["num_steps"]
        self.num_short_episodes = state["num_short_episodes"]
        self._pending = [[] if p is None else [_steps(p).to(self.device)] for p in state["pending"]]

    def _places(self, steps: TensorDictBase, *, is_first: bool) -> TensorDictBase:
        """What steps ``[T]`` of one episode take in the ring: ``[T]``, or ``[K + T]`` at its start.

        With frames, a place has one frame and the step that led to it, so that ``done`` stands with
        the last frame. The places of the K frames of the first observation have no such step.
        """
        if self.frame_channels is None:
            return steps
        key = self._keys[0]
        places = steps.exclude(("next", key))
        places[key] = steps["next", key][:, -self.frame_channels :].view(self._stored_dtype)
        if is_first:
            before = torch.zeros_like(places[:1]).expand(self._num_frames).clone()
            first = steps[key][0].unflatten(0, (self._num_frames, self.frame_channels))
            before[key] = first.view(self._stored_dtype)
            places = torch.cat([before, places])
        return places

    def _stacked(self, places: TensorDictBase) -> TensorDictBase:
        """Slices ``[B, H]`` from places ``[B, H + K]``; a frame in several stacks is not copied."""
        key, num_frames = self._keys[0], self._num_frames
        frames = places[key].view(self._frame_dtype)
        stacks = frames.unfold(1, num_frames, 1).movedim(-1, 2).flatten(2, 3)  # [B, H + 1, ...]
        slices = places[:, num_frames:]
        slices[key], slices["next", key] = stacks[:, :-1], stacks[:, 1:]
        return slices

    def _store(self, episode: TensorDictBase) -> None:
        """Writes a finished episode; of one longer than the ring, the end remains."""
        if len(episode) < self.horizon + self._num_frames:
            self.num_short_episodes += 1
        else:
            self._write(episode[-self.capacity :])  # once to a place: the order is undefined

    def _write(self, places: TensorDictBase) -> None:
        self._buffer.extend(places.to(self.device))
        self.num_written += len(places)

    def _check_stacks(self, data: TensorDictBase) -> None:
        """Refuses observations that are not stacks, or not the last ones moved on by a frame."""
        stacks, key, channels = data[self._keys[0]], self._keys[0], self.frame_channels
        if stacks.ndim != 5 or stacks.shape[2] % channels:
            raise ValueError(
                f"{key!r} has shape {list(stacks.shape[2:])}; with frame_channels {channels} it "
                f"must be [a multiple of {channels}, height, width]."
            )
        if not (data["next", key][:, :, :-channels] == stacks[:, :, channels:]).all():
            raise ValueError(
                f"{key!r} is not a stack of frames of {channels} channels, newest last: a next one "
                "does not continue it by one frame."
            )
        if not self._num_frames:
            self._num_frames, self._frame_dtype = stacks.shape[2] // channels, stacks.dtype
            bytes_in_row = stacks.shape[-1] * stacks.element_size()
            self._stored_dtype = stacks.dtype if bytes_in_row % 8 else torch.int64
            self._make_buffer()

    def _check_finite(self, data: TensorDictBase) -> None:
        """Names the first agent step of ``data`` ``[num_envs, T]`` that is not finite."""
        for key in self._keys:
            bad = ~data[key].isfinite().reshape(*data.shape, -1).all(-1)
            if bad.any():
                raise FloatingPointError(
                    f"{key!r} contains NaN or infinity {self._place_of_first(bad)}."
                )

    def _check_terminations(self, data: TensorDictBase) -> None:
        terminated = data["next", "terminated"].reshape(data.shape)
        if terminated.any() and not self.episodic:
            raise ReplayError(
                f"An episode terminated {self._place_of_first(terminated)}, but env.episodic is "
                "false; set it to true, and the model learns to predict terminations."
            )

    def _place_of_first(self, flags: Tensor) -> str:
        """Where in ``[num_envs, T]`` steps a flag is set first."""
        time, env = flags.T.nonzero()[0].tolist()
        agent_step = self.num_steps + time * len(flags) + env + 1
        return f"at agent step {agent_step}, in environment {env}"


def _steps(entries: dict[str, Any]) -> TensorDict:
    """Nested tensors ``[T, ...]`` as a TensorDict ``[T]``."""
    return TensorDict(entries).auto_batch_size_(1)
