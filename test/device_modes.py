"""What fails where a GPU would be waited for, or where a tensor lies on another device."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NUMBERS = {"_local_scalar_dense", "equal", "is_nonzero"}
# Whose result has a size that depends on numbers, or which count something on the way
SIZES = {
    *("nonzero", "masked_select", "repeat_interleave", "bincount", "embedding_renorm_"),
    *("unique_dim", "unique_consecutive", "_unique", "_unique2"),
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
TO_PYTHON = ("tolist", "numpy", "cpu", "__array__")


class HostWaits(TorchDispatchMode):
    """Collects the names of operations for which the host would wait, had it a GPU.

    Examples:
        >>> with HostWaits() as waits:
        ...     _ = torch.ones(2)[torch.tensor([True, False])].sum().item()
        >>> waits.names
        ['index', '_local_scalar_dense']
    """

    def __init__(self):
        super().__init__()
        self.names: list[str] = []
        self._conversions = _Conversions(self.names)

    def __enter__(self):
        self._conversions.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._conversions.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function.overloadpacket.__name__
        is_boolean = name in INDEXING and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in NUMBERS | SIZES or is_boolean:
            self.names.append(name)
        return function(*args, **kwargs)


class _Conversions(TorchFunctionMode):
    """Collects what becomes an object of Python or NumPy, which no operation of torch does."""

    def __init__(self, names: list[str]):
        self.names = names

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in TO_PYTHON:
            self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))


class OneDevice(TorchDispatchMode):
    """Fails on an operation that reads or makes a tensor on another device, numbers included.

    Args:
        device_type: of the device, such as ``"cuda"``.
    """

    def __init__(self, device_type: str):
        super().__init__()
        self.device_type = device_type

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        for x in tree_leaves((args, kwargs, result)):
            if isinstance(x, torch.Tensor) and x.device.type != self.device_type:
                raise AssertionError(f"{function} has a tensor on {x.device}")
        return result
