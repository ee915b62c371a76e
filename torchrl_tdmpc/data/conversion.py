"""From the steps that people have to the steps that the replay stores."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase

__all__ = ["convert_steps"]

REWARD = ("next", "reward")
FLAGS = (("next", "terminated"), ("next", "done"))


def convert_steps(steps: TensorDictBase, action_key: NestedKey) -> None:
    """Make floats float32, reward and flags ``[M, 1]``, and flags boolean, in place.

    Args:
        steps: ``[M]`` steps in TorchRL's root/next layout.
        action_key: where the action is.

    Raises:
        ValueError: reward or flags of another shape, flags that are not 0 or 1, or an action
            without a dimension of its own.

    Examples:
        >>> from tensordict import TensorDict
        >>> ones = torch.ones(5)
        >>> following = {"reward": ones, "terminated": ones, "done": ones}
        >>> steps = TensorDict({"action": torch.zeros(5, 2).double(), "next": following}, [5])
        >>> convert_steps(steps, "action")
        >>> steps["action"].dtype, steps["next", "reward"].shape, steps["next", "done"].dtype
        (torch.float32, torch.Size([5, 1]), torch.bool)
    """
    for key, value in steps.items(True, True):
        if value.is_floating_point() and value.dtype != torch.float32:
            steps[key] = value.float()
    for key in (REWARD, *FLAGS):
        if steps[key].ndim == 1:
            steps[key] = steps[key].unsqueeze(-1)
        if steps[key].shape[1:] != (1,):
            raise ValueError(f"{key!r} has shape {list(steps[key].shape[1:])}; it must be [1].")
    for key in FLAGS:
        if steps[key].dtype != torch.bool:
            if not ((steps[key] == 0) | (steps[key] == 1)).all():
                raise ValueError(f"{key!r} has numbers that are neither 0 nor 1.")
            steps[key] = steps[key].bool()
    if steps[action_key].ndim < 2:
        raise ValueError(f"{action_key!r} has shape []; it must be [A], such as [1].")
