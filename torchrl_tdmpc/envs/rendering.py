"""Pictures of an environment, with or without a display."""

from __future__ import annotations

import ctypes.util
import os
import sys

import numpy as np
from torchrl.envs import DMControlWrapper, EnvBase, TransformedEnv

from torchrl_tdmpc.torchrl_series import wrapped_env

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
    """A frame of one environment as it is now, for people to look at.

    dm_control is drawn at 384 x 512; any other environment at the size of its own ``render()``.

    Args:
        env: an environment without batch dimensions, whatever transforms are around it.

    Returns:
        uint8, ``[height, width, 3]``.

    Raises:
        AttributeError: if the environment has no ``render`` method.
        ValueError: if what the method returns is no frame.

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
        return wrapped_env(env).physics.render(HEIGHT, WIDTH, camera_id=getattr(env, "camera", 0))
    unwrapped = getattr(env, "unwrapped", None)
    if getattr(unwrapped, "render_mode", "") is None and "rgb_array" in unwrapped.metadata.get(
        "render_modes", ()
    ):
        unwrapped.render_mode = "rgb_array"  # Gymnasium's, of which no frame was wanted before
    frame = env.render()
    if getattr(frame, "shape", ())[2:] != (3,) or not str(frame.dtype).endswith("uint8"):
        raise ValueError("render() gives no uint8 frame of shape [height, width, 3].")
    return np.array(frame)  # a copy: renderers reuse theirs


def refuse_rendering(env: EnvBase, name: str, reason: str) -> None:
    """Say so if an environment cannot be rendered here.

    Args:
        env: it is reset and rendered once.
        name: the task's name, for the message.
        reason: why it is to be rendered: ``"pixels is true"``.

    Raises:
        ValueError: if rendering fails or gives something else than a frame.
    """
    env.reset()
    try:
        render(env)
    except Exception as error:  # each OpenGL library has errors of its own
        failure = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        renderer = os.environ.get("MUJOCO_GL", "not set")
        raise ValueError(
            f"{reason}, but task {name!r} cannot be rendered here ({failure}); MUJOCO_GL, "
            f"which is {renderer}, may be egl, osmesa or glfw, whichever is installed."
        ) from error
