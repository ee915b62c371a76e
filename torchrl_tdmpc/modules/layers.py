"""The building blocks of every network: SimNorm, the normed linear layer and the MLP made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Linear", "NormedLinear", "SimNorm", "mish", "mlp"]


class _Mish(torch.autograd.Function):
    """Mish and its derivative, each in a few passes over memory.

    With n = e^x (e^x + 2), tanh(softplus(x)) is n / (n + 2); it is 1 in float32 from x = 20 on.
    """

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        exp = x.clamp(max=20).exp_()
        n = (exp + 2).mul_(exp)
        return exp.copy_(n).div_(n.add_(2)).mul_(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        # mish'(x) = n / (n + 2) + x 4 e^x (e^x + 1) / (n + 2)^2
        exp = x.clamp(max=20).exp_()
        n = (exp + 2).mul_(exp)
        slope = (exp + 1).mul_(exp).mul_(4).mul_(x)
        d = n + 2
        return slope.div_(d).add_(n).div_(d).mul_(grad)


def mish(x: Tensor) -> Tensor:
    """Mish, ``x * tanh(softplus(x))``, with a single exponential (arXiv 1908.08681).

    Several times faster on a CPU than ``torch.nn.functional.mish``.

    Args:
        x: any shape.

    Returns:
        The same shape as ``x``.

    Examples:
        >>> x = torch.linspace(-30, 30, 101)
        >>> torch.allclose(mish(x), F.mish(x), atol=1e-6)
        True
    """
    return _Mish.apply(x)


class SimNorm(nn.Module):
    """Simplicial normalisation: a softmax over each group of features (arXiv 2204.00616).

    Args:
        dim: number of neighbouring features in a group, the dimension of each simplex.

    Raises:
        ValueError: when called on features that ``dim`` does not divide.

    Examples:
        >>> latent = SimNorm(8)(torch.randn(5, 32))
        >>> torch.allclose(latent.view(5, 4, 8).sum(-1), torch.ones(5, 4))
        True
    """

    def __init__(self, dim: int = 8):
        super().__init__()
        if dim < 1:
            raise ValueError(f"model.simnorm_dim is {dim}; it must be at least 1.")
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape ``[..., L]`` group by group, keeping its shape."""
        if x.shape[-1] % self.dim:
            raise ValueError(
                f"SimNorm got {x.shape[-1]} features; their number must be a multiple of "
                f"model.simnorm_dim = {self.dim}."
            )
        # A softmax over a strided dimension is several times faster than one over 8 neighbours,
        # even when the copies into and out of that layout are counted.
        groups = x.unflatten(-1, (-1, self.dim)).transpose(-1, -2).contiguous()
        return groups.softmax(-2).transpose(-1, -2).flatten(-2)

    def extra_repr(self) -> str:
        """Show the group's size in the module's representation."""
        return f"dim={self.dim}"


class Linear(nn.Linear):
    """A linear map initialised as published: weights truncated normal with std 0.02, biases zero.

    Args:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension.
        zero: whether the weights start at zero too.
    """

    def __init__(self, in_features: int, out_features: int, zero: bool = False):
        self.zero = zero
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Initialise again."""
        if self.zero:
            nn.init.zeros_(self.weight)
        else:
            nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)


class NormedLinear(Linear):
    """``activation(LayerNorm(dropout(linear(x))))``, the layer all TD-MPC2 networks are made of.

    Args:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension.
        activation: applied last.
        dropout: probability of dropping an output of the linear map, in training mode.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: Callable[[Tensor], Tensor] = mish,
        dropout: float = 0.0,
    ):
        super().__init__(in_features, out_features)
        self.ln = nn.LayerNorm(out_features)
        self.activation = activation
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``."""
        x = super().forward(x)
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        return self.activation(self.ln(x))


def mlp(
    in_features: int,
    hidden: Sequence[int],
    out_features: int,
    activation: Callable[[Tensor], Tensor] | None = None,
    dropout: float = 0.0,
    zero_last: bool = False,
) -> nn.Sequential:
    """Build normed hidden layers and a last layer.

    Args:
        in_features: size of the input's last dimension.
        hidden: width of each hidden layer.
        out_features: size of the output's last dimension.
        activation: if given, the last layer is a :class:`NormedLinear` that ends in it; if not, it
            is a plain linear map.
        dropout: probability of dropout, in the first layer only (as published).
        zero_last: whether the weights of a plain last layer start at zero.

    Examples:
        >>> mlp(3, [16, 16], 8)(torch.zeros(5, 3)).shape
        torch.Size([5, 8])
    """
    widths = [in_features, *hidden]
    layers = [
        NormedLinear(fan_in, fan_out, dropout=dropout if i == 0 else 0.0)
        for i, (fan_in, fan_out) in enumerate(pairwise(widths))
    ]
    if activation is None:
        last = Linear(widths[-1], out_features, zero=zero_last)
    else:
        last = NormedLinear(widths[-1], out_features, activation)
    return nn.Sequential(*layers, last)
