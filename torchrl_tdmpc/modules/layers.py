"""The building blocks of every network: SimNorm, the normed linear layer and the MLP made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "MLP",
    "Linear",
    "NormedLinear",
    "SimNorm",
    "at_least_float32",
    "mish",
    "mlp",
    "norm_mish",
    "official_order",
]


class _Mish(torch.autograd.Function):
    """Mish and its derivative, each in a few passes over memory."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _mish_(x.clone())

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _mish_slope_(x.clone()).mul_(grad)


class _NormMish(torch.autograd.Function):
    """``mish(scale * layer_norm(x) + shift)``, of which ``x`` alone is kept for the derivative.

    What lies between is as large as ``x`` and computed again: in the update of a Q ensemble that
    costs little time, and saves a third of the memory of its activations.
    """

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def forward(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return _mish_(F.layer_norm(x, x.shape[-1:]).mul_(scale).add_(shift))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, scale, shift = ctx.saved_tensors
        features = x.shape[-1:]
        normed, mean, rstd = torch.native_layer_norm(x, features, None, None, 1e-5)
        grad = _mish_slope_(torch.addcmul(shift, normed, scale)).mul_(grad)
        grad_scale = normed.mul_(grad).sum_to_size(scale.shape)
        grad_shift = grad.sum_to_size(shift.shape)
        grad_x, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad.mul_(scale), x, features, mean, rstd, None, None, [True, False, False]
        )
        return grad_x, grad_scale, grad_shift


# With n = e^x (e^x + 2), tanh(softplus(x)) is n / (n + 2), which is 1 in float32 from x = 20 on;
# below x = -20 mish is taken as mish(-20), which is -4e-8


def _mish_(x: Tensor) -> Tensor:
    """Mish in the place of ``x``: x n / (n + 2)."""
    exp = _exp(x)
    n = (exp + 2).mul_(exp)
    d = exp.copy_(n).add_(2)
    return x.clamp_min_(-20).mul_(n.div_(d))


def _mish_slope_(x: Tensor) -> Tensor:
    """The derivative of mish, n / (n + 2) + 4 x (e^x + e^2x) / (n + 2)^2; overwrites ``x``."""
    exp = _exp(x)
    n = (exp + 2).mul_(exp)
    slope = exp.sub_(n).mul_(-4).mul_(x.clamp_min_(-20))  # e^x - n = -(e^x + e^2x)
    d = x.copy_(n).add_(2)
    return slope.div_(d).add_(n).div_(d)


def _exp(x: Tensor) -> Tensor:
    """e^x for x in [-20, 20], clamped to it.

    Where the compiler writes the loop for a CPU, its exponential is a call for every few numbers;
    a polynomial stays within the loop and halves the time of a layer's norm and activation.
    """
    x = x.clamp(-20, 20)
    if not (torch.compiler.is_compiling() and x.device.type == "cpu"):
        return x.exp_()
    # e^x = (e^(x / 16))^16, and x / 16 is so small where mish bends that eight terms are enough,
    # and five where bfloat16 comes next
    degree = 4 if torch.is_autocast_enabled("cpu") else 7
    x = x / 16
    power = 1 / math.factorial(degree)
    for k in range(degree - 1, -1, -1):
        power = power * x + 1 / math.factorial(k)
    return power.pow(16)


def mish(x: Tensor) -> Tensor:
    """Mish, ``x * tanh(softplus(x))``, with a single exponential (arXiv 1908.08681).

    Several times faster on a CPU than ``torch.nn.functional.mish``, and equal to it up to 1e-6.

    Args:
        x: any shape; halves are computed in float32.

    Returns:
        The same shape and dtype as ``x``.

    Examples:
        >>> x = torch.linspace(-30, 30, 101)
        >>> torch.allclose(mish(x), F.mish(x), atol=1e-6)
        True
    """
    return _Mish.apply(at_least_float32(x)).to(x.dtype)


