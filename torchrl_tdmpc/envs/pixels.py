"""Observing rendered frames."""

from __future__ import annotations

import numpy as np
import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torch.nn.functional import interpolate
from torchrl.data import TensorSpec, Unbounded
from torchrl.envs import CatFrames, Transform, TransformedEnv
from torchrl.record import PixelRenderTransform

FRAME_SIZE = 64  # pixels, as published
FRAME_CHANNELS = 3  # red, green, blue
NUM_FRAMES = 3  # in an observation


def append_frames(env: TransformedEnv, image: NestedKey | None = None) -> None:
    """Observe the last three frames, stacked along the channels, newest last, as published.

    The ``observation`` is uint8 ``[9, 64, 64]``. After a reset it is the first frame three times.

    Args:
        env: around an environment with a ``render`` method.
        image: an entry that the environment observes, uint8 ``[height, width, 3]``, and which is
            taken in place of what ``render`` gives.
    """
    if image is None:
        env.append_transform(_Frame(out_keys=["pixels"], preproc=to_frame))
    else:
        env.append_transform(_Resize(in_keys=[image], out_keys=["pixels"]))
    env.append_transform(CatFrames(NUM_FRAMES, -3, in_keys=["pixels"], out_keys=["observation"]))


def to_frame(frame: np.ndarray | Tensor) -> Tensor:
    """A frame as the encoder reads it; another size is averaged down to 64 x 64.

    Args:
        frame: uint8 ``[height, width, 3]``.

    Returns:
        uint8 ``[3, 64, 64]``.

    Examples:
        >>> to_frame(np.zeros((240, 320, 3), dtype=np.uint8)).shape
        torch.Size([3, 64, 64])
    """
    frame = torch.as_tensor(np.array(frame)).permute(2, 0, 1)  # a copy: renderers reuse theirs
    if frame.shape[1:] == (FRAME_SIZE, FRAME_SIZE):
        return frame.contiguous()
    small = interpolate(frame.float().unsqueeze(0), (FRAME_SIZE, FRAME_SIZE), mode="area")
    return small.squeeze(0).round().to(torch.uint8)


class _Frame(PixelRenderTransform):
    """TorchRL's transform, which would reset the environment to learn the shape of a frame."""

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        shape = (FRAME_CHANNELS, FRAME_SIZE, FRAME_SIZE)
        observation_spec[self.out_keys[0]] = Unbounded(shape, dtype=torch.uint8)
        return observation_spec


class _Resize(Transform):
    """An image of the environment's own as a frame."""

    def _apply_transform(self, image: Tensor) -> Tensor:
        return to_frame(image)

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        shape = (FRAME_CHANNELS, FRAME_SIZE, FRAME_SIZE)
        observation_spec[self.out_keys[0]] = Unbounded(shape, dtype=torch.uint8)
        return observation_spec
