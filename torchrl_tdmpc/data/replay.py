"""A replay buffer that hands out H-step slices of finished episodes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.utils import unravel_key
from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer


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
        capacity (int): most steps in storage; the oldest are overwritten.
        horizon (int): steps in a slice, H.
        batch_size (int): slices in a batch, B.
        device (torch.device or str): where the storage lives.
        observation_keys (sequence of NestedKey): the entries of the environment to keep, at the
            root and under ``"next"``.
        action_key (NestedKey): the action's entry.

    Attributes:
        num_decisions (int): steps given to :meth:`extend` so far, all environments together.
        num_short_episodes (int): finished episodes of fewer than H steps. They hold no slice and
            are dropped.

    Raises:
        ValueError: if ``horizon`` or ``batch_size`` is less than 1, or ``capacity`` less than
            ``horizon`` or 2.

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
    ):
        if horizon < 1:
            raise ValueError(f"horizon {horizon} is too short for a slice; choose at least 1.")
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is too small; choose at least 1.")
        self._least = max(horizon, 2)  # TorchRL's sampler cannot index a storage of one step
        if capacity < self._least:
            raise ValueError(
                f"replay.capacity {capacity} cannot hold a slice of {horizon} steps; "
                f"choose at least {self._least}."
            )
        self.capacity = capacity
        self.horizon = horizon
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.num_decisions = 0
        self.num_short_episodes = 0
        following = (*observation_keys, "reward", "terminated", "done")
        self._keys = [
            *map(unravel_key, (*observation_keys, action_key)),
            *(unravel_key(("next", key)) for key in following),
        ]
        self._pending: list[list[TensorDictBase]] = []  # per environment: pieces of its episode
        self._buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(capacity, device=self.device),
            sampler=SliceSampler(
                slice_len=horizon,
                end_key=("next", "done"),
                strict_length=True,
                cache_values=True,
                init_key=None,
                truncated_key=None,
            ),
            batch_size=batch_size * horizon,
        )

    @property
    def num_transitions(self) -> int:
        """Steps of finished episodes in storage."""
        return len(self._buffer)

    @property
    def num_pending(self) -> int:
        """Steps of unfinished episodes, which wait outside the storage."""
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
        """
        if data.ndim != 2:
            raise ValueError(f"Expected data of shape [num_envs, T], got {list(data.shape)}.")
        data = data.select(*self._keys).clone()  # a collector may reuse its own
        self._pending = self._pending or [[] for _ in range(data.shape[0])]
        if len(self._pending) != data.shape[0]:
            raise ValueError(
                f"The data come from {data.shape[0]} environments, but the episodes begun here "
                f"from {len(self._pending)}; one replay serves one number of environments."
            )
        self._check_finite(data)
        self.num_decisions += data.numel()

        num_finished = 0
        for pieces, steps in zip(self._pending, data.unbind(0), strict=True):
            begin = 0
            for end in steps["next", "done"].flatten().nonzero().flatten().tolist():
                pieces.append(steps[begin : end + 1])
                self._store(torch.cat(pieces))
                pieces.clear()
                num_finished += 1
                begin = end + 1
            if begin < len(steps):
                pieces.append(steps[begin:])
        return num_finished

    def sample(self) -> TensorDict:
        """Draws a batch of slices.

        Returns:
            TensorDict: ``[B, H]`` with the observations (s_t), the action (a_t) and ``"next"``: the
            observations (s_{t+1}), ``reward``, ``terminated`` and ``done`` (``[B, H, 1]``).

        Raises:
            RuntimeError: if no episode of at least H steps has finished yet.
        """
        if self.num_transitions < self._least:
            raise RuntimeError(
                f"No slice of {self.horizon} steps can be sampled yet: finished episodes left "
                f"{self.num_transitions} steps in storage ({self.num_short_episodes} were shorter "
                f"than {self.horizon}) and unfinished ones have {self.num_pending}; "
                f"collect at least {self._least} in one episode."
            )
        slices = self._buffer.sample().select(*self._keys)
        return slices.reshape(self.batch_size, self.horizon)

    def _store(self, episode: TensorDictBase) -> None:
        """Writes a finished episode ``[T]``; of one longer than the ring, the end remains."""
        if len(episode) < self.horizon:
            self.num_short_episodes += 1
        else:
            episode = episode[-self.capacity :]  # one write to a place: their order is undefined
            self._buffer.extend(episode.to(self.device))

    def _check_finite(self, data: TensorDictBase) -> None:
        """Names the first decision of ``data`` ``[num_envs, T]`` with a number that is not one."""
        for key in self._keys:
            bad = ~data[key].isfinite().reshape(*data.shape, -1).all(-1)
            if bad.any():
                time, env = bad.T.nonzero()[0].tolist()
                decision = self.num_decisions + time * len(bad) + env + 1
                raise FloatingPointError(
                    f"{key!r} contains NaN or infinity at decision {decision}, "
                    f"in environment {env}."
                )
