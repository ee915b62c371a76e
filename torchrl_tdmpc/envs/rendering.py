"""Pictures of an environment, with or without a display."""

from __future__ import annotations

import ctypes.util
import os
import sys

import numpy as np
from torchrl.envs import DMControlWrapper, EnvBase, TransformedEnv
from torchrl.envs.libs.gym import GymWrapper

HEIGHT, WIDTH = 384, 512  # pixels; multiples of 16, which video codecs ask for


def choose_renderer() -> None:
    """Let MuJoCo draw through EGL where there is no display, unless ``MUJOCO_GL`` says otherwise.

    To be called before dm_control or gymnasium's MuJoCo tasks are imported, which read
    ``MUJOCO_GL`` once. Nothing happens where EGL is not installed.

    Examples:
        >>> choose_renderer()
    """
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not has_display and ctypes.util.find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")


def render(env: EnvBase) -> np.ndarray:
    """A picture of one environment as it is now.

    Args:
        env (EnvBase): an environment without batch dimensions, of dm_control or of Gymnasium (made
            with ``render_mode="rgb_array"``), whatever transforms are around it.

    Returns:
        np.ndarray: uint8, ``[height, width, 3]``.

    Raises:
        ValueError: if the environment cannot draw itself.

    Examples:
        >>> from torchrl_tdmpc.envs import load_task
        >>> env = load_task("dmcontrol", "walker-stand").make(0)
        >>> env.reset()["observation"].shape
        torch.Size([24])
        >>> render(env).shape
        (384, 512, 3)
    """
    while isinstance(env, TransformedEnv):
        env = env.base_env
    if isinstance(env, DMControlWrapper):
        return env._env.physics.render(HEIGHT, WIDTH, camera_id=0)
    picture = env._env.render() if isinstance(env, GymWrapper) else None
    if picture is None:
        raise ValueError(
            f"{type(env).__name__} draws no pictures; it must wrap dm_control, or a Gymnasium "
            "environment made with render_mode='rgb_array'."
        )
    return picture
