"""Parameters of several networks in one TensorDict."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from tensordict import TensorDict
from tensordict.nn import TensorDictParams
from torch import nn

__all__ = ["StackedParams"]


class StackedParams(TensorDictParams):
    """A TensorDictParams of which an optimiser that is copied with it holds the copied weights.

    A TensorDictParams copies each weight whenever it is copied; this one keeps to the one copy that
    ``deepcopy`` makes of an object. Every entry is a parameter, whatever its floating dtype.

    Examples:
        >>> import torch
        >>> params = StackedParams.of({"weight": torch.zeros(2, dtype=torch.bfloat16)})
        >>> copy, weight = deepcopy((params, params["weight"]))
        >>> copy["weight"] is weight, isinstance(weight, nn.Parameter)
        (True, True)
    """

    @classmethod
    def of(cls, tensors: Mapping[str, Any]) -> StackedParams:
        """The parameters of a nested mapping of tensors."""
        params = TensorDict(dict(tensors)).apply(
            lambda weight: weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
        )
        return cls(params, no_convert=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> StackedParams:
        weights = {key: deepcopy(weight, memo) for key, weight in self.items(True, True)}
        return type(self)(TensorDict(weights), no_convert=True)
