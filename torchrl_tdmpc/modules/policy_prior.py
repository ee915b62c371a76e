"""The policy prior: a squashed Gaussian on the latent."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, exploration_type

from torchrl_tdmpc.modules.context import Context
from torchrl_tdmpc.modules.layers import at_least_float32

__all__ = ["PolicyPrior", "PolicySample"]


class PolicySample(NamedTuple):
    """What one draw from the policy prior gives, with the latent's leading dimensions."""

    action: Tensor  #: [..., A], in (-1, 1)
    mean: Tensor  #: [..., A], the mode after tanh
    log_std: Tensor  #: [..., A], before tanh
    entropy: Tensor  #: [..., 1], minus the log-probability of the squashed action
    scaled_entropy: Tensor  #: [..., 1], minus A times the log-probability before squashing


class PolicyPrior(TensorDictModuleBase):
    """Squashed Gaussian policy on the latent (section 3.1, arXiv 2310.16828).

    In a context with an embedding e, the network reads it too: ``network(latent, e)``. Where the
    context masks action dimensions, mean, log standard deviation and noise are zero; they stay in
    the log-probability, as published, but not in the number of dimensions that scales it.

    As a TensorDict module it reads ``latent``, and ``context`` if it is there, and writes
    ``action``: a draw under ``ExplorationType.RANDOM``, the tanh of the mean otherwise.

    Args:
        network: maps a latent ``[..., L]`` to mean and raw log-std, ``[..., 2 A]``.
        log_std_min: lower end of the log standard deviation.
        log_std_max: upper end of the log standard deviation.
        latent_key: where the latent is read.
        action_key: where the action is written.

    Raises:
        ValueError: an empty range of the log standard deviation, or one beyond [-50, 20].

    Examples:
        >>> from tensordict import TensorDict
        >>> policy_prior = PolicyPrior(nn.Linear(16, 2 * 3))
        >>> policy_prior(TensorDict(latent=torch.zeros(5, 16), batch_size=5))["action"].shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        log_std_min: float = -10.0,
        log_std_max: float = 2.0,
        latent_key: NestedKey = "latent",
        action_key: NestedKey = "action",
    ):
        super().__init__()
        for name, value in (("log_std_min", log_std_min), ("log_std_max", log_std_max)):
            if not -50 <= value <= 20:
                raise ValueError(f"{name} is {value}; it must be in [-50, 20].")
        if not log_std_min < log_std_max:
            raise ValueError(
                f"log_std_min is {log_std_min} and log_std_max is {log_std_max}; "
                "log_std_min must be smaller."
            )
        self.network = network
        self.log_std_min = log_std_min
        self.log_std_max = log_std_max
        self.in_keys = [latent_key]
        self.out_keys = [action_key]

    def mean_and_log_std(
        self, latent: Tensor, context: Context = Context()
    ) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before tanh, ``[..., A]`` each."""
        output = at_least_float32(self.network(latent, *context.inputs))
        mean, raw_log_std = output.chunk(2, -1)
        # log_std in [min, max], smoothly
        log_std_range = self.log_std_max - self.log_std_min
        log_std = self.log_std_min + 0.5 * log_std_range * (raw_log_std.tanh() + 1)
        return context.mask(mean), context.mask(log_std)

    def act(
        self, latent: Tensor, eps: Tensor | None = None, context: Context = Context()
    ) -> Tensor:
        """Draw an action ``[..., A]``; arguments as for :meth:`sample`."""
        mean, log_std = self.mean_and_log_std(latent, context)
        eps = context.mask(torch.randn_like(mean) if eps is None else eps)
        return (mean + eps * log_std.exp()).tanh()

    def mode(self, latent: Tensor, context: Context = Context()) -> Tensor:
        """The tanh of the mean, ``[..., A]``."""
        return self.mean_and_log_std(latent, context)[0].tanh()

    def sample(
        self, latent: Tensor, eps: Tensor | None = None, context: Context = Context()
    ) -> PolicySample:
        """Draw an action and its entropies.

        Args:
            latent: ``[..., L]``.
            eps: standard normal noise, ``[..., A]``; drawn here when None.
            context: whose leading dimensions broadcast to those of ``latent``.
        """
        mean, log_std = self.mean_and_log_std(latent, context)
        eps = context.mask(torch.randn_like(mean) if eps is None else eps)
        action = (mean + eps * log_std.exp()).tanh()
        # log N(u; mean, std) at u = mean + std eps
        gaussian_log_prob = -0.5 * eps.square() - log_std - 0.5 * math.log(2 * math.pi)
        gaussian_log_prob = gaussian_log_prob.sum(-1, keepdim=True)
        # log of tanh'(u) = 1 - tanh(u)^2
        log_det = ((1 - action.square()).relu() + 1e-6).log().sum(-1, keepdim=True)
        return PolicySample(
            action=action,
            mean=mean.tanh(),
            log_std=log_std,
            entropy=log_det - gaussian_log_prob,
            scaled_entropy=-gaussian_log_prob * context.num_actions(action),
        )

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write an action for the latent."""
        latent, context = tensordict.get(self.in_keys[0]), Context.read(tensordict)
        if exploration_type() == ExplorationType.RANDOM:
            action = self.act(latent, context=context)
        else:
            action = self.mode(latent, context)
        return tensordict.set(self.out_keys[0], action)
