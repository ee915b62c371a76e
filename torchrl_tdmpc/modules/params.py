"""Parameters of a network, or of several stacked ones, in one TensorDict."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictParams
from torch import Tensor, nn

__all__ = ["NetworkParams"]


class NetworkParams(TensorDictParams):
    """A TensorDictParams that ``deepcopy`` and ``torch.func.functional_call`` understand.

    A TensorDictParams copies each weight whenever it is copied; this one keeps to the one copy that
    ``deepcopy`` makes of an object, so that an optimiser that is copied with it holds the copied
    weights. And a weight that is put in by its name, as ``functional_call`` does, is read from here
    until it is put back.

    Examples:
        >>> import torch
        >>> params = NetworkParams.of({"weight": torch.zeros(2, dtype=torch.bfloat16)})
        >>> copy, weight = deepcopy((params, params["weight"]))
        >>> copy["weight"] is weight, isinstance(weight, nn.Parameter)
        (True, True)
    """

    @classmethod
    def of(cls, tensors: Mapping[str, Any]) -> NetworkParams:
        """Every tensor of a nested mapping as a parameter, whatever its floating dtype."""
        return cls(TensorDict(dict(tensors)).apply(nn.Parameter), no_convert=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> NetworkParams:
        weights = {key: deepcopy(weight, memo) for key, weight in self.items(True, True)}
        return type(self)(TensorDict(weights), no_convert=True)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self.keys() and not isinstance(self[name], Tensor):
            return _Branch(self._param_td, (name,))
        return super().__getattr__(name)


class _Branch(nn.Module):
    """What lies below a name: a module whose parameters are entries of a TensorDict."""

    def __init__(self, root: TensorDictBase, path: tuple[str, ...]):
        super().__init__()
        self.__dict__["_parameters"] = _Leaves(root, path)

    def __getattr__(self, name: str) -> _Branch:
        leaves = self.__dict__["_parameters"]
        if (*leaves.path, name) not in leaves.root.keys(True):
            raise AttributeError(f"there are no weights {'.'.join((*leaves.path, name))}")
        return _Branch(leaves.root, (*leaves.path, name))


class _Leaves(dict):
    """The tensors at a path of a TensorDict, which has what is put in here."""

    def __init__(self, root: TensorDictBase, path: tuple[str, ...]):
        leaves = {name: x for name, x in root[path].items() if isinstance(x, Tensor)}
        super().__init__(leaves)
        self.root, self.path = root, path

    def __setitem__(self, name: str, value: Tensor) -> None:
        super().__setitem__(name, value)
        with self.root.unlock_():
            self.root[(*self.path, name)] = value
