"""The Q ensemble: stacked networks that predict a distribution over returns."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from torchrl_tdmpc.modules.context import Context
from torchrl_tdmpc.modules.layers import at_least_float32, norm_mish
from torchrl_tdmpc.modules.params import NetworkParams
from torchrl_tdmpc.modules.two_hot import SymlogTwoHot

__all__ = ["QEnsemble"]


class QEnsemble(TensorDictModuleBase):
    """Q-functions with stacked weights and two-hot outputs (section 3.1, arXiv 2310.16828).

    Every Q-function is two normed linear layers (dropout in the first) and a linear one whose
    weights start at zero. All weights carry the Q-function as their first dimension, in one
    :class:`~tensordict.nn.TensorDictParams` called ``params``, named by layer: ``0.weight``,
    ``0.bias``, ``0.ln.weight``, ``0.ln.bias``, ``1.*``, ``2.weight``, ``2.bias``.

    The methods evaluate the module's own weights, or others of the same structure (targets,
    detached copies), and all Q-functions or only those that ``pair`` names.

    Args:
        latent_dim: size of the latent, L.
        action_dim: size of the action, A.
        mlp_dim: width of the hidden layers.
        num_q: number of Q-functions, Q.
        two_hot: the support of the return distribution.
        dropout: probability of dropout in the first layer, where a call asks for dropout.
        embedding_dim: size of the embedding that is read between latent and action, C.
        latent_key: where the latent is read.
        action_key: where the action is read.
        value_key: where the decoded values ``[..., Q]`` are written by ``forward``.

    Raises:
        ValueError: fewer than two Q-functions (every bootstrap draws a pair) or more than 1000, or
            a probability outside [0, 1).

    Examples:
        >>> q_ensemble = QEnsemble(latent_dim=16, action_dim=3, mlp_dim=32, num_q=5)
        >>> latent, action = torch.randn(7, 16), torch.randn(7, 3)
        >>> q_ensemble.value(latent, action).shape
        torch.Size([5, 7, 1])
        >>> q_ensemble.value(latent, action, pair=torch.tensor([4, 1])).shape
        torch.Size([2, 7, 1])
    """

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        mlp_dim: int,
        num_q: int = 5,
        two_hot: SymlogTwoHot = SymlogTwoHot(),
        *,
        dropout: float = 0.01,
        embedding_dim: int = 0,
        latent_key: NestedKey = "latent",
        action_key: NestedKey = "action",
        value_key: NestedKey = "state_action_value",
    ):
        super().__init__()
        if not 2 <= num_q <= 1000:
            raise ValueError(
                f"num_q is {num_q}; it must be at least 2, because pairs are drawn from them, "
                "and at most 1000."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it must be in [0, 1).")
        self.latent_dim = latent_dim
        self.action_dim = action_dim
        self.embedding_dim = embedding_dim
        self.num_q = num_q
        self.two_hot = two_hot
        self.dropout = dropout
        self.in_keys = [latent_key, action_key]
        self.out_keys = [value_key]
        widths = (latent_dim + embedding_dim + action_dim, mlp_dim, mlp_dim, two_hot.num_bins)
        self.params = NetworkParams.of(
            {
                str(i): _empty_layer(num_q, fan_in, fan_out, normed=i < 2)
                for i, (fan_in, fan_out) in enumerate(pairwise(widths))
            }
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as published: truncated normal with std 0.02, the last layer zero."""
        for index, layer in self.params.items():
            if index == "2":
                nn.init.zeros_(layer["weight"])
            else:
                nn.init.trunc_normal_(layer["weight"], std=0.02)
                nn.init.ones_(layer["ln", "weight"])
                nn.init.zeros_(layer["ln", "bias"])
            nn.init.zeros_(layer["bias"])

    def _reset_parameters(self, module: nn.Module) -> bool:
        self.reset_parameters()  # tensordict looks at submodules only
        return True

    def draw_pair(self) -> Tensor:
        """Indices of two different Q-functions, drawn at random: int64 ``[2]``."""
        return torch.rand(self.num_q, device=self.params["0", "weight"].device).topk(2).indices

    def logits(
        self,
        latent: Tensor,
        action: Tensor,
        context: Context = Context(),
        *,
        params: TensorDictBase | None = None,
        pair: Tensor | None = None,
        dropout: bool = False,
    ) -> Tensor:
        """Return distributions.

        Args:
            latent: ``[..., L]``.
            action: ``[..., A]``.
            context: whose leading dimensions broadcast to those of ``latent``.
            params: weights to use in place of the module's own, as
                ``TensorDict.from_module(q_ensemble)`` lays them out.
            pair: int64 indices of the Q-functions to evaluate, all of them by default.
            dropout: whether the first layer drops outputs.

        Returns:
            Logits ``[Q or len(pair), ..., num_bins]``.
        """
        weights = dict((self.params if params is None else params["params"]).items(True, True))
        if pair is not None:
            weights = {key: weight[pair] for key, weight in weights.items()}
        embedding = [e.expand(*latent.shape[:-1], e.shape[-1]) for e in context.inputs]
        features = torch.cat([latent, *embedding, action], -1)
        # [n, fan_in] -> [Q, n, fan_out], the same input for every Q-function
        x = _linear(weights, "0", features.view(-1, features.shape[-1]))
        x = _norm_mish(weights, "0", F.dropout(x, self.dropout, dropout, inplace=True))
        x = _norm_mish(weights, "1", _linear(weights, "1", x))
        x = _linear(weights, "2", x)
        return x.view(len(x), *features.shape[:-1], -1)

    def value(
        self, latent: Tensor, action: Tensor, context: Context = Context(), **kwargs
    ) -> Tensor:
        """Decoded values ``[Q or len(pair), ..., 1]``; arguments as for :meth:`logits`."""
        return self.two_hot.decode(self.logits(latent, action, context, **kwargs))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the decoded values of all Q-functions, ``[..., Q]``."""
        latent, action = (tensordict.get(key) for key in self.in_keys)
        value = self.value(latent, action, Context.read(tensordict), dropout=self.training)
        return tensordict.set(self.out_keys[0], value.squeeze(-1).movedim(0, -1))


def _empty_layer(num_q: int, fan_in: int, fan_out: int, normed: bool) -> TensorDict:
    """One layer's weights ``[Q, fan_out, fan_in]`` and the rest, not initialised."""
    layer = TensorDict(weight=torch.empty(num_q, fan_out, fan_in), bias=torch.empty(num_q, fan_out))
    if normed:
        layer["ln"] = layer.select("bias").set("weight", torch.empty(num_q, fan_out)).clone()
    return layer


def _linear(weights: dict[NestedKey, Tensor], layer: str, x: Tensor) -> Tensor:
    """``[Q, n, fan_out]`` from ``[Q, n, fan_in]``, or from ``[n, fan_in]`` for all of them."""
    weight, bias = weights[layer, "weight"], weights[layer, "bias"]
    product = torch.bmm(x.expand(len(weight), *x.shape[-2:]), weight.mT)
    return at_least_float32(product).add_(bias.unsqueeze(1))


def _norm_mish(weights: dict[NestedKey, Tensor], layer: str, x: Tensor) -> Tensor:
    """Layer norm with each Q-function's own scale and shift, then mish: ``[Q, n, fan_out]``."""
    scale, shift = weights[layer, "ln", "weight"], weights[layer, "ln", "bias"]
    return norm_mish(x, scale.unsqueeze(1), shift.unsqueeze(1))
