"""What an environment is made of: TorchRL's own, and layers of another library below it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.gym_like import GymLikeEnv


def innermost(env: EnvBase) -> EnvBase:
    """The environment below every transform.

    Examples:
        >>> from torchrl.testing.mocking_classes import CountingEnv
        >>> type(innermost(TransformedEnv(TransformedEnv(CountingEnv())))).__name__
        'CountingEnv'
    """
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return env


def layers(env: EnvBase) -> Iterator[Any]:
    """The wrappers of another library below TorchRL's own, outermost first, and its environment.

    Examples:
        >>> from torchrl.envs import GymEnv
        >>> [type(layer).__name__ for layer in layers(GymEnv("Pendulum-v1"))][-2:]
        ['OrderEnforcing', 'PendulumEnv']
    """
    env = innermost(env)
    layer = env._env if isinstance(env, GymLikeEnv) else None  # what is stepped with arrays
    while layer is not None:
        yield layer
        if hasattr(layer, "unwrapped"):  # Gymnasium's
            layer = None if layer.unwrapped is layer else layer.env
        else:  # dm_control's
            layer = vars(layer).get("_env")
