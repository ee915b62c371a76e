"""The tasks of Gymnasium."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from torchrl_tdmpc.envs.pixels import FRAME_SIZE
from torchrl_tdmpc.envs.rendering import choose_renderer
from torchrl_tdmpc.envs.task import unknown

if TYPE_CHECKING:
    import gymnasium


def make_gymnasium(name: str, *, pixels: bool = False) -> gymnasium.Env:
    """An environment of Gymnasium by its id.

    Args:
        name: the id: ``"Hopper-v5"``, ``"Pendulum-v1"``.
        pixels: whether its frames will be observed; MuJoCo's are 64 x 64 then.

    Returns:
        gymnasium.Env: the environment, with the time limit that its id declares. It can be rendered
        if it declares frames among its render modes.

    Raises:
        ImportError: if Gymnasium, or a package that the environment needs, is not installed.
        ValueError: if the id is unknown.

    Examples:
        >>> make_gymnasium("Pendulum-v1").spec.max_episode_steps
        200
    """
    gymnasium = import_gymnasium()
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error:
        raise unknown("task", name, gymnasium.registry) from None
    try:
        settings = {"render_mode": "rgb_array"} if pixels or _declares_pictures(spec) else {}
        if pixels and str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
            settings |= {"width": FRAME_SIZE, "height": FRAME_SIZE}
        return gymnasium.make(name, **settings)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ImportError(
            f"task {name!r} needs a package that is not installed ({reason}); "
            "pip install 'torchrl_tdmpc[gym]' brings those of Gymnasium's MuJoCo tasks."
        ) from error


def import_gymnasium() -> ModuleType:
    """Gymnasium, or a sentence on how to install it.

    Raises:
        ImportError: if Gymnasium is not installed.
    """
    choose_renderer()
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        if error.name != "gymnasium":
            raise
        raise ImportError(
            "backend 'gym' needs gymnasium: pip install 'torchrl_tdmpc[gym]'."
        ) from error
    return gymnasium


def _declares_pictures(spec: gymnasium.envs.registration.EnvSpec) -> bool:
    creator = spec.entry_point
    if isinstance(creator, str):
        creator = import_gymnasium().envs.registration.load_env_creator(creator)
    return "rgb_array" in (getattr(creator, "metadata", {}).get("render_modes") or ())
