"""The published networks and their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from torch import nn

from torchrl_tdmpc.modules.context import TaskContext
from torchrl_tdmpc.modules.layers import SimNorm, mlp
from torchrl_tdmpc.modules.memory import refuse_beyond_memory
from torchrl_tdmpc.modules.pixel_encoder import PixelEncoder
from torchrl_tdmpc.modules.policy_prior import PolicyPrior
from torchrl_tdmpc.modules.q_ensemble import QEnsemble
from torchrl_tdmpc.modules.two_hot import SymlogTwoHot
from torchrl_tdmpc.modules.world_model import TDMPC2WorldModel

__all__ = ["MODEL_SIZES", "ModelSize", "make_networks", "model_size"]


# The largest published size has widths of 4096, 5 layers and 8 Q-functions
LARGEST = {"num_enc_layers": 100, "num_q": 1000} | dict.fromkeys(
    ("enc_dim", "mlp_dim", "latent_dim"), 2**17
)


@dataclass(frozen=True)
class ModelSize:
    """Widths and depths of the networks.

    Raises:
        ValueError: a width or depth below 1 or absurdly large.
    """

    enc_dim: int  #: width of the encoder's hidden layers
    mlp_dim: int  #: width of every other network's hidden layers
    latent_dim: int  #: size of the latent, L
    num_enc_layers: int  #: layers of the encoder, the one that gives the latent included
    num_q: int  #: number of Q-functions, Q

    def __post_init__(self):
        for field in fields(self):
            if not 1 <= getattr(self, field.name) <= LARGEST[field.name]:
                raise ValueError(
                    f"{field.name} is {getattr(self, field.name)}; it must be at least 1 and "
                    f"at most {LARGEST[field.name]:,}."
                )


#: Published sizes by their number of parameters in millions (table 8, arXiv 2310.16828).
MODEL_SIZES = {
    1: ModelSize(256, 384, 128, 2, 2),
    5: ModelSize(256, 512, 512, 2, 5),
    19: ModelSize(1024, 1024, 768, 3, 5),
    48: ModelSize(1792, 1792, 768, 4, 5),
    317: ModelSize(4096, 4096, 1376, 5, 8),
}


def model_size(size: int, **overrides: int | None) -> ModelSize:
    """Look up a published size, some of its fields replaced.

    Args:
        size: millions of parameters: 1, 5, 19, 48 or 317.
        **overrides: fields of :class:`ModelSize`; None keeps the published value.

    Raises:
        ValueError: an unknown size.

    Examples:
        >>> model_size(1, latent_dim=64)
        ModelSize(enc_dim=256, mlp_dim=384, latent_dim=64, num_enc_layers=2, num_q=2)
    """
    if size not in MODEL_SIZES:
        choices = ", ".join(map(str, MODEL_SIZES))
        raise ValueError(f"size is {size!r}; the choices are {choices}.")
    return replace(MODEL_SIZES[size], **{k: v for k, v in overrides.items() if v is not None})


def make_networks(
    observation_shape: Sequence[int],
    action_dim: int,
    size: ModelSize = MODEL_SIZES[5],
    *,
    encoder: nn.Module | None = None,
    task_context: TaskContext | None = None,
    episodic: bool = False,
    two_hot: SymlogTwoHot = SymlogTwoHot(),
    simnorm_dim: int = 8,
    dropout: float = 0.01,
    log_std_min: float = -10.0,
    log_std_max: float = 2.0,
) -> tuple[TDMPC2WorldModel, PolicyPrior, QEnsemble]:
    """Build the published networks, initialised as published.

    Args:
        observation_shape: ``(D,)`` for a vector, ``(C, 64, 64)`` for stacked frames.
        action_dim: size of the action vector, A.
        size: widths and depths, see :func:`model_size`.
        encoder: an encoder of your own, from observations ``[..., *observation_shape]`` to latents
            ``[..., L]``, in place of the published one. With ``task_context`` it is called with
            the embedding as its second input.
        task_context: the tables of several tasks, for one model of all of them.
        episodic: whether the world model predicts terminations.
        two_hot: the support of the reward and return distributions.
        simnorm_dim: dimension of each simplex of the latent.
        dropout: probability of dropout in the first layer of the Q-functions.
        log_std_min: lower end of the policy prior's log standard deviation.
        log_std_max: upper end of the policy prior's log standard deviation.

    Returns:
        World model, policy prior and Q ensemble.

    Raises:
        ValueError: a latent that ``simnorm_dim`` does not divide, an observation of a shape that
            the published encoders cannot read, or tasks that terminate or whose widest action is
            not of size ``action_dim``.

    Examples:
        >>> world_model, policy_prior, q_ensemble = make_networks((5,), 1, MODEL_SIZES[1])
        >>> sum(p.numel() for p in q_ensemble.parameters())
        476362
    """
    latent_dim, hidden = size.latent_dim, 2 * [size.mlp_dim]
    refuse_beyond_memory(
        f"latent_dim is {latent_dim}, mlp_dim {size.mlp_dim}, enc_dim {size.enc_dim}, num_q "
        f"{size.num_q} and num_bins {two_hot.num_bins}; the weights",
        4 * _least_weights(size, two_hot.num_bins),
    )
    simnorm = SimNorm(simnorm_dim)
    if latent_dim % simnorm_dim:
        raise ValueError(
            f"latent_dim is {latent_dim}; it must be a multiple of simnorm_dim = {simnorm_dim}."
        )
    embedding_dim = 0
    if task_context is not None:
        embedding_dim = task_context.embedding_dim
        if task_context.action_dim != action_dim:
            raise ValueError(
                f"action_dim is {action_dim} and the widest action of the tasks has "
                f"{task_context.action_dim} dimensions; they must be the same."
            )
    if encoder is None:
        encoder = _published_encoder(tuple(observation_shape), size, simnorm, embedding_dim)
    state_dim = latent_dim + embedding_dim  # what is read in place of the latent
    dynamics = mlp(state_dim + action_dim, hidden, latent_dim, simnorm)
    reward_head = mlp(state_dim + action_dim, hidden, two_hot.num_bins, zero_last=True)
    termination_head = mlp(state_dim, hidden, 1) if episodic else None
    world_model = TDMPC2WorldModel(
        encoder,
        dynamics,
        reward_head,
        termination_head,
        latent_dim=latent_dim,
        two_hot=two_hot,
        task_context=task_context,
    )
    policy_prior = PolicyPrior(
        mlp(state_dim, hidden, 2 * action_dim), log_std_min=log_std_min, log_std_max=log_std_max
    )
    q_ensemble = QEnsemble(
        latent_dim,
        action_dim,
        size.mlp_dim,
        size.num_q,
        two_hot,
        dropout=dropout,
        embedding_dim=embedding_dim,
    )
    return world_model, policy_prior, q_ensemble


def _least_weights(size: ModelSize, num_bins: int) -> int:
    """The weights of all networks but a few: what observations and actions add is left out."""
    encoder = (size.num_enc_layers - 2) * size.enc_dim**2 + size.enc_dim * size.latent_dim
    widths = size.latent_dim + size.mlp_dim
    dynamics = size.mlp_dim * (widths + size.latent_dim)
    reward = size.mlp_dim * (widths + num_bins)
    return max(encoder, 0) + dynamics + (1 + size.num_q) * reward


def _published_encoder(
    observation_shape: tuple[int, ...], size: ModelSize, simnorm: SimNorm, embedding_dim: int
) -> nn.Module:
    match observation_shape:
        case (observation_dim,):
            hidden = max(size.num_enc_layers - 1, 1) * [size.enc_dim]
            return mlp(observation_dim + embedding_dim, hidden, size.latent_dim, simnorm)
        case (channels, 64, 64) if size.latent_dim % 16 == 0 and not embedding_dim:
            return PixelEncoder(channels, size.latent_dim // 16, simnorm)
    raise ValueError(
        f"the observation's shape is {observation_shape}; the published encoders read (D,), or "
        f"(C, 64, 64) if latent_dim (here {size.latent_dim}) is a multiple of 16 and there "
        "is one task alone."
    )
