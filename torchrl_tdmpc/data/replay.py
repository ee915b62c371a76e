"""A replay buffer that hands out H-step slices of finished episodes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage, ReplayBuffer, SliceSampler

from torchrl_tdmpc.data.checks import StepChecks
from torchrl_tdmpc.data.conversion import convert_steps
from torchrl_tdmpc.data.frames import Frames
from torchrl_tdmpc.data.quiet import without_storage_message
from torchrl_tdmpc.data.trajectories import OpenTrajectories, ReplayError

__all__ = ["EpisodeReplay", "ReplayError"]

Method = TypeVar("Method", bound=Callable[..., Any])

TRAJECTORY = ("collector", "traj_ids")
MASK = ("collector", "mask")


def normal_mode(method: Method) -> Method:
    """A method that makes normal tensors without gradients, whatever mode its caller is in."""
    return torch.inference_mode(False)(torch.no_grad()(method))


class EpisodeReplay:
    """Remembers finished episodes and samples slices of H consecutive steps from them.

    The steps of an unfinished episode wait outside the storage. When the episode ends (terminated
    or truncated) it is written to a ring of ``capacity`` transitions in one piece. So the
    transitions of an episode lie side by side, its last one is the one that says ``done``, and
    whatever the ring has left of an overwritten episode ends in the same way: no slice ever crosses
    an episode or an environment, and nothing but a write moves a boundary, which is why the sampler
    may keep its index between writes.

    Each observation is stored once: an episode of T steps takes T + 1 transitions of the ring, the
    first of which has nothing but the observation that the episode begins with. See
    :class:`~torchrl_tdmpc.data.frames.Frames`.

    Slices are drawn with replacement: first an episode, uniformly, then one of its H-step windows,
    uniformly. Every draw comes from torch's global generator (of the storage's device).

    Args:
        capacity: transitions in the ring; the oldest are overwritten.
        horizon: steps in a slice, H.
        batch_size: slices in a batch, B.
        device: where the storage is.
        sample_device: where batches go; None leaves them on
            ``device``. From the CPU to CUDA they go through pinned memory, and nothing waits.
        observation_keys: the entries of the environment to keep, at the
            root and under ``"next"``.
        action_key: the action's entry.
        extra_keys: further entries to keep and to hand out, such as
            ``("next", "success")``; they may be NaN.
        frame_channels: given when the one observation is a stack of K frames of so
            many channels each, ``[K * frame_channels, height, width]``, newest last. Each frame is
            then stored once: an episode of T steps takes T + K transitions of the ring. At
            3 x 64 x 64 bytes a frame, an episode of 500 steps takes 12.4 kB a step (not 73.8).
            Slices are the same.
        episodic: whether episodes may terminate; a model without a termination head cannot
            learn from those that do.

    Attributes:
        num_steps: steps given to :meth:`extend` so far, all environments together.
        num_short_episodes: finished episodes of fewer than H steps. They hold no slice and
            are dropped.
        num_written: transitions written so far, the overwritten ones too. The ring is a
            function of what was written, in order: each goes to the place after the last one's.

    Raises:
        ValueError: if ``horizon``, ``batch_size`` or ``frame_channels`` is less than 1, if
            ``capacity`` is less than a slice takes, if there are frames and several
            ``observation_keys``, or if a key is there twice.

    Examples:
        >>> from torchrl.envs import StepCounter, TransformedEnv
        >>> from torchrl.testing.mocking_classes import ContinuousActionVecMockEnv
        >>> env = TransformedEnv(ContinuousActionVecMockEnv(), StepCounter(20))
        >>> replay = EpisodeReplay(capacity=1000, horizon=3, batch_size=4)
        >>> replay.extend(env.rollout(20))  # one environment, 20 steps: an episode
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
        sample_device: torch.device | str | None = None,
        observation_keys: Sequence[NestedKey] = ("observation",),
        action_key: NestedKey = "action",
        extra_keys: Sequence[NestedKey] = (),
        frame_channels: int | None = None,
        episodic: bool = True,
    ):
        if horizon < 1:
            raise ValueError(f"horizon {horizon} is too short for a slice; choose at least 1.")
        if not batch_size >= 1:
            raise ValueError(f"batch_size {batch_size} is too small; choose at least 1.")
        if batch_size > 1_000_000:
            raise ValueError(f"batch_size {batch_size} is too large; choose at most 1,000,000.")
        if frame_channels is not None and (frame_channels < 1 or len(observation_keys) != 1):
            raise ValueError(
                f"frame_channels {frame_channels} with observation_keys {list(observation_keys)}; "
                "choose at least 1 channel, and one key."
            )
        self.capacity = capacity
        self.horizon = horizon
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.sample_device = self.device if sample_device is None else torch.device(sample_device)
        self.episodic = episodic
        self.num_steps = 0
        self.num_short_episodes = 0
        self.num_written = 0
        self._check = StepChecks(observation_keys, action_key, extra_keys)
        self._num_rows: dict[int | str, int] = {}  # of each source that sends no trajectory ids
        self._frames = Frames(self._check.observation_keys, frame_channels)
        self._make_buffer()

    def _make_buffer(self) -> None:
        """An empty ring, and the sampler of slices of it: H + K transitions."""
        self._slice_len = self.horizon + max(self._frames.num_frames, 1)
        if self.capacity < self._slice_len:
            raise ValueError(
                f"capacity {self.capacity} cannot hold a slice of {self.horizon} steps; "
                f"choose at least {self._slice_len}."
            )
        self._open = OpenTrajectories(self._frames.num_frames, self.device)
        self._origin = 0  # number of a transition that went to the ring's first place
        self._buffer = ReplayBuffer(
            storage=LazyTensorStorage(self.capacity, device=self.device),
            sampler=SliceSampler(
                slice_len=self._slice_len,
                end_key=("next", "done"),
                strict_length=True,
                cache_values=True,
                init_key=None,
                truncated_key=None,
            ),
            batch_size=self.batch_size * self._slice_len,
        )

    @property
    def num_transitions(self) -> int:
        """Transitions in storage: those of steps, and K more for each episode."""
        return len(self._buffer)

    @property
    def num_pending(self) -> int:
        """Steps of the unfinished episodes, which wait outside the storage."""
        return self._open.num_steps

    @normal_mode
    def extend(self, data: TensorDictBase, source: int | str = 0) -> int:
        """Take the steps that a collector returned: any collector, at any time, in any order.

        Steps belong together if they have the same ``("collector", "traj_ids")``, which TorchRL's
        collectors write. Data without them are one trajectory a row, which goes on in that row of
        the next call. What follows a step that is ``done`` is a new trajectory in either case.
        Steps with a negative id, or outside ``("collector", "mask")``, are a collector's padding.

        A step must begin with the very observation that the one before it in its trajectory led to,
        or it is refused. So missing steps are noticed, and so is a second collector whose ids begin
        at 0 again while the first one's are in use: name them by ``source``. Not noticed is a gap
        from one observation to an equal one. A trajectory that its collector gave up without
        ``done`` (as with ``reset_at_each_iter``) stays open until :meth:`truncate`.

        Floats become float32. Reward and flags may lack their last dimension of 1, and flags may be
        0 and 1.

        Args:
            data: ``[..., T]`` steps in TorchRL's root/next layout, those of one
                trajectory in their order. Entries other than those kept are ignored.
            source: which collector they come from, if several fill this replay.

        Returns:
            How many episodes finished.

        Raises:
            ValueError: if ``data`` has no time dimension, lacks an entry or has one of another
                shape or type than before, an action leaves [-1, 1], or the number of rows without
                ids changes.
            FloatingPointError: if an entry to be kept is NaN or infinite.
            ReplayError: if a trajectory does not go on where it was, or an episode terminated
                although ``episodic`` is false. Whatever is raised, nothing is stored.
        """
        if data.ndim < 1:
            raise ValueError("Expected data of shape [..., T], got [].")
        name, ids = self._identify(data, source)
        place = (ids >= 0).nonzero().flatten()  # of each step in the flat data
        steps = self._select(data)
        if len(place) < len(ids):
            ids, steps = ids[place], steps[place.to(self.device)]
        if not len(ids):
            return 0
        convert_steps(steps, self._check.action_key)
        where = functools.partial(self._first, data.shape, place)
        kinds = self._check(steps, where, episodic=self.episodic)
        self._frames.measure(steps)
        self._check.kinds = kinds
        if self._open.num_frames != self._frames.num_frames:  # now known
            self._make_buffer()
        ended, lengths = self._open.extend(name, ids, *self._frames.split(steps))
        self.num_steps += len(ids)
        self._store(ended, lengths)
        return len(lengths)

    @normal_mode
    def sample(self) -> TensorDictBase:
        """Draw a batch of slices.

        Returns:
            ``[B, H]`` with the observations (s_t), the action (a_t), ``"next"``:
            the observations (s_{t+1}), ``reward``, ``terminated`` and ``done`` (``[B, H, 1]``), and
            the extra entries.

        Raises:
            ReplayError: if no episode of at least H steps has finished yet.
        """
        if self.num_transitions < self._slice_len:
            raise ReplayError(
                f"No slice of {self.horizon} steps can be sampled yet: finished episodes left "
                f"{self.num_transitions} transitions in storage ({self.num_short_episodes} were "
                f"shorter than {self.horizon} steps) and unfinished ones have {self.num_pending} "
                f"steps; collect at least {self.horizon} in one episode, by a larger "
                "seed_steps or a shorter horizon."
            )
        transitions = self._buffer.sample()
        if (self.device.type, self.sample_device.type) == ("cpu", "cuda"):
            transitions = transitions.pin_memory().to(self.sample_device, non_blocking=True)
        else:
            transitions = transitions.to(self.sample_device)
        return self._frames.join(transitions.reshape(self.batch_size, -1))

    @normal_mode
    def truncate(self) -> int:
        """End the open episodes where they are, as truncated ones.

        Nothing goes on with them: a step that comes with the id of one begins a new trajectory.

        Returns:
            Number of episodes that were open.
        """
        ended, lengths = self._open.truncate()
        self._store(ended, lengths)
        return len(lengths)

    def written(self, begin: int) -> TensorDictBase:
        """The transitions in storage from number ``begin`` on, ``[num_written - begin]``.

        Raises:
            ValueError: if number ``begin`` is overwritten or not written yet.
        """
        if not self.num_written - len(self._buffer) <= begin < self.num_written:
            raise ValueError(f"Transition number {begin} is not in storage.")
        return self._buffer[(torch.arange(begin, self.num_written) - self._origin) % self.capacity]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the transitions in storage: counters, and the unfinished episodes."""
        return {
            "capacity": self.capacity,
            "origin": self._origin,
            "num_steps": self.num_steps,
            "num_short_episodes": self.num_short_episodes,
            "num_written": self.num_written,
            "num_transitions": self.num_transitions,
            "frames": self._frames.state_dict(),
            "num_rows": self._num_rows,
            "open": self._open.state_dict(),
        }

    @normal_mode
    def load_state_dict(self, state: dict[str, Any], begin: int, pieces: Iterable[Any]) -> None:
        """Fill an empty replay: afterwards it draws what the saved one would have drawn.

        A replay of another capacity takes as many of the newest transitions as it can hold. If the
        saved ring had not wrapped around yet, the larger one draws the same.

        Args:
            state: what :meth:`state_dict` returned.
            begin: the number of the first transition in ``pieces``.
            pieces: what :meth:`written` returned at one time and
                another: all that was in storage, oldest first, without gaps.

        Raises:
            ValueError: if the pieces do not reach from the oldest transition in storage to the
                newest.
        """
        newest = state["num_written"]
        oldest = newest - state["num_transitions"]
        self._frames.load_state_dict(state["frames"])
        self._make_buffer()
        self._origin = state["origin"] if state["capacity"] == self.capacity else oldest
        writer = self._buffer.writer
        cursor = (oldest - self._origin) % self.capacity
        writer.load_state_dict(writer.state_dict() | {"_cursor": cursor})
        end = begin
        for piece in pieces:
            overwritten = max(oldest - end, 0)
            end += len(piece)
            if overwritten < len(piece):
                self._write(piece[overwritten:])
        if begin > oldest or end != newest:
            raise ValueError(
                f"Transitions {begin} to {end} do not cover those in storage, {oldest} to {newest}."
            )
        self.num_written = newest
        self.num_steps = state["num_steps"]
        self.num_short_episodes = state["num_short_episodes"]
        self._num_rows = dict(state["num_rows"])
        self._open.load_state_dict(state["open"])

    def _identify(self, data: TensorDictBase, source: int | str) -> tuple[tuple, Tensor]:
        """What stands before the id in a trajectory's name; the id of each step, -1 of padding.

        Data without ids count their rows.
        """
        has_ids = TRAJECTORY in data.keys(True)
        name = (source, has_ids)
        if has_ids:
            ids = data[TRAJECTORY].flatten().cpu()
        else:
            num_rows = data.numel() // max(data.shape[-1], 1)
            before = self._num_rows.get(source, num_rows)
            if before != num_rows and self._open.has_any(name):
                raise ValueError(
                    f"The data come in {num_rows} rows without trajectory ids, but the episodes "
                    f"begun here in {before}; send {TRAJECTORY!r} with the data."
                )
            self._num_rows[source] = num_rows
            ids = torch.arange(num_rows).repeat_interleave(data.shape[-1])
        if MASK in data.keys(True):
            ids = ids.masked_fill(~data[MASK].flatten().cpu(), -1)
        return name, ids

    def _select(self, data: TensorDictBase) -> TensorDictBase:
        """What is kept of the flat data, on the storage's device."""
        try:
            return data.select(*self._check.keys).reshape(-1).to(self.device)
        except KeyError:
            missing = [key for key in self._check.keys if key not in data.keys(True)]
            raise ValueError(f"The data lack {', '.join(map(repr, missing))}.") from None

    def _store(self, ended: TensorDictBase | None, lengths: list[int]) -> None:
        """Write finished episodes; of one longer than the ring, the end remains."""
        kept, end = [], 0
        for length in lengths:
            end += length
            if length < self._slice_len:
                self.num_short_episodes += 1
            else:
                kept += range(max(end - length, end - self.capacity), end)
        if kept:
            whole = len(kept) == len(ended)
            self._write(ended if whole else ended[torch.tensor(kept, device=self.device)])

    def _write(self, transitions: TensorDictBase) -> None:
        quiet = nullcontext if len(self._buffer) else without_storage_message
        with quiet():
            for piece in transitions.split(self.capacity):  # once to a place: no order is defined
                self._buffer.extend(piece.to(self.device))
        self.num_written += len(transitions)

    def _first(self, shape: torch.Size, place: Tensor, flags: Tensor) -> str:
        """Which agent step of data ``[*environments, T]`` a flag is set in first."""
        num_envs, length = shape[:-1].numel(), shape[-1]
        place = place[flags.cpu()]
        step = int((place % length * num_envs + place // length).min())
        return f"at agent step {self.num_steps + step + 1}, in environment {step % num_envs}"
