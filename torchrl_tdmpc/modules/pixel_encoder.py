"""The published encoder of stacked 64 x 64 frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchrl_tdmpc.modules.layers import SimNorm

__all__ = ["PixelEncoder", "shift_frames"]


def shift_frames(frames: Tensor, shift: Tensor, pad: int) -> Tensor:
    """Crop padded frames at an offset of their own (DrQ's augmentation, arXiv 2004.13649).

    Args:
        frames: ``[n, C, S, S]``.
        shift: offsets of the crop (row, column) in 0 .. 2 pad, int64 ``[n, 2]``; ``pad`` itself
            leaves a frame as it is.
        pad: pixels by which the border is replicated on each side.

    Examples:
        >>> frames = torch.arange(9.0).view(1, 1, 3, 3)
        >>> shift_frames(frames, torch.tensor([[1, 2]]), pad=1)
        tensor([[[[1., 2., 2.],
                  [4., 5., 5.],
                  [7., 8., 8.]]]])
    """
    size = frames.shape[-1]
    # Row (column) i of the crop is row i + shift - pad of the frame, the border repeated beyond it
    source = torch.arange(size, device=frames.device) + shift.unsqueeze(-1) - pad
    rows, columns = source.clamp(0, size - 1).unbind(1)
    frame = torch.arange(len(frames), device=frames.device).view(-1, 1, 1)
    return frames.movedim(1, -1)[frame, rows.unsqueeze(2), columns.unsqueeze(1)].movedim(-1, 1)


class PixelEncoder(nn.Sequential):
    """Four convolutions on randomly shifted frames (section 3.1 and appendix, arXiv 2310.16828).

    The shift is drawn at every call, when acting too, as published.

    Args:
        in_channels: channels of the stacked frames, C.
        num_channels: channels of each convolution; the latent has 16 times as many features.
        simnorm: applied to the flattened features, whose neighbours make its groups.
        pad: largest shift in pixels; 0 switches it off.

    Examples:
        >>> frames = torch.randint(256, (5, 9, 64, 64), dtype=torch.uint8)
        >>> PixelEncoder(9, 8, SimNorm(8))(frames).shape
        torch.Size([5, 128])
    """

    def __init__(
        self,
        in_channels: int,
        num_channels: int,
        simnorm: SimNorm,
        pad: int = 3,
    ):
        super().__init__(
            nn.Conv2d(in_channels, num_channels, 7, stride=2),
            nn.ReLU(),
            nn.Conv2d(num_channels, num_channels, 5, stride=2),
            nn.ReLU(),
            nn.Conv2d(num_channels, num_channels, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(num_channels, num_channels, 3, stride=1),
            nn.Flatten(),
            simnorm,
        )
        self.pad = pad

    def forward(self, frames: Tensor) -> Tensor:
        """Features ``[..., 16 num_channels]`` of frames ``[..., C, 64, 64]``, values 0 .. 255."""
        flat = frames.flatten(0, -4) if frames.dim() > 3 else frames.unsqueeze(0)
        if self.pad:
            shift = torch.randint(2 * self.pad + 1, (len(flat), 2), device=flat.device)
            flat = shift_frames(flat, shift, self.pad)
        pixels = flat.to(self[0].weight.dtype) / 255 - 0.5
        *convolutions, simnorm = self
        for layer in convolutions:
            pixels = layer(pixels)
        # Neighbours to every (L / dim)-th feature, which is what SimNorm takes for a group
        features = simnorm(pixels.unflatten(-1, (-1, simnorm.dim)).mT.flatten(-2))
        return features.view(*frames.shape[:-3], features.shape[-1])
