"""The auxiliary objective: value targets at several discounts, from one linear head each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from torch import Tensor

from torchrl_tdmpc.modules.two_hot import SymlogTwoHot
from torchrl_tdmpc.modules.value_heads import AuxiliaryValueHeads
from torchrl_tdmpc.objectives.common import (
    LARGEST_COEFFICIENT,
    FunctionalLoss,
    next_key,
    rho_weights,
)
from torchrl_tdmpc.objectives.tdmpc2 import TDMPC2Loss

__all__ = ["MultiGammaValueLoss"]


class MultiGammaValueLoss(FunctionalLoss):
    """Cross-entropy of auxiliary value heads on a latent rollout.

    Head i learns, at every latent z_0 .. z_{H-1}, the one-step target

        ``y_i = r + gamma_i (1 - terminated) V(s')``

    where V(s') is the rollout's primary bootstrap, or with ``bootstrap="self"`` the decoded value
    of an exponential average of the head itself at the encoded s'. Targets carry no gradient. The
    loss is ``loss_weight`` times the sum over heads of the mean over batch and horizon of
    ``rho ** t`` times the cross-entropy. It trains heads, dynamics and encoder; it never reaches
    the policy, the Q-functions or the planner.

    It reads a latent rollout only, so it composes with any model that writes one.

    Args:
        heads: one for each discount after the first.
        gammas: the primary discount and those of the heads, each in (0, 1).

    Keyword Args:
        two_hot: the support of the distributions, the same as the Q-functions'.
        rho: decay of the weight of later steps of the rollout.
        loss_weight: weight of each head's loss.
        bootstrap: ``"primary"`` or ``"self"``; the latter creates target parameters, to be moved by
            :class:`~torchrl.objectives.SoftUpdate`.
        detach_latent: keeps the gradient out of whatever made the latents.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``; the last gives the weighted terms ``[B, H]``
            (summed over heads), whose mean is the loss.

    Raises:
        ValueError: numbers of heads, discounts or bins that do not fit, a discount outside (0, 1),
            or an unknown word.

    Examples:
        >>> heads = AuxiliaryValueHeads(latent_dim=16, num_heads=2, num_bins=101)
        >>> loss = MultiGammaValueLoss(heads, gammas=[0.99, 0.97, 0.995])
        >>> following = TensorDict(
        ...     reward=torch.randn(5, 3, 1),
        ...     terminated=torch.zeros(5, 3, 1, dtype=torch.bool),
        ...     state_value=torch.randn(5, 3, 1),
        ...     batch_size=(5, 3),
        ... )
        >>> rollout = TensorDict(latent=torch.randn(5, 3, 16), next=following, batch_size=(5, 3))
        >>> loss(rollout)["aux_value_ce/g0.97"] > 0
        tensor(True)
    """

    @dataclass
    class _AcceptedKeys:
        """Names of the entries that are read; ``set_keys`` changes them.

        ``latent`` is read at the root; ``reward``, ``terminated``, ``state_value`` (the primary
        bootstrap) and ``target_latent`` (with ``bootstrap="self"``, in place of ``state_value``)
        under ``"next"``.
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

    coefficient_limits = {"rho": 1.0, "loss_weight": LARGEST_COEFFICIENT}

    def __init__(
        self,
        heads: AuxiliaryValueHeads,
        gammas: Sequence[float],
        *,
        two_hot: SymlogTwoHot = SymlogTwoHot(),
        rho: float = 0.5,
        loss_weight: float = 0.5,
        bootstrap: Literal["primary", "self"] = "primary",
        detach_latent: bool = False,
        reduction: str = "mean",
    ):
        if len(gammas) != heads.num_heads + 1:
            raise ValueError(
                f"gammas is {list(gammas)}; {heads.num_heads} heads need "
                f"{heads.num_heads + 1} discounts, the primary one first."
            )
        if not all(0 < gamma < 1 for gamma in gammas):
            raise ValueError(f"gammas is {list(gammas)}; each must lie strictly between 0 and 1.")
        if heads.num_bins != two_hot.num_bins:
            raise ValueError(
                f"the heads have {heads.num_bins} bins and the support has {two_hot.num_bins}; "
                "they must be the same."
            )
        if bootstrap not in ("primary", "self"):
            raise ValueError(f"bootstrap is {bootstrap!r}; the choices are primary, self.")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction is {reduction!r}; the choices are mean, sum, none.")
        super().__init__()
        self.convert_to_functional(heads, "heads", create_target_params=bootstrap == "self")
        self.gammas = tuple(float(gamma) for gamma in gammas)
        self.two_hot = two_hot
        self.rho = rho
        self.loss_weight = loss_weight
        self.bootstrap = bootstrap
        self.detach_latent = detach_latent
        self.reduction = reduction
        self.labels = _labels(self.gammas[1:])
        self._set_in_keys()
        statistics = ("aux_value_ce", "aux_value_mean", "aux_value_std")
        metrics = [f"{name}/{label}" for label in self.labels for name in statistics]
        self.out_keys = ["loss_multi_gamma", "aux_value_ce/mean", *metrics]

    def refuse_misfit(self, loss: TDMPC2Loss) -> None:
        """Refuse a loss whose rollouts the heads cannot learn from.

        Raises:
            ValueError: it has several tasks, another primary discount or another size of latent.
        """
        if loss.discount is None:
            raise ValueError(
                "auxiliary value heads learn one task, and this world model has several; train one "
                "without the other."
            )
        if not math.isclose(self.gammas[0], loss.discount, abs_tol=1e-6):
            raise ValueError(
                f"gammas begins with {self.gammas[0]} and the discount of the loss is "
                f"{loss.discount}; the first must be the primary discount."
            )
        if self.heads.latent_dim != loss.world_model.latent_dim:
            raise ValueError(
                f"the heads read a latent of {self.heads.latent_dim} numbers and the world model's "
                f"latent_dim is {loss.world_model.latent_dim}; they must be the same."
            )

    def _set_in_keys(self) -> None:
        keys = self.tensor_keys
        bootstrap = keys.state_value if self.bootstrap == "primary" else keys.target_latent
        self.in_keys = [keys.latent, *map(next_key, (keys.reward, keys.terminated, bootstrap))]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """The loss of all heads.

        Args:
            tensordict: a latent rollout ``[B, H]``; it is not changed.

        Returns:
            ``loss_multi_gamma``, and detached: each head's mean cross-entropy over batch and
            horizon (``aux_value_ce/g{gamma}``, not weighted by rho), their mean, and mean and
            standard deviation of the decoded prediction.
        """
        self._refuse_masks(tensordict)
        logits, target = self._predictions_and_targets(tensordict)
        cross_entropy = self.two_hot.cross_entropy(logits, target.unsqueeze(-1)).squeeze(-1)

        # loss_weight * sum_i mean_{b,t} rho^t CE_i
        term = cross_entropy.sum(-1)
        term = rho_weights(self.rho, term) * term
        output = TensorDict(loss_multi_gamma=self.loss_weight * self._reduce_loss(term, tensordict))

        with torch.no_grad():
            prediction = self.two_hot.decode(logits).squeeze(-1).flatten(0, 1)
            mean_cross_entropy = cross_entropy.detach().flatten(0, 1).mean(0)
            output["aux_value_ce/mean"] = mean_cross_entropy.mean()
            statistics = {
                "aux_value_ce": mean_cross_entropy,
                "aux_value_mean": prediction.mean(0),
                "aux_value_std": prediction.std(0, correction=0),
            }
            for name, values in statistics.items():
                for label, value in zip(self.labels, values.unbind()):
                    output[f"{name}/{label}"] = value
        return output.select(*self.out_keys)

    @torch.no_grad()
    def examine(self, rollout: TensorDictBase) -> TensorDict:
        """What the heads predict, step by step: for snapshots, not for training.

        Args:
            rollout: a latent rollout ``[B, H]``.

        Returns:
            A TensorDict ``[B, H]``: ``probability`` ``[B, H, K, num_bins]``; ``prediction``,
            ``target``, ``absolute_error``, ``cross_entropy``, ``lower_bin`` (of the target's two
            bins) and ``upper_share`` ``[B, H, K]``; ``top_bins`` and ``top_probabilities``
            ``[B, H, K, 2]``; ``bootstrap`` ``[B, H, 1]`` or ``[B, H, K]``.
        """
        logits, target = self._predictions_and_targets(rollout)
        lower, upper_share = self.two_hot.lower_bin(target.unsqueeze(-1))
        prediction = self.two_hot.decode(logits).squeeze(-1)
        probability = logits.softmax(-1)
        top = probability.topk(2, -1)
        return TensorDict(
            probability=probability,
            prediction=prediction,
            target=target,
            absolute_error=(prediction - target).abs(),
            cross_entropy=self.two_hot.cross_entropy(logits, target.unsqueeze(-1)).squeeze(-1),
            lower_bin=lower.squeeze(-1),
            upper_share=upper_share.squeeze(-1),
            top_bins=top.indices,
            top_probabilities=top.values,
            bootstrap=self._bootstrap(rollout),
            batch_size=logits.shape[:2],
        )

    def get_extra_state(self) -> dict[str, Any]:
        """The discounts, stored beside the weights."""
        return {"multi_gamma": list(self.gammas)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Refuse weights that were trained at other discounts.

        Raises:
            ValueError: the discounts differ.
        """
        if state["multi_gamma"] != list(self.gammas):
            raise ValueError(
                f"the weights were trained with gammas {state['multi_gamma']}, but "
                f"this loss has {list(self.gammas)}; they must be the same."
            )

    def _predictions_and_targets(self, rollout: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Logits ``[B, H, K, num_bins]`` and targets ``[B, H, K]``."""
        keys = self.tensor_keys
        latent = rollout[keys.latent]
        logits = self.heads.logits(
            latent.detach() if self.detach_latent else latent, params=self.heads_params
        )
        # y_i = r + gamma_i (1 - terminated) V(s')
        with torch.no_grad():
            reward = rollout[next_key(keys.reward)]
            going_on = 1 - rollout[next_key(keys.terminated)].to(reward.dtype)
            gamma = torch.stack([reward.new_full((), gamma) for gamma in self.gammas[1:]])
            target = reward + gamma * going_on * self._bootstrap(rollout)
        return logits, target

    def _bootstrap(self, rollout: TensorDictBase) -> Tensor:
        """V(s'): ``[B, H, 1]``, the primary one, or ``[B, H, K]``, each head's own."""
        if self.bootstrap == "primary":
            return rollout[next_key(self.tensor_keys.state_value)].detach()
        latent = rollout[next_key(self.tensor_keys.target_latent)]
        logits = self.heads.logits(latent, params=self.target_heads_params)
        return self.two_hot.decode(logits).squeeze(-1)


def _labels(gammas: Sequence[float]) -> list[str]:
    """Names of the discounts in metrics; a repeated one gets ``#2``, ``#3``.

    Examples:
        >>> _labels([0.99, 0.97, 0.99])
        ['g0.99', 'g0.97', 'g0.99#2']
    """
    seen: Counter[str] = Counter()
    labels = []
    for gamma in gammas:
        name = f"g{gamma:g}"
        seen[name] += 1
        labels.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return labels
