"""Whether steps are such as can be learned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.utils import unravel_key
from torch import Tensor

from torchrl_tdmpc.data.trajectories import ReplayError

__all__ = ["StepChecks"]

Where = Callable[[Tensor], str]  # names the first of the steps ``[M]`` that are flagged


class StepChecks:
    """Refuses steps that do not fit those before them, or hold what no model can learn.

    Args:
        observation_keys: at the root and under ``"next"``.
        action_key: where the action is.
        extra_keys: further entries; they may be NaN.

    Attributes:
        keys: every entry that is kept.
        kinds: shape and type of each of them, for whoever stores steps to set; none at first.

    Raises:
        ValueError: a key is there twice.
    """

    def __init__(
        self,
        observation_keys: Sequence[NestedKey],
        action_key: NestedKey,
        extra_keys: Sequence[NestedKey],
    ):
        following = (*observation_keys, "reward", "terminated", "done")
        self.observation_keys = [*map(unravel_key, observation_keys)]
        self.action_key = unravel_key(action_key)
        self._finite_keys = [
            *self.observation_keys,
            self.action_key,
            *(unravel_key(("next", key)) for key in following),
        ]
        self.keys = [*self._finite_keys, *map(unravel_key, extra_keys)]
        if twice := {key for key in self.keys if self.keys.count(key) > 1}:
            raise ValueError(f"extra_keys {list(extra_keys)} name {min(twice, key=str)!r} again.")
        self.kinds: dict[NestedKey, tuple] = {}

    def __call__(
        self, steps: TensorDictBase, where: Where, *, episodic: bool
    ) -> dict[NestedKey, tuple]:
        """Check steps ``[M]``.

        Args:
            steps: converted ones.
            where: names a step in a message.
            episodic: whether episodes may terminate.

        Returns:
            Their ``kinds``.

        Raises:
            ValueError: an entry has another shape or type than before, or an action leaves [-1, 1].
            FloatingPointError: an entry is NaN or infinite.
            ReplayError: an episode terminated although ``episodic`` is false.
        """
        kinds = self._kinds_of(steps)
        self._refuse_numbers(steps, where)
        terminated = steps["next", "terminated"].flatten()
        if not episodic and terminated.any():
            raise ReplayError(
                f"An episode terminated {where(terminated)}, but episodic is false; set it to "
                "true, and the model learns to predict terminations."
            )
        return kinds

    def _kinds_of(self, steps: TensorDictBase) -> dict[NestedKey, tuple]:
        """Refuse entries of another shape or type than the first ones had, or than the next one."""
        kinds = {key: (list(steps[key].shape[1:]), steps[key].dtype) for key in self.keys}
        for key, (shape, dtype) in kinds.items():
            before, type_before = self.kinds.get(key, (shape, dtype))
            if (before, type_before) != (shape, dtype):
                raise ValueError(
                    f"{key!r} has shape {shape} and type {dtype}; it was {before} and "
                    f"{type_before} before."
                )
        for key in self.observation_keys:
            following = unravel_key(("next", key))
            if kinds[following] != kinds[key]:
                raise ValueError(
                    f"{following!r} has shape {kinds[following][0]} and type "
                    f"{kinds[following][1]}; {key!r} has {kinds[key][0]} and {kinds[key][1]}."
                )
        return kinds

    def _refuse_numbers(self, steps: TensorDictBase, where: Where) -> None:
        """Name the first agent step with a number that is not finite, or an action out of range."""
        entries = {key: steps[key] for key in self._finite_keys}
        numbers = {key: value for key, value in entries.items() if value.dtype != torch.bool}
        far = (entries[self.action_key].abs() > 1 + 1e-6).flatten(1).any(1)  # 1e-6 is rounding
        if torch.stack([*(value.isfinite().all() for value in numbers.values()), ~far.any()]).all():
            return  # as ever, and the device is waited for once
        for key, value in numbers.items():
            bad = ~value.isfinite().reshape(len(steps), -1).all(-1)
            if bad.any():
                raise FloatingPointError(f"{key!r} contains NaN or infinity {where(bad)}.")
        largest = entries[self.action_key].abs().max().item()
        raise ValueError(
            f"{self.action_key!r} reaches {largest:.4g} {where(far)}; actions are in [-1, 1] here, "
            "so scale them to the bounds that the environment has."
        )
