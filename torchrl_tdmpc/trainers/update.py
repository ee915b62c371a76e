"""One update: from a batch of slices to a TensorDict of metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import distributed
from torch.nn.utils import clip_grad_norm_
from torchrl.objectives import LossModule

from torchrl_tdmpc.modules import Context, Execution
from torchrl_tdmpc.objectives import MultiGammaValueLoss, TDMPC2Loss
from torchrl_tdmpc.torchrl_series import tell_targets_move

__all__ = ["TDMPC2Update", "count_parameters"]


class TDMPC2Update:
    """The published update of world model, Q-functions, policy prior and targets.

    With a world model of several tasks, the policy loss reaches the task embedding, which the
    model's optimiser owns. As published, this gradient is not dropped: it is added to the model's
    in the next update, and counts in its norm. Between updates it is part of the state of
    ``model_optimizer``.

    Args:
        loss: the objective, and through it the networks. Targets keep the weights they have.
        auxiliary: further losses on the same rollout, each a LossModule that reads it and writes
            one ``loss_*``: :class:`~torchrl_tdmpc.MultiGammaValueLoss` is one. Their gradients
            reach their own parameters, the dynamics and the encoder. Targets that one of them has
            are moved like the Q-functions'.

    Keyword Args:
        lr: learning rate of both optimisers.
        enc_lr_scale: factor on the encoder's learning rate.
        grad_clip_norm: largest norm of the model's gradient, and of the policy's.
        tau: Polyak coefficient of the target Q-functions.
        execution: how the losses are computed: compiled or not, and in which precision.
        ranks: processes of ``torch.distributed`` that each get an equal part of a batch; None where
            this one gets it all. Gradients are averaged before they are clipped, and the value
            scale sees the values of all, so the step is that of the whole batch if the draws are
            those of the whole batch. Metrics are those of this part.

    Raises:
        ValueError: a setting out of its range, a loss that is not reduced to a scalar (to a mean,
            with ``ranks``), or an auxiliary one that does not fit.

    Attributes:
        model_optimizer: Adam over encoder, dynamics, heads, Q-functions and auxiliary losses.
        actor_optimizer: Adam over the policy prior, with its own epsilon.
        shared: parameters of the model that the policy loss reaches too: a task embedding.
        metric_names: the keys of what a call returns.
        auxiliary_names: a name for each auxiliary loss, after the ``loss_*`` that it writes.

    Examples:
        >>> from torchrl_tdmpc.modules import MODEL_SIZES, make_networks
        >>> loss = TDMPC2Loss(*make_networks((3,), 2, MODEL_SIZES[1]), discount=0.99)
        >>> update = TDMPC2Update(loss)
        >>> transitions = TensorDict(
        ...     observation=torch.randn(5, 3),
        ...     reward=torch.randn(5, 1),
        ...     terminated=torch.zeros(5, 1, dtype=torch.bool),
        ...     batch_size=5,
        ... )
        >>> batch = TensorDict(
        ...     observation=torch.randn(5, 3),
        ...     action=torch.rand(5, 2),
        ...     next=transitions,
        ...     batch_size=5,
        ... )
        >>> metrics = update(batch.unsqueeze(1))
        >>> sorted(metrics.keys()) == sorted(update.metric_names)
        True
    """

    def __init__(
        self,
        loss: TDMPC2Loss,
        auxiliary: Sequence[LossModule] = (),
        *,
        lr: float = 3e-4,
        enc_lr_scale: float = 0.3,
        grad_clip_norm: float = 20.0,
        tau: float = 0.01,
        execution: Execution = Execution(),
        ranks: distributed.ProcessGroup | None = None,
    ):
        limits = {
            "lr": (lr, 0 < lr <= 1, "positive and at most 1"),
            "enc_lr_scale": (
                enc_lr_scale,
                0 <= enc_lr_scale <= 1000,
                "at least 0 and at most 1000",
            ),
            "grad_clip_norm": (
                grad_clip_norm,
                0 < grad_clip_norm <= 1e12,
                "positive and at most 1e12",
            ),
            "tau": (tau, 0 < tau <= 1, "in (0, 1]"),
        }
        for name, (value, holds, allowed) in limits.items():
            if not holds:
                raise ValueError(f"{name} is {value}; it must be {allowed}.")
        for one in (loss, *auxiliary):
            if getattr(one, "reduction", "mean") == "none":
                raise ValueError(
                    f"the reduction of {type(one).__name__} is 'none'; an update needs 'mean' or "
                    "'sum'."
                )
            if ranks is not None and getattr(one, "reduction", "mean") != "mean":
                raise ValueError(
                    f"the reduction of {type(one).__name__} is {one.reduction!r}; with ranks an "
                    "update needs 'mean'."
                )
            tell_targets_move(one)
        for one in auxiliary:
            if isinstance(one, MultiGammaValueLoss):
                one.refuse_misfit(loss)
        self.loss = loss
        self.auxiliary = list(auxiliary)
        self.auxiliary_names = [_loss_key(one).removeprefix("loss_") for one in auxiliary]
        self.grad_clip_norm = grad_clip_norm
        self.ranks = loss.value_scale.ranks = ranks
        encoder = list(loss.world_model.encoder.parameters())
        rest = [p for n, p in loss.world_model.named_parameters() if not n.startswith("encoder.")]
        rest += loss.q_ensemble.parameters()
        groups = [{"params": encoder, "lr": lr * enc_lr_scale}, {"params": rest}]
        loss_parts = (loss.world_model, loss.q_ensemble, loss.policy_prior)
        taken = {id(p) for part in loss_parts for p in part.parameters()}
        for one in self.auxiliary:
            own = [p for p in one.parameters() if p.requires_grad and id(p) not in taken]
            if own:  # an auxiliary loss may do without parameters of its own
                groups.append({"params": own})
        self.shared = [
            p
            for n, p in loss.world_model.named_parameters()
            if n.startswith("task_context.") and p.requires_grad
        ]
        self.model_optimizer = torch.optim.Adam(groups, lr=lr, eps=1e-8, fused=True)
        self.actor_optimizer = torch.optim.Adam(
            loss.policy_prior.parameters(), lr=lr, eps=1e-5, fused=True
        )
        device = next(loss.q_ensemble.parameters()).device
        self._model_losses = execution.prepare(_model_losses, device)
        self._actor_loss = execution.prepare(type(loss).actor_loss, device)
        self.tau = tau
        self.metric_names = [
            *loss.out_keys,
            "grad_norm_model",
            "grad_norm_actor",
            "skipped_updates",
            *(key for one in self.auxiliary for key in one.out_keys),
        ]
        if repeated := {n for n in self.metric_names if self.metric_names.count(n) > 1}:
            raise ValueError(f"two losses write {sorted(repeated)}; each needs names of its own.")

    @property
    def components(self) -> dict[str, Any]:
        """What a checkpoint holds: losses with their networks and targets, and optimisers."""
        return {
            "loss": self.loss,
            "model_optimizer": self.model_optimizer,
            "actor_optimizer": self.actor_optimizer,
            **dict(zip(self.auxiliary_names, self.auxiliary, strict=True)),
        }

    def __call__(
        self,
        batch: TensorDictBase,
        model_draws: dict[str, Any] | None = None,
        actor_draws: dict[str, Any] | None = None,
    ) -> TensorDict:
        """Do one optimisation step.

        Args:
            batch: consecutive transitions ``[B, H]``.
            model_draws: the random draws of :meth:`TDMPC2Loss.model_loss`; drawn there when None.
            actor_draws: the random draws of :meth:`TDMPC2Loss.actor_loss`; drawn there when None.

        Returns:
            Detached scalars: every loss and raw value, the gradient norms before clipping, entropy
            and value scale; ``skipped_updates``, 1 if a loss or a gradient was not finite; and
            further ``loss_*`` of a subclass (a run has a column for those in its ``out_keys``). If
            a number of the model was not finite, nothing was changed and the policy's metrics are
            NaN; if it was one of the policy, only the policy's step was left out. The device
            decides that: everything is computed in any case, and the host waits for nothing.
        """
        for optimizer in (self.model_optimizer, self.actor_optimizer):
            optimizer.zero_grad()  # frees the gradients before memory is needed for activations
        self._restore_gradients()

        # World model and Q-functions, and auxiliary losses on the same rollout
        context = self.loss.context(batch)
        metrics = self._model_losses(self.loss, self.auxiliary, batch, context, **model_draws or {})
        rollout = metrics.pop("rollout")
        metrics["grad_norm_model"], is_finite = self._backward(self.model_optimizer, metrics)
        _step(self.model_optimizer, is_finite)
        for parameter in self.shared:
            parameter.grad = None

        # Policy prior, on the same latents, with Q-functions and context as they are now
        context, value_scale = self.loss.context(rollout), self.loss.value_scale.value
        scale_before = value_scale.clone()
        actor = self._actor_loss(self.loss, rollout, context=context, **actor_draws or {})
        actor["grad_norm_actor"], is_policy_finite = self._backward(self.actor_optimizer, actor)
        is_policy_finite = is_policy_finite & is_finite
        _step(self.actor_optimizer, is_policy_finite)
        self._keep_gradients(is_finite, is_policy_finite)
        value_scale.copy_(torch.where(is_finite, value_scale, scale_before))
        unknown = torch.full((), torch.nan, device=is_finite.device)
        metrics.update({name: torch.where(is_finite, x, unknown) for name, x in actor.items()})

        # Target Q-functions, and targets of auxiliary losses
        for one in (self.loss, *self.auxiliary):
            _move_targets(one, self.tau, is_finite)

        metrics["skipped_updates"] = (~is_policy_finite).float()
        further = [name for name in metrics.keys() if name.startswith("loss_")]  # noqa: SIM118
        names = dict.fromkeys([*self.metric_names, *further])
        return TensorDict({name: metrics.get(name, unknown) for name in names}).detach()

    def _restore_gradients(self) -> None:
        """Begin with what the last policy loss left on parameters of the model."""
        for parameter in self.shared:
            left = self.model_optimizer.state[parameter].get("left_by_policy")
            parameter.grad = None if left is None else left.clone()

    def _keep_gradients(self, is_finite: torch.Tensor, is_policy_finite: torch.Tensor) -> None:
        """Remember what this policy loss left.

        Nothing, if the policy's step was left out; what was left before, if the model's was.
        """
        for parameter in self.shared:
            state, zero = self.model_optimizer.state[parameter], torch.zeros_like(parameter)
            grad = zero if parameter.grad is None else parameter.grad
            before = state.get("left_by_policy", zero)
            grad = torch.where(is_policy_finite, grad, zero)
            state["left_by_policy"] = torch.where(is_finite, grad, before)

    def _backward(
        self, optimizer: torch.optim.Optimizer, losses: TensorDict
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Clipped gradients of the sum of every ``loss_*``.

        Returns:
            Their norm before clipping, and whether it and the sum are finite, on their device.
        """
        total = sum(value for name, value in losses.items() if name.startswith("loss_"))
        total.backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.ranks is not None:
            total = total.detach()
            shared = [p for p in self.shared if all(p is not q for q in parameters)]
            gradients = [p.grad for p in (*parameters, *shared) if p.grad is not None]
            _average([total, *gradients], self.ranks)
        grad_norm = clip_grad_norm_(parameters, self.grad_clip_norm)
        is_finite = total.isfinite() & grad_norm.isfinite()
        for parameter in self.shared:  # the policy's optimiser does not own them
            if parameter.grad is not None:
                is_finite = is_finite & parameter.grad.isfinite().all()
        return grad_norm, is_finite