def norm_mish(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Mish of a layer norm over the last dimension, in float32.

    Args:
        x: ``[..., D]``.
        scale: factor on the normalised features, of a shape that broadcasts to that of ``x``.
        shift: added to them, likewise.

    Returns:
        The same shape as ``x``.

    Examples:
        >>> x, scale, shift = torch.randn(3, 5, 8), torch.rand(3, 1, 8), torch.rand(3, 1, 8)
        >>> expected = F.mish(F.layer_norm(x, (8,)) * scale + shift)
        >>> torch.allclose(norm_mish(x, scale, shift), expected, atol=1e-6)
        True
    """
    return _NormMish.apply(at_least_float32(x), scale, shift)


def at_least_float32(x: Tensor) -> Tensor:
    """``x``, in float32 if it is of a half precision: for what a product of halves is too coarse.

    Examples:
        >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


class SimNorm(nn.Module):
    """Simplicial normalisation: a softmax over each group of features (arXiv 2204.00616).

    Of L features, every (L / dim)-th makes a group. The official implementation groups ``dim``
    neighbours; the order of a latent's features has no meaning, and a softmax over a strided
    dimension is several times faster. :func:`official_order` translates.

    Args:
        dim: number of features in a group, the dimension of each simplex.

    Raises:
        ValueError: when called on features that ``dim`` does not divide.

    Examples:
        >>> latent = SimNorm(8)(torch.randn(5, 32))
        >>> torch.allclose(latent.view(5, 8, 4).sum(1), torch.ones(5, 4))
        True
    """

    def __init__(self, dim: int = 8):
        super().__init__()
        if dim < 1:
            raise ValueError(f"simnorm_dim is {dim}; it must be at least 1.")
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape ``[..., L]`` group by group, keeping its shape."""
        if x.shape[-1] % self.dim:
            raise ValueError(
                f"SimNorm got {x.shape[-1]} features; their number must be a multiple of "
                f"simnorm_dim = {self.dim}."
            )
        groups = at_least_float32(x).unflatten(-1, (self.dim, -1))
        return groups.softmax(-2).flatten(-2)

    def extra_repr(self) -> str:
        """Show the group's size in the module's representation."""
        return f"dim={self.dim}"


def official_order(latent_dim: int, simnorm_dim: int) -> Tensor:
    """Where each feature of our latent stands in the published one.

    Args:
        latent_dim: size of the latent, L.
        simnorm_dim: dimension of each simplex, a divisor of L.

    Returns:
        int64 ``[L]``: ``ours = published[..., order]``; back again it is ``order.argsort()``.

    Examples:
        >>> official_order(6, 2)
        tensor([0, 2, 4, 1, 3, 5])
    """
    return torch.arange(latent_dim).view(-1, simnorm_dim).T.flatten()


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

    def forward(self, *inputs: Tensor) -> Tensor:
        """``weight @ cat(inputs) + bias`` for inputs ``[..., D_i]`` whose D_i sum to in_features.

        Their leading dimensions broadcast: a latent that many actions share is multiplied once.
        """
        sizes = [x.shape[-1] for x in inputs]
        if sum(sizes) != self.in_features:
            raise ValueError(
                f"a layer that reads {self.in_features} numbers got {' + '.join(map(str, sizes))}."
            )
        first, *rest = self.weight.split(sizes, -1)
        # Apart from the product, or a bias is rounded to bfloat16
        y = at_least_float32(F.linear(inputs[0], first)).add_(self.bias)
        for x, weight in zip(inputs[1:], rest):
            y = y + F.linear(x, weight)
        return y


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

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs as :class:`Linear` does to ``[..., out_features]``."""
        x = super().forward(*inputs)
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        if self.activation is mish:  # in one step, which keeps less for the backward pass
            return norm_mish(x, self.ln.weight, self.ln.bias)
        return self.activation(self.ln(x))


class MLP(nn.Sequential):
    """Layers one after the other, of which the first takes several inputs."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs as the first layer does, and the result through the rest."""
        first, *rest = self
        x = first(*inputs)
        for layer in rest:
            x = layer(x)
        return x


def mlp(
    in_features: int,
    hidden: Sequence[int],
    out_features: int,
    activation: Callable[[Tensor], Tensor] | None = None,
    dropout: float = 0.0,
    zero_last: bool = False,
) -> MLP:
    """Build normed hidden layers and a last layer.

    Args:
        in_features: size of the input's last dimension, of several inputs the sum.
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
    return MLP(*layers, last)
