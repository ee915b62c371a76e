"""Random numbers, kept as they are drawn."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Draws"]


class Draws(TorchDispatchMode):
    """Keeps every random number that any operation draws while the mode is entered.

    Below autograd and ``vmap``, so each draw is a whole, plain tensor. Every draw must be taken
    before the mode is left: one that nobody asks for is one that the records lack.

    Examples:
        >>> with Draws() as draws:
        ...     noise = torch.randn(3)
        ...     permutation = torch.randperm(5)
        ...     torch.equal(draws.take("randn"), noise)
        ...     draws.take("randperm", 1).shape
        True
        torch.Size([1, 5])
    """

    def __init__(self):
        super().__init__()
        self._draws: dict[str, list[Tensor]] = defaultdict(list)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in operation.tags:
            self._draws[operation.overloadpacket.__name__].append(result.detach().clone())
        return result

    def take(self, operation: str, number: int | None = None) -> Tensor:
        """The oldest draw of an operation, or the ``number`` oldest ones, stacked.

        Raises:
            RuntimeError: there are fewer.
        """
        kept, count = self._draws[operation], 1 if number is None else number
        if len(kept) < count:
            raise RuntimeError(f"{operation} drew {len(kept)} times and not {count} times.")
        taken = [kept.pop(0) for _ in range(count)]
        return taken[0] if number is None else torch.stack(taken)

    def __exit__(self, error_type, error, traceback) -> None:
        super().__exit__(error_type, error, traceback)
        left = {operation: len(kept) for operation, kept in self._draws.items() if kept}
        if left and error_type is None:
            raise RuntimeError(f"nobody took these draws: {left}.")
