"""The tasks of Gymnasium."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from tensordict import NestedKey, TensorDictBase
from torchrl.data import Composite, Unbounded
from torchrl.envs.gym_like import BaseInfoDictReader

from torchrl_tdmpc.envs.border import first_line
from torchrl_tdmpc.envs.pixels import FRAME_SIZE
from torchrl_tdmpc.envs.rendering import choose_renderer
from torchrl_tdmpc.envs.task import import_named, unknown

if TYPE_CHECKING:
    import gymnasium


def make_gymnasium(
    name: str, *, renders: bool = False, pixels: bool = False, **kwargs: Any
) -> gymnasium.Env:
    """An environment of Gymnasium by its id.

    Args:
        name: the id: ``"Hopper-v5"``, ``"Pendulum-v1"``; ``"module:Id-v0"`` imports the module
            first, which registers the id.
        renders: whether to ask for a renderer, if it declares frames among its render modes.
        pixels: whether its frames will be observed; MuJoCo's are 64 x 64 then.
        kwargs: for ``gymnasium.make``.

    Returns:
        gymnasium.Env: the environment, with the time limit that its id declares.

    Raises:
        ImportError: if Gymnasium, or a package that the environment needs, is not installed.
        ValueError: if the id is unknown.

    Examples:
        >>> make_gymnasium("Pendulum-v1").spec.max_episode_steps
        200
    """
    gymnasium = import_gymnasium()
    spec = _find(name)
    settings = {"render_mode": "rgb_array"} if renders and _declares_pictures(spec) else {}
    if pixels and str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
        settings |= {"width": FRAME_SIZE, "height": FRAME_SIZE}
    try:
        return gymnasium.make(spec, **settings | kwargs)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ImportError(
            f"task {name!r} needs a package that is not installed ({reason}); "
            "pip install 'torchrl_tdmpc[gym]' brings those of Gymnasium's MuJoCo tasks."
        ) from error
    except TypeError as error:
        if not kwargs:
            raise
        raise ValueError(
            f"kwargs is {kwargs}, which task {name!r} does not take ({first_line(error)})."
        ) from error


def _find(name: str) -> gymnasium.envs.registration.EnvSpec:
    """What is registered under an id, whose module is imported first if it names one."""
    gymnasium = import_gymnasium()
    module, _, identity = name.rpartition(":")
    if module:
        import_named(module, name)
    try:
        return gymnasium.spec(identity)
    except gymnasium.error.Error:
        listed = "the ids of gymnasium.registry"
        raise unknown("task", name, gymnasium.registry, listed) from None


class InfoReader(BaseInfoDictReader):
    """Numbers of a Gymnasium environment's ``info``, float32; 0 where there are none.

    Args:
        keys: their names; a tuple leads into nested dictionaries.

    Attributes:
        unseen: keys that no ``info`` had so far.
        names: what there was in any of them.

    Raises:
        ValueError: an entry is no number.

    Examples:
        >>> from tensordict import TensorDict
        >>> InfoReader(["success"])({"success": True}, TensorDict())["success"]
        tensor([1.])
    """

    def __init__(self, keys: Sequence[NestedKey]):
        self.keys = keys
        self.unseen = {*keys}
        self.names: set[str] = set()
        self._spec = Composite()
        for key in keys:
            self._spec[key] = Unbounded(1)

    def __call__(self, info_dict: Mapping[str, Any], tensordict: TensorDictBase) -> TensorDictBase:
        """Write the numbers of ``info_dict`` into ``tensordict``."""
        self.names |= {*info_dict}
        for key in self.keys:
            value = info_dict
            for part in key if isinstance(key, tuple) else (key,):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is None:
                value = 0.0
            else:
                self.unseen.discard(key)
            try:
                number = torch.as_tensor(value, dtype=torch.float32).reshape(1)
            except (RuntimeError, TypeError, ValueError):
                raise ValueError(
                    f"info has {value!r} for {key!r}; it must be one number."
                ) from None
            tensordict.set(key, number)
        return tensordict

    @property
    def info_spec(self) -> Composite:
        """One float32 number for each key."""
        return self._spec


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
