from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn


class AuxiliaryValueHeads(TensorDictModuleBase):
    """Linear heads that map a latent state to categorical distributions of values.

    Every head has ``num_bins`` logits. The heads share one linear layer, whose weights
    start at zero: each distribution is uniform at first, and no random number is drawn.

    Args:
        latent_dim (int): Size of the latent state.
        num_heads (int): Number of heads.
        num_bins (int): Number of bins of each distribution.
        latent_key (NestedKey, optional): Where the latent state is read. Defaults to
            ``"latent"``.
        logits_key (NestedKey, optional): Where logits of shape
            ``[*, num_heads, num_bins]`` are written. Defaults to ``"value_logits"``.
        device (torch.device, optional): Device of the weights. Defaults to ``None``.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import AuxiliaryValueHeads
        >>> heads = AuxiliaryValueHeads(latent_dim=16, num_heads=2, num_bins=101)
        >>> data = TensorDict(latent=torch.randn(5, 16), batch_size=[5])
        >>> heads(data)["value_logits"].shape
        torch.Size([5, 2, 101])

    See also :class:`~torchrl.objectives.MultiGammaValueLoss`, which trains them, and
    :class:`~torchrl.trainers.algorithms.configs.AuxiliaryValueHeadsConfig`.
    """

    def __init__(
        self,
        latent_dim: int,
        num_heads: int,
        num_bins: int,
        *,
        latent_key: NestedKey = "latent",
        logits_key: NestedKey = "value_logits",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1:
            raise ValueError(f"num_heads must be positive, got {num_heads}.")
        if num_bins < 2:
            raise ValueError(f"num_bins must be greater than 1, got {num_bins}.")
        self.in_keys = [latent_key]
        self.out_keys = [logits_key]
        self.num_heads = num_heads
        self.num_bins = num_bins
        # Initialized here alone, so that the global generator is left as it is
        self.linear = nn.utils.skip_init(
            nn.Linear, latent_dim, num_heads * num_bins, device=device or "cpu"
        )
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the logits of all heads."""
        logits = self.linear(tensordict.get(self.in_keys[0]))
        logits = logits.unflatten(-1, (self.num_heads, self.num_bins))
        return tensordict.set(self.out_keys[0], logits)
