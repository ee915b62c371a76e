"""What networks are conditioned on beside latent and action, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor, nn

__all__ = ["Context", "TaskContext"]


class Context(NamedTuple):
    """What a task adds to latent and action: one value, made once and handed on.

    Every field is optional and keeps the leading dimensions of the others. The empty context
    ``Context()`` stands for a single task: whoever is handed it computes what it would without.

    Examples:
        >>> context = Context(action_mask=torch.tensor([[1.0, 0.0]]))
        >>> context.mask(torch.ones(1, 2)), Context().mask(torch.ones(1, 2))
        (tensor([[1., 0.]]), tensor([[1., 1.]]))
        >>> context.discount_or(0.99)
        0.99
    """

    embedding: Tensor | None = None  #: [..., C], an input of every network
    action_mask: Tensor | None = None  #: [..., A], 1 where the task has an action dimension, else 0
    discount: Tensor | None = None  #: [..., 1]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What a network reads further: ``(embedding,)``, or nothing."""
        return () if self.embedding is None else (self.embedding,)

    def mask(self, x: Tensor) -> Tensor:
        """``x`` ``[..., A]``, zero where the task has no action dimension."""
        return x if self.action_mask is None else x * self.action_mask

    def num_actions(self, action: Tensor) -> Tensor | int:
        """The task's own number of action dimensions ``[..., 1]``, or that of ``action``."""
        if self.action_mask is None:
            return action.shape[-1]
        return self.action_mask.sum(-1, keepdim=True)

    def discount_or(self, discount: float | None) -> Tensor | float | None:
        """The task's own discount ``[..., 1]``, or the one given."""
        return discount if self.discount is None else self.discount

    def unsqueeze(self, dim: int) -> Context:
        """One more leading dimension: ``[E, C]`` becomes ``[E, 1, C]`` with ``dim`` 1."""
        return self._each(lambda x: x.unsqueeze(dim))

    def of(self, index: Any) -> Context:
        """The context of some of the rows."""
        return self._each(lambda x: x[index])

    def entries(self, key: NestedKey, shape: Sequence[int]) -> dict[NestedKey, Tensor]:
        """The fields as entries of a TensorDict below ``key``, expanded to its batch size."""
        return {
            unravel_key((key, name)): x.expand(*shape, x.shape[-1])
            for name, x in self._asdict().items()
            if x is not None
        }

    @classmethod
    def read(cls, tensordict: TensorDictBase, key: NestedKey = "context") -> Context:
        """The context that :meth:`entries` wrote into a TensorDict; empty if there is none."""
        return cls(*(tensordict.get(unravel_key((key, name)), None) for name in cls._fields))

    def _each(self, function: Callable[[Tensor], Tensor]) -> Context:
        return Context(*(None if x is None else function(x) for x in self))


class TaskContext(nn.Module):
    """Tables of several tasks: from the index of a task to its context.

    The embedding is learned. A row of it that is read and has a norm above 1 is first scaled to
    norm 1, in place and without gradient, as published; rows that are not read stay as they are.
    So a look-up belongs before the code that is compiled, once for each call.

    Args:
        action_dims: each task's own number of action dimensions. Actions are padded to the widest.
        discounts: each task's own discount.
        embedding_dim: size of the embedding, C.

    Raises:
        ValueError: a number of action dimensions or a size below 1, a discount outside (0, 1), or
            another number of discounts than of tasks.

    Examples:
        >>> tasks = TaskContext(action_dims=[1, 3], discounts=[0.95, 0.99], embedding_dim=8)
        >>> context = tasks(torch.tensor([0, 1, 1]))
        >>> context.embedding.shape, context.action_mask[0], context.discount[1]
        (torch.Size([3, 8]), tensor([1., 0., 0.]), tensor([0.9900]))
    """

    def __init__(
        self, action_dims: Sequence[int], discounts: Sequence[float], embedding_dim: int = 96
    ):
        super().__init__()
        if len(action_dims) != len(discounts) or not action_dims:
            raise ValueError(
                f"there are {len(action_dims)} action_dims and {len(discounts)} discounts; each "
                "task needs one of both."
            )
        if min(action_dims) < 1:
            raise ValueError(f"action_dims is {list(action_dims)}; each must be at least 1.")
        if not all(0 < discount < 1 for discount in discounts):
            raise ValueError(
                f"discounts is {list(discounts)}; each must lie strictly between 0 and 1."
            )
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim is {embedding_dim}; it must be at least 1.")
        self.action_dim = max(action_dims)
        self.embedding_dim = embedding_dim
        self.embedding = nn.Parameter(torch.empty(len(action_dims), embedding_dim))
        own = torch.arange(self.action_dim) < torch.tensor(list(action_dims)).unsqueeze(1)
        discounts = torch.tensor(list(discounts), dtype=torch.float32)
        # Not buffers: of a network's tensors, a LossModule shares the parameters alone
        self.action_masks = nn.Parameter(own.float(), requires_grad=False)
        self.discounts = nn.Parameter(discounts, requires_grad=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as published: uniform in [-0.02, 0.02]."""
        nn.init.uniform_(self.embedding, -0.02, 0.02)

    def forward(self, task: Tensor) -> Context:
        """The context ``[...]`` of task indices, int64 ``[...]``.

        Raises:
            ValueError: an index of no task.
        """
        try:
            self._rescale(task)
            embedding = F.embedding(task, self.embedding)
        except IndexError:  # on a CPU; CUDA reports it by itself, and nothing waits for that
            raise ValueError(
                f"task has the indices {task.unique().tolist()}; there are {len(self.embedding)} "
                "tasks, counted from 0."
            ) from None
        return Context(
            embedding=embedding,
            action_mask=self.action_masks[task],
            discount=self.discounts[task].unsqueeze(-1),
        )

    @torch.no_grad()
    def _rescale(self, task: Tensor) -> None:
        """What ``max_norm=1.0`` of a look-up does, which on CUDA would make the host wait."""
        norm = self.embedding.norm(dim=-1, keepdim=True)
        is_read = torch.zeros_like(norm, dtype=torch.bool).index_fill_(0, task.flatten(), True)
        scale = (1 / (norm.double() + 1e-7)).to(norm.dtype)
        self.embedding.mul_(torch.where(is_read & (norm > 1), scale, 1.0))
