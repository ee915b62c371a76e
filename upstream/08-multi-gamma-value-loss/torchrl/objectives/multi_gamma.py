from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from tensordict.utils import unravel_key

from torchrl.modules.models.tdmpc2 import symlog_two_hot_decode
from torchrl.modules.models.value_heads import AuxiliaryValueHeads
from torchrl.objectives.common import LossModule
from torchrl.objectives.tdmpc2 import symlog_two_hot_cross_entropy


class MultiGammaValueLoss(LossModule):
    """Auxiliary value targets at several discounts, for the latents of a world model.

    At each latent state of a rollout, head ``i`` learns the one-step target

    .. math::

        y_i = r + \\gamma_i (1 - \\text{terminated}) V(s')

    as a two-hot distribution in symlog space. The value :math:`V(s')` is read from the
    rollout. With ``bootstrap="self"`` it is instead what the target copy of the head
    itself predicts for the latent state of :math:`s'`, and the head learns a value at
    its own discount. Targets carry no gradient.

    The loss trains the heads and whatever made the latent states. It reads a latent
    rollout only, so it composes with every world model that writes one. It acts on
    neither the policy nor the value function that acts.

    Values at several discounts were proposed as auxiliary targets in `Hyperbolic
    Discounting and Learning over Multiple Horizons
    <https://arxiv.org/abs/1902.06865>`_.

    Args:
        heads (AuxiliaryValueHeads): The heads.
        gammas (sequence of float): The discount of each head, in (0, 1), all different.

    Keyword Args:
        vmin (float, optional): Lower end of the support, in symlog space. Defaults to
            ``-10.0``.
        vmax (float, optional): Upper end of the support, in symlog space. Defaults to
            ``10.0``.
        rho (float, optional): Decay of the weight of later steps. Defaults to ``0.5``.
        loss_weight (float, optional): Weight of the loss of each head. Defaults to
            ``0.5``.
        bootstrap (str, optional): ``"primary"`` or ``"self"``. The latter creates
            target parameters, to be moved by :class:`~torchrl.objectives.SoftUpdate`.
            Defaults to ``"primary"``.
        reduction (str, optional): ``"mean"``, ``"sum"`` or ``"none"``. Defaults to
            ``"mean"``.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import AuxiliaryValueHeads
        >>> from torchrl.objectives import MultiGammaValueLoss
        >>> heads = AuxiliaryValueHeads(latent_dim=16, num_heads=2, num_bins=101)
        >>> loss = MultiGammaValueLoss(heads, gammas=[0.97, 0.995])
        >>> following = TensorDict(
        ...     reward=torch.randn(5, 3, 1),
        ...     terminated=torch.zeros(5, 3, 1, dtype=torch.bool),
        ...     state_value=torch.randn(5, 3, 1),
        ...     batch_size=[5, 3],
        ... )
        >>> rollout = TensorDict(
        ...     latent=torch.randn(5, 3, 16), next=following, batch_size=[5, 3]
        ... )
        >>> sorted(loss(rollout).keys())
        ['ce_gamma_0.97', 'ce_gamma_0.995', 'loss_multi_gamma']

    See also :class:`~torchrl.trainers.algorithms.configs.MultiGammaValueLossConfig`.
    """

    @dataclass
    class _AcceptedKeys:
        """Maintains default values for all configurable tensordict keys.

        Attributes:
            latent (NestedKey): The latent state. Defaults to ``"latent"``.
            reward (NestedKey): The reward, under ``"next"``. Defaults to ``"reward"``.
            terminated (NestedKey): Whether the episode ended by termination, under
                ``"next"``. Defaults to ``"terminated"``.
            state_value (NestedKey): The value of the next state, under ``"next"``. Not
                read with ``bootstrap="self"``. Defaults to ``"state_value"``.
            target_latent (NestedKey): The latent state of the next observation, under
                ``"next"``. Read with ``bootstrap="self"`` only. Defaults to
                ``"target_latent"``.
        """

        latent: NestedKey = "latent"
        reward: NestedKey = "reward"
        terminated: NestedKey = "terminated"
        state_value: NestedKey = "state_value"
        target_latent: NestedKey = "target_latent"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys

    heads: AuxiliaryValueHeads
    heads_params: TensorDictParams
    target_heads_params: TensorDictParams

    def __init__(
        self,
        heads: AuxiliaryValueHeads,
        gammas: Sequence[float],
        *,
        vmin: float = -10.0,
        vmax: float = 10.0,
        rho: float = 0.5,
        loss_weight: float = 0.5,
        bootstrap: Literal["primary", "self"] = "primary",
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.gammas = tuple(float(gamma) for gamma in gammas)
        if len(self.gammas) != heads.num_heads:
            raise ValueError(
                f"gammas must hold one discount for each of the {heads.num_heads} "
                f"heads, got {self.gammas}."
            )
        if len(set(self.gammas)) < len(self.gammas) or not all(
            0 < gamma < 1 for gamma in self.gammas
        ):
            raise ValueError(f"gammas must differ and lie in (0, 1): {self.gammas}.")
        if bootstrap not in ("primary", "self"):
            raise ValueError(f"bootstrap must be primary or self, got {bootstrap!r}.")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be mean, sum or none, got {reduction!r}.")
        has_target = bootstrap == "self"
        self.convert_to_functional(heads, "heads", create_target_params=has_target)
        self.support = {"vmin": vmin, "vmax": vmax, "num_bins": heads.num_bins}
        self.rho = rho
        self.loss_weight = loss_weight
        self.bootstrap = bootstrap
        self.reduction = reduction
        self.register_buffer("_gammas", torch.tensor(self.gammas), persistent=False)

    def _forward_value_estimator_keys(self, **kwargs) -> None:
        """There is no value estimator."""

    @property
    def in_keys(self) -> list[NestedKey]:
        """The entries of a rollout that are read."""
        keys = self.tensor_keys
        following = [keys.reward, keys.terminated]
        if self.bootstrap == "primary":
            following.append(keys.state_value)
        else:
            following.append(keys.target_latent)
        return [keys.latent, *map(self._next_key, following)]

    @property
    def out_keys(self) -> list[NestedKey]:
        """The loss, and the cross-entropy of each head, without its weights."""
        heads = [f"ce_gamma_{gamma:g}" for gamma in self.gammas]
        return ["loss_multi_gamma", *heads]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the loss of all heads on a latent rollout ``[*B, T]``."""
        latent = tensordict.get(self.tensor_keys.latent)
        cross_entropy = symlog_two_hot_cross_entropy(
            self._logits(latent, self.heads_params),
            self._targets(tensordict).unsqueeze(-1),
            **self.support,
        ).squeeze(-1)

        steps = torch.arange(cross_entropy.shape[-2], device=cross_entropy.device)
        loss = self.loss_weight * self.rho**steps * cross_entropy.sum(-1)
        values = [self._reduce_loss(loss, tensordict)]
        for head in cross_entropy.detach().unbind(-1):
            values.append(self._reduce_loss(head, tensordict, reduction="mean"))
        return TensorDict(dict(zip(self.out_keys, values)))

    def get_extra_state(self) -> dict[str, Any]:
        """Return the discounts, which belong to the weights of the heads."""
        return {"gammas": list(self.gammas)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Refuse heads that were trained at other discounts."""
        if tuple(state["gammas"]) != self.gammas:
            raise ValueError(
                f"The heads were trained with gammas={state['gammas']}, and this loss "
                f"has gammas={list(self.gammas)}."
            )

    @staticmethod
    def _next_key(key: NestedKey) -> NestedKey:
        return unravel_key(("next", key))

    def _logits(self, latent: torch.Tensor, params: TensorDictParams) -> torch.Tensor:
        data = TensorDict(batch_size=latent.shape[:-1], device=latent.device)
        data.set(self.heads.in_keys[0], latent)
        with params.to_module(self.heads):
            return self.heads(data).get(self.heads.out_keys[0])

    @torch.no_grad()
    def _targets(self, tensordict: TensorDictBase) -> torch.Tensor:
        """Return the targets ``[*B, T, num_heads]``."""
        reward, terminated, bootstrap = map(tensordict.get, self.in_keys[1:])
        if self.bootstrap == "self":
            logits = self._logits(bootstrap, self.target_heads_params)
            bootstrap = symlog_two_hot_decode(logits, **self.support).squeeze(-1)
        return reward + self._gammas * (1 - terminated.to(reward.dtype)) * bootstrap