def _average(tensors: Sequence[torch.Tensor], ranks: distributed.ProcessGroup) -> None:
    """Put the mean over processes into each tensor, by one message."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat, group=ranks)
    flat /= distributed.get_world_size(ranks)
    pieces = flat.split([tensor.numel() for tensor in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.copy_(piece.view_as(tensor))


def _step(optimizer: torch.optim.Adam, is_finite: torch.Tensor) -> None:
    """One step of a fused Adam, which the device leaves out where ``is_finite`` is False."""
    optimizer.found_inf = (~is_finite).float()
    optimizer.step()
    del optimizer.found_inf


@torch.no_grad()
def _move_targets(loss: LossModule, tau: float, is_finite: torch.Tensor) -> None:
    """``target <- lerp(target, online, tau)``, or with 0 in place of tau: it stays as it is."""
    for name, targets in loss.named_children():
        if name.startswith("target_"):
            online = getattr(loss, name.removeprefix("target_"))
            for key, target in targets.items(True, True):
                if online[key].requires_grad:
                    target.data.lerp_(online[key].data, tau * is_finite.to(target.dtype))


def _model_losses(
    loss: TDMPC2Loss,
    auxiliary: Sequence[LossModule],
    batch: TensorDictBase,
    context: Context,
    **draws: Any,
) -> TensorDict:
    """Every loss of world model, Q-functions and auxiliary parts, and the rollout."""
    losses = loss.model_loss(batch, context=context, **draws)
    for one in auxiliary:
        losses.update(one(losses["rollout"]))
    return losses


def count_parameters(update: TDMPC2Update) -> dict[str, int]:
    """The number of weights of each part, targets not counted, and their total."""
    world_model = update.loss.world_model
    parts = {
        "encoder": world_model.encoder,
        "dynamics": world_model.dynamics,
        "reward": world_model.reward_head,
        "termination": world_model.termination_head,
        "task embedding": world_model.task_context,
        "policy prior": update.loss.policy_prior,
        "Q ensemble": update.loss.q_ensemble,
        **dict(zip(update.auxiliary_names, update.auxiliary)),
    }
    counts = {
        name: sum(p.numel() for p in part.parameters() if p.requires_grad)
        for name, part in parts.items()
        if part is not None
    }
    return {**counts, "total": sum(counts.values())}


def _loss_key(auxiliary: LossModule) -> str:
    """The one ``loss_*`` that an auxiliary loss writes."""
    keys = [key for key in auxiliary.out_keys if key.startswith("loss_")]
    if len(keys) != 1:
        raise ValueError(
            f"{type(auxiliary).__name__} has the out_keys {list(auxiliary.out_keys)}; an auxiliary "
            "loss must write exactly one loss_*."
        )
    return keys[0]
