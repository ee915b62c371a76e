"""The latent world model: encoder, dynamics, reward and termination."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from torchrl_tdmpc.modules.context import Context, TaskContext
from torchrl_tdmpc.modules.layers import at_least_float32
from torchrl_tdmpc.modules.two_hot import SymlogTwoHot

__all__ = ["TDMPC2WorldModel"]


class TDMPC2WorldModel(TensorDictModuleBase):
    """World model in a latent space without a decoder (section 3.1, arXiv 2310.16828).

    Built from parts, each an ``nn.Module`` of your own choice; see
    :func:`~torchrl_tdmpc.modules.make_networks` for the published ones::

        encode       z = h(s)             encoder(observation)         -> [..., L]
        next         z' = d(z, a)         dynamics(latent, action)     -> [..., L]
        reward       r = R(z, a)          reward_head(latent, action)  -> [..., num_bins]
        termination  p = sigmoid T(z')    termination_head(latent)     -> [..., 1]

    Leading dimensions of latent and action broadcast against each other. In a context with an
    embedding e, every part reads it after observation or latent: ``encoder(observation, e)``,
    ``dynamics(latent, e, action)``, ``reward_head(latent, e, action)``.

    As a TensorDict module it is the latent rollout: it reads ``observation`` ``[B, H, *]`` (of
    which only the first step is used) and ``action`` ``[B, H, A]``, and writes ``latent``
    ``[B, H, L]``, z_0 .. z_{H-1}, and ``("next", "latent")``, z_1 .. z_H. A model of several tasks
    also reads ``task`` ``[B, H]``, the same throughout a slice, and writes ``context``.

    Args:
        encoder: the observation's encoder h.
        dynamics: the latent dynamics d.
        reward_head: logits of the two-hot reward R.
        termination_head: logit of the probability that the episode ended on arriving in z'; None
            for tasks that never terminate.
        latent_dim: size of the latent, L.
        two_hot: the support of the reward distribution.
        task_context: the tables of several tasks; None for a single one.
        observation_key: where the observation is read.
        action_key: where the action is read.
        latent_key: where the latent is written.
        task_key: where the index of the task is read, if there are several.

    Raises:
        ValueError: a termination head in a model of several tasks.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_tdmpc.modules.layers import Linear
        >>> world_model = TDMPC2WorldModel(
        ...     encoder=Linear(3, 16),
        ...     dynamics=Linear(16 + 2, 16),
        ...     reward_head=Linear(16 + 2, 101),
        ...     latent_dim=16,
        ... )
        >>> batch = TensorDict(
        ...     observation=torch.randn(5, 4, 3), action=torch.randn(5, 4, 2), batch_size=(5, 4)
        ... )
        >>> rollout = world_model(batch)
        >>> torch.equal(rollout["latent"][:, 1:], rollout["next", "latent"][:, :-1])
        True
    """

    def __init__(
        self,
        encoder: nn.Module,
        dynamics: nn.Module,
        reward_head: nn.Module,
        termination_head: nn.Module | None = None,
        *,
        latent_dim: int,
        two_hot: SymlogTwoHot = SymlogTwoHot(),
        task_context: TaskContext | None = None,
        observation_key: NestedKey = "observation",
        action_key: NestedKey = "action",
        latent_key: NestedKey = "latent",
        task_key: NestedKey = "task",
    ):
        super().__init__()
        if task_context is not None and termination_head is not None:
            raise ValueError(
                "the world model has tasks and a termination head; a model of several tasks "
                "predicts no terminations."
            )
        self.encoder = encoder
        self.dynamics = dynamics
        self.reward_head = reward_head
        self.termination_head = termination_head
        self.latent_dim = latent_dim
        self.two_hot = two_hot
        self.task_context = task_context
        self.task_keys = [] if task_context is None else [task_key]
        self.in_keys = [observation_key, action_key, *self.task_keys]
        self.out_keys = [latent_key, unravel_key(("next", latent_key))]

    @property
    def episodic(self) -> bool:
        """Whether the model predicts terminations."""
        return self.termination_head is not None

    def context(self, tensordict: TensorDictBase, task_key: NestedKey | None = None) -> Context:
        """Look up the context ``[*batch]`` of a TensorDict's tasks; a single task's is empty.

        Args:
            tensordict: holds the index of the task, int64 ``[*batch]`` or ``[*batch, 1]``.
            task_key: where; the model's own key when None.
        """
        if self.task_context is None:
            return Context()
        task = tensordict[self.task_keys[0] if task_key is None else task_key]
        return self.task_context(task.reshape(tensordict.batch_size))

    def refuse_discount(self, name: str, discount: float | None) -> None:
        """Refuse a discount that does not fit: a single task needs one, several have their own.

        Args:
            name: what the message calls it.
            discount: in (0, 1) for a single task, None for several.

        Raises:
            ValueError: it is something else.
        """
        if self.task_context is not None and discount is not None:
            raise ValueError(
                f"{name} is {discount}; it must be None, because the world model has a discount "
                "for each of its tasks."
            )
        if self.task_context is None and (discount is None or not 0 < discount < 1):
            raise ValueError(f"{name} is {discount}; it must lie strictly between 0 and 1.")

    def encode(self, observation: Tensor, context: Context = Context()) -> Tensor:
        """Latent ``[..., L]`` of an observation."""
        latent = self.encoder(observation, *context.inputs)
        if latent.shape[-1] != self.latent_dim:
            raise ValueError(
                f"the encoder gives {latent.shape[-1]} numbers; it must give {self.latent_dim}, "
                "which is latent_dim."
            )
        return latent

    def next(self, latent: Tensor, action: Tensor, context: Context = Context()) -> Tensor:
        """Latent ``[..., L]`` after taking ``action`` ``[..., A]`` in ``latent`` ``[..., L]``."""
        return self.dynamics(latent, *context.inputs, action)

    def reward_logits(self, latent: Tensor, action: Tensor, context: Context = Context()) -> Tensor:
        """Two-hot reward logits ``[..., num_bins]``."""
        return self.reward_head(latent, *context.inputs, action)

    def reward(self, latent: Tensor, action: Tensor, context: Context = Context()) -> Tensor:
        """Decoded reward ``[..., 1]``."""
        return self.two_hot.decode(self.reward_logits(latent, action, context))

    def termination_logit(self, latent: Tensor, context: Context = Context()) -> Tensor:
        """Logit ``[..., 1]`` of the probability that the episode ended in ``latent``."""
        return at_least_float32(self.termination_head(latent, *context.inputs))

    def termination(self, latent: Tensor, context: Context = Context()) -> Tensor:
        """Probability ``[..., 1]`` that the episode ended on arriving in ``latent``."""
        return self.termination_logit(latent, context).sigmoid()

    def unroll(self, observation: Tensor, action: Tensor, context: Context = Context()) -> Tensor:
        """Encode the first observation and follow the actions in latent space.

        Args:
            observation: s_0, ``[B, *]``.
            action: a_0 .. a_{H-1}, ``[B, H, A]``.
            context: of each row, ``[B]``.

        Returns:
            z_0 .. z_H, ``[B, H + 1, L]``.
        """
        latents = [self.encode(observation, context)]
        for a in action.unbind(1):
            latents.append(self.next(latents[-1], a, context))
        return torch.stack(latents, 1)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the latent rollout of a batch ``[B, H]``."""
        observation, action = (tensordict.get(key) for key in self.in_keys[:2])
        context = self.context(tensordict).of((slice(None), 0))
        latents = self.unroll(observation[:, 0], action, context)
        for key, value in context.unsqueeze(1).entries("context", action.shape[:2]).items():
            tensordict.set(key, value)
        tensordict.set(self.out_keys[0], latents[:, :-1])
        return tensordict.set(self.out_keys[1], latents[:, 1:])
