"""The TD-MPC2 objective: one loss for the world model and the Q-functions, one for the policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from torch import Tensor

from torchrl_tdmpc.modules import (
    Context,
    PolicyPrior,
    QEnsemble,
    RunningPercentileScale,
    TDMPC2WorldModel,
    refuse_misfit,
)
from torchrl_tdmpc.objectives.common import (
    LARGEST_COEFFICIENT,
    FunctionalLoss,
    next_key,
    refuse_batch,
    rho_weights,
    termination_statistics,
)

__all__ = ["TDMPC2Loss"]


class TDMPC2Loss(FunctionalLoss):
    """TD-MPC2 loss (equations 3 and 4, arXiv 2310.16828).

    An update is :meth:`model_loss`, a step of the model's optimiser, :meth:`actor_loss` on the
    rollout that ``model_loss`` returned, a step of the policy's optimiser, and a
    :class:`~torchrl.objectives.SoftUpdate` of the target Q-functions; see
    :class:`torchrl_tdmpc.trainers.TDMPC2Update`.

    Every ``loss_*`` is multiplied by its coefficient; the raw value stands beside it without that
    prefix. Sums over the horizon are weighted by ``rho ** t`` and divided by its length, the
    termination term excepted, as published.

    In training mode the Q-functions that are updated or maximised have dropout; in ``eval()`` they
    have none. Targets never do.

    With a world model of several tasks, the batch holds ``task`` ``[B, H]``, the same throughout a
    slice. Its context is looked up once for each call (or given as an argument), and the rollout
    carries it on, as ``context``, with ``task`` beside it.

    Args:
        world_model: encoder, dynamics, reward and, for tasks that terminate, termination.
        policy_prior: the policy.
        q_ensemble: the Q-functions; their targets are created here.

    Keyword Args:
        discount: discount factor of the TD target, gamma, in (0, 1). Left out for a world model of
            several tasks alone, each of which has its own.
        rho: decay of the weight of later steps of the rollout.
        consistency_coef: weight of the latent consistency loss.
        reward_coef: weight of the reward loss.
        value_coef: weight of the value loss.
        termination_coef: weight of the termination loss.
        entropy_coef: weight of the scaled entropy in the policy loss.
        value_scale_tau: Polyak coefficient of the running value scale.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``; the last gives the weighted terms ``[B, H]``
            (``[B, H + 1]`` for the policy), whose mean is the loss.

    Raises:
        ValueError: a discount outside (0, 1), one beside the tasks' own, a negative coefficient, or
            an unknown reduction.

    Examples:
        >>> from torchrl_tdmpc.modules import MODEL_SIZES, make_networks
        >>> loss = TDMPC2Loss(*make_networks((3,), 2, MODEL_SIZES[1]), discount=0.99)
        >>> batch = TensorDict(
        ...     observation=torch.randn(5, 3, 3),
        ...     action=torch.rand(5, 3, 2) * 2 - 1,
        ...     next=TensorDict(
        ...         observation=torch.randn(5, 3, 3),
        ...         reward=torch.randn(5, 3, 1),
        ...         terminated=torch.zeros(5, 3, 1, dtype=torch.bool),
        ...         batch_size=(5, 3),
        ...     ),
        ...     batch_size=(5, 3),
        ... )
        >>> model = loss.model_loss(batch)
        >>> actor = loss.actor_loss(model["rollout"])
        >>> sorted(k for k in [*model.keys(), *actor.keys()] if k.startswith("loss_"))
        ['loss_actor', 'loss_consistency', 'loss_reward', 'loss_value']
    """

    @dataclass
    class _AcceptedKeys:
        """Names of the entries that are read and written; ``set_keys`` changes them.

        ``observation``, ``action``, ``reward`` and ``terminated`` are read from the batch (the last
        two, and the observation that follows, under ``"next"``). ``latent``, ``target_latent`` and
        ``state_value`` are written into the rollout (the last two under ``"next"``). With several
        tasks, ``task`` is read from the batch, and written into the rollout with ``context``.
        """

        observation: NestedKey = "observation"
        action: NestedKey = "action"
        reward: NestedKey = "reward"
        terminated: NestedKey = "terminated"
        task: NestedKey = "task"
        latent: NestedKey = "latent"
        target_latent: NestedKey = "target_latent"
        state_value: NestedKey = "state_value"
        context: NestedKey = "context"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys

    world_model: TDMPC2WorldModel
    world_model_params: TensorDictParams
    target_world_model_params: TensorDictParams
    policy_prior: PolicyPrior
    policy_prior_params: TensorDictParams
    target_policy_prior_params: TensorDictParams
    q_ensemble: QEnsemble
    q_ensemble_params: TensorDictParams
    target_q_ensemble_params: TensorDictParams

    coefficient_limits = {
        "rho": 1.0,
        "consistency_coef": LARGEST_COEFFICIENT,
        "reward_coef": LARGEST_COEFFICIENT,
        "value_coef": LARGEST_COEFFICIENT,
        "termination_coef": LARGEST_COEFFICIENT,
        "entropy_coef": LARGEST_COEFFICIENT,
    }

    def __init__(
        self,
        world_model: TDMPC2WorldModel,
        policy_prior: PolicyPrior,
        q_ensemble: QEnsemble,
        *,
        discount: float | None = None,
        rho: float = 0.5,
        consistency_coef: float = 20.0,
        reward_coef: float = 0.1,
        value_coef: float = 0.1,
        termination_coef: float = 1.0,
        entropy_coef: float = 1e-4,
        value_scale_tau: float = 0.01,
        reduction: str = "mean",
    ):
        refuse_misfit(world_model, policy_prior, q_ensemble)
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction is {reduction!r}; the choices are mean, sum, none.")
        super().__init__()
        self.convert_to_functional(world_model, "world_model")
        self.convert_to_functional(policy_prior, "policy_prior")
        self.convert_to_functional(q_ensemble, "q_ensemble", create_target_params=True)
        self.value_scale = RunningPercentileScale(value_scale_tau)
        self.discount = discount
        self.rho = rho
        self.consistency_coef = consistency_coef
        self.reward_coef = reward_coef
        self.value_coef = value_coef
        self.termination_coef = termination_coef
        self.entropy_coef = entropy_coef
        self.reduction = reduction
        self._set_in_keys()
        terms = ["consistency", "reward", "value", "actor"]
        if world_model.episodic:
            terms.append("termination")
        self.out_keys = (
            [f"loss_{term}" for term in terms]
            + terms
            + ["clipped_reward", "clipped_td_target", "largest_reward", "largest_td_target"]
            + ["entropy", "scaled_entropy", "value_scale"]
        )
        if world_model.episodic:
            self.out_keys += ["termination_rate", "termination_f1"]

    @property
    def discount(self) -> float | None:
        """Discount factor of the TD target; None if the tasks have their own."""
        return self._discount

    @discount.setter
    def discount(self, discount: float | None) -> None:
        self.world_model.refuse_discount("discount", discount)
        self._discount = discount

    def _set_in_keys(self) -> None:
        keys = self.tensor_keys
        self.in_keys = [
            keys.observation,
            keys.action,
            next_key(keys.observation),
            next_key(keys.reward),
            next_key(keys.terminated),
            *self._task_keys(),
        ]

    def _task_keys(self) -> list[NestedKey]:
        return [] if self.world_model.task_context is None else [self.tensor_keys.task]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """All losses at once, for trainers that step every parameter after one backward pass.

        The gradients of the model's and the policy's losses are disjoint, so their sum can be
        differentiated. The published order differs in one point: there the policy loss sees the
        Q-functions after the model's step, here before it. (A task embedding alone gets gradients
        of both.)

        Args:
            tensordict: a batch ``[B, H]``.

        Returns:
            The entries of ``out_keys`` and, unless some of them were selected, every further
            ``loss_*`` of a subclass.
        """
        losses = self.model_loss(tensordict)
        losses.update(self.actor_loss(losses.pop("rollout")))
        kept = list(self.out_keys)
        if kept == list(self.out_keys_source):
            kept += [key for key in losses.keys() if key.startswith("loss_")]  # noqa: SIM118
        return losses.select(*kept)

    def context(self, tensordict: TensorDictBase) -> Context:
        """Look up the context ``[B]`` of the slices of a batch or rollout ``[B, H]``.

        A look-up changes the embedding's table (see :class:`~torchrl_tdmpc.TaskContext`), so it
        belongs before compiled code.
        """
        first = tensordict.select(*self._task_keys())[:, 0]
        with self._weights_of("world_model"):
            return self.world_model.context(first, self.tensor_keys.task)

    def model_loss(
        self,
        batch: TensorDictBase,
        *,
        policy_eps: Tensor | None = None,
        q_pair: Tensor | None = None,
        context: Context | None = None,
    ) -> TensorDict:
        """Loss of world model and Q-functions.

        Args:
            batch: consecutive transitions ``[B, H]``; it is not changed.
            policy_eps: noise of the policy's action in the TD target, ``[B, H, A]``.
            q_pair: the two target Q-functions in the TD target, int64 ``[2]``.
            context: of each slice, ``[B]``; looked up here when None.

        Returns:
            ``loss_consistency``, ``loss_reward``, ``loss_value`` and ``loss_termination`` (if the
            model is episodic), their raw values, and ``rollout``, the latent rollout ``[B, H]``
            that :meth:`actor_loss` and auxiliary losses read. ``clipped_reward`` and
            ``clipped_td_target`` are the shares beyond the bins, ``largest_reward`` and
            ``largest_td_target`` the largest magnitudes. If the model is episodic, also
            ``termination_rate``, the share of slices whose last step terminated, and
            ``termination_f1``, the F1 score of predicting that.
        """
        refuse_batch(batch, self.tensor_keys, self.q_ensemble.action_dim)
        self._refuse_masks(batch)
        context = self.context(batch) if context is None else context
        with self._weights_of("world_model"), self._weights_of("policy_prior"):
            rollout, td_target = self._roll_out(batch, policy_eps, q_pair, context)
            terms, metrics = self._terms(rollout, td_target, context.unsqueeze(1))
        losses = TensorDict(metrics)
        for name, term in terms.items():
            raw = self._reduce_loss(term, batch)
            losses[f"loss_{name}"] = getattr(self, f"{name}_coef") * raw
            losses[name] = raw.detach()
        losses["rollout"] = rollout
        return losses

    def _roll_out(
        self,
        batch: TensorDictBase,
        policy_eps: Tensor | None,
        q_pair: Tensor | None,
        of_slice: Context,
    ) -> tuple[TensorDict, Tensor]:
        """The latent rollout ``[B, H]`` of a batch, and its TD targets ``[B, H, 1]``."""
        keys = self.tensor_keys
        action = batch[keys.action]
        reward = batch[next_key(keys.reward)]
        terminated = batch[next_key(keys.terminated)]
        context = of_slice.unsqueeze(1)  # the same at every step

        # Targets: encode(s_1 .. s_H), and r + gamma (1 - terminated) V(s')
        with torch.no_grad():
            target_latent = self.world_model.encode(batch[next_key(keys.observation)], context)
            state_value = self._bootstrap(target_latent, policy_eps, q_pair, context)
            discount = context.discount_or(self.discount)
            td_target = reward + discount * (1 - terminated.to(reward.dtype)) * state_value

        # Rollout: z_0 = h(s_0), z_{t+1} = d(z_t, a_t)
        latents = self.world_model.unroll(batch[keys.observation][:, 0], action, of_slice)
        rollout = TensorDict(
            {
                keys.latent: latents[:, :-1],
                keys.action: action,
                next_key(keys.latent): latents[:, 1:],
                next_key(keys.target_latent): target_latent,
                next_key(keys.state_value): state_value,
                next_key(keys.reward): reward,
                next_key(keys.terminated): terminated,
                **context.entries(keys.context, action.shape[:2]),
            },
            batch_size=action.shape[:2],
        )
        kept = batch.select(*self._task_keys(), *self._loss_mask_keys(), strict=False)
        return rollout.update(kept), td_target

    def _terms(
        self, rollout: TensorDict, td_target: Tensor, context: Context
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses at every step of a rollout, ``[B, H]`` each, and what is reported beside."""
        keys, model, q_ensemble = self.tensor_keys, self.world_model, self.q_ensemble
        latent, action = rollout[keys.latent], rollout[keys.action]
        next_latent, reward = rollout[next_key(keys.latent)], rollout[next_key(keys.reward)]

        # Predictions
        reward_logits = model.reward_logits(latent, action, context)
        q_logits = q_ensemble.logits(
            latent, action, context, params=self.q_ensemble_params, dropout=self.training
        )

        # Sums over the horizon are weighted by rho^t, the termination term excepted
        consistency = (next_latent - rollout[next_key(keys.target_latent)]).square().mean(-1)
        terms = {
            "consistency": consistency,
            "reward": model.two_hot.cross_entropy(reward_logits, reward).squeeze(-1),
            "value": q_ensemble.two_hot.cross_entropy(q_logits, td_target).squeeze(-1).mean(0),
        }
        terms = {name: term * rho_weights(self.rho, term) for name, term in terms.items()}
        metrics = {
            "clipped_reward": model.two_hot.share_beyond(reward),
            "clipped_td_target": q_ensemble.two_hot.share_beyond(td_target),
            "largest_reward": reward.abs().amax(),
            "largest_td_target": td_target.abs().amax(),
        }
        if model.episodic:
            logit = model.termination_logit(next_latent, context)
            terminated = rollout[next_key(keys.terminated)].to(reward.dtype)
            terms["termination"] = F.binary_cross_entropy_with_logits(
                logit, terminated, reduction="none"
            ).squeeze(-1)
            metrics |= termination_statistics(logit[:, -1], terminated[:, -1])
        return terms, metrics

    def actor_loss(
        self,
        rollout: TensorDictBase,
        *,
        policy_eps: Tensor | None = None,
        q_pair: Tensor | None = None,
        context: Context | None = None,
    ) -> TensorDict:
        """Loss of the policy prior: maximum-entropy policy gradient through the Q-functions.

        In training mode the running value scale is first updated from the values at z_0.

        Args:
            rollout: the latent rollout ``[B, H]``; its latents are detached here.
            policy_eps: noise of the policy's action, ``[B, H + 1, A]``.
            q_pair: the two Q-functions whose mean is maximised, int64 ``[2]``.
            context: of each slice, ``[B]``; looked up here, by the rollout's ``task``, when None:
                the model's step may have moved the embedding since the rollout was made.

        Returns:
            ``loss_actor``, its value again as ``actor``, ``entropy``, ``scaled_entropy`` and
            ``value_scale``.
        """
        self._refuse_masks(rollout)
        key = self.tensor_keys.latent
        latent = torch.cat([rollout[key], rollout[next_key(key)][:, -1:]], 1).detach()
        context = (self.context(rollout) if context is None else context).unsqueeze(1)
        with self._weights_of("policy_prior"):
            policy = self.policy_prior.sample(latent, policy_eps, context)

        # Q(z, pi(z)): gradients flow through the action, not into the Q-functions
        value = self.q_ensemble.value(
            latent,
            policy.action,
            context,
            params=self.q_ensemble_params.detach(),
            pair=self.q_ensemble.draw_pair() if q_pair is None else q_pair,
            dropout=self.training,
        ).mean(0)
        if self.training:
            self.value_scale.update(value[:, 0])

        # -(alpha H + Q / scale)
        objective = self.entropy_coef * policy.scaled_entropy + self.value_scale(value)
        term = -objective.squeeze(-1)
        loss = self._reduce_loss(
            term * rho_weights(self.rho, term), self._masks_of_all_latents(rollout)
        )
        return TensorDict(
            loss_actor=loss,
            actor=loss.detach(),
            entropy=policy.entropy.detach().mean(),
            scaled_entropy=policy.scaled_entropy.detach().mean(),
            value_scale=self.value_scale.value.detach().clone().squeeze(),
        )

    def _bootstrap(
        self,
        latent: Tensor,
        policy_eps: Tensor | None,
        q_pair: Tensor | None,
        context: Context,
    ) -> Tensor:
        """V(s') ``[..., 1]``: the smaller of two target Q-functions at the policy's action."""
        return self.q_ensemble.value(
            latent,
            self.policy_prior.act(latent, policy_eps, context),
            context,
            params=self.target_q_ensemble_params,
            pair=self.q_ensemble.draw_pair() if q_pair is None else q_pair,
        ).amin(0)

    def _masks_of_all_latents(self, rollout: TensorDictBase) -> TensorDictBase:
        """The rollout's loss masks for z_0 .. z_H: z_H counts where the last transition does."""
        masks = rollout.select(*self._loss_mask_keys(), strict=False)
        return torch.cat([masks, masks[:, -1:]], 1)
