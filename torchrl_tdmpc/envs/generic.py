"""Tasks from any environment: TorchRL's, Gymnasium's, or what a function returns."""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordict import NestedKey, unravel_key
from torchrl.envs import EnvBase, GymWrapper

from torchrl_tdmpc.envs.border import guard
from torchrl_tdmpc.envs.contract import first_line
from torchrl_tdmpc.envs.gym import InfoReader, import_gymnasium, make_gymnasium
from torchrl_tdmpc.envs.standard import build_task
from torchrl_tdmpc.envs.task import Facts, Task, import_named
from torchrl_tdmpc.torchrl_series import wrapped_env

if TYPE_CHECKING:
    import gymnasium

    Environment = EnvBase | gymnasium.Env | str


def make_task(
    source: Environment | Callable[..., Environment],
    *,
    name: str | None = None,
    episode_length: int | None = None,
    action_repeat: int = 1,
    observation_keys: Sequence[NestedKey] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    pixels: bool = False,
    video: bool = False,
    extra_keys: Sequence[NestedKey] = (),
    success_key: NestedKey | None = None,
) -> Task:
    """A task from any environment with a continuous, bounded action vector.

    Actions are scaled to [-1, 1]. Vectors and matrices that are observed are concatenated. An
    episode that ends without ``truncated`` has terminated, as everywhere in TorchRL.

    Args:
        source: a TorchRL environment (it is copied), a Gymnasium id, or a function that returns one
            of them or a Gymnasium environment. Of batch size ``[N]``, it is N environments, which
            must reset those that are asked for alone (``_reset``). A class of environments is
            such a function. What is returned is seeded with ``set_seed``; one that draws from the
            global generator of torch, NumPy or Python all the same shares it with the agent.
        name: for messages and titles; None takes the id or the function's name.
        episode_length: time limit in agent steps; needed unless the environment has one of its own.
        action_repeat: how often each action is taken in an agent step. An environment that skips
            frames by itself does so each time.
        observation_keys: the entries to concatenate, in this
            order; None takes every entry of ``observation_spec``, in its own order.
        kwargs: for ``gymnasium.make``, or for the function.
        pixels: observe three stacked frames of 64 x 64 pixels instead: of the image that the
            environment observes (uint8 ``[height, width, 3]``), or else of its ``render()``.
        video: whether videos of it will be wanted. A Gymnasium id is asked for a renderer for them
            and for ``pixels`` alone.
        extra_keys: further entries of the environment to carry into the replay and into the rows of
            episodes, one number each: of a Gymnasium environment's ``info`` (0 where a step has
            none), or of a TorchRL environment's ``observation_spec``.
        success_key: a further such entry, which is 1 where the task was achieved: it gives the
            score of several tasks.

    Returns:
        The task. One environment is built, and tried for a few steps.

    Raises:
        ImportError: if a Gymnasium environment needs a package that is not installed.
        ValueError: if the environment's actions, observations or time limit do not fit, if it
            breaks a rule of its library, or the id is unknown.

    Examples:
        >>> from torchrl.testing.mocking_classes import ContinuousActionVecMockEnv
        >>> task = make_task(
        ...     ContinuousActionVecMockEnv, episode_length=20, observation_keys=["observation"]
        ... )
        >>> task.name, task.observation_shape, task.action_dim
        ('ContinuousActionVecMockEnv', (7,), 7)
        >>> make_task("Pendulum-v1").episode_length
        200
    """
    name = name or _name(source)
    if success_key is not None:
        extra_keys = list(dict.fromkeys([*extra_keys, success_key]))
    return build_task(
        functools.partial(
            _make_base, source, name, dict(kwargs or {}), pixels, video, tuple(extra_keys)
        ),
        name=name,
        backend="gym" if isinstance(source, str) else "function",
        facts=functools.partial(_facts, name),
        episode_length=episode_length,
        action_repeat=action_repeat,
        observation_keys=observation_keys,
        pixels=pixels,
        extra_keys=extra_keys,
        success_key=success_key,
    )


def gym_task(
    name: str, *, episode_length: int | None = None, pixels: bool = False, **settings: Any
) -> Task:
    """A task of Gymnasium by its id, without action repeat; see :func:`make_task`.

    Args:
        name: the id, after a module that registers it where there is one: ``"module:Id-v0"``.
        episode_length: see :func:`make_task`.
        pixels: see :func:`make_task`.
        settings: the others of :func:`make_task`.

    Examples:
        >>> gym_task("Pendulum-v1", episode_length=50).episode_length
        50
    """
    return make_task(name, episode_length=episode_length, pixels=pixels, **settings)


def function_task(
    name: str, *, episode_length: int | None = None, pixels: bool = False, **settings: Any
) -> Task:
    """A task from the import path of a function, ``package.module:function``.

    See :func:`make_task` for what the function may return.

    Args:
        name: the path.
        episode_length: see :func:`make_task`.
        pixels: see :func:`make_task`.
        settings: the others of :func:`make_task`.

    Raises:
        ValueError: if there is no such function, or its environment does not fit.

    Examples:
        >>> path = "torchrl.testing.mocking_classes:ContinuousActionVecMockEnv"
        >>> function_task(path, observation_keys=["observation"])
        Traceback (most recent call last):
        ValueError: episode_length is None, but task 'torchrl...' declares no time limit...
    """
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise ValueError(
            f"task {name!r} names no function; with backend 'function' it must be "
            "package.module:function."
        )
    function = getattr(import_named(module, name), attribute, None)
    if not callable(function):
        raise ValueError(f"task {name!r} names no function: {module} has no {attribute!r}.")
    return make_task(function, name=name, episode_length=episode_length, pixels=pixels, **settings)


def _make_base(
    source: Environment | Callable[..., Environment],
    name: str,
    kwargs: dict[str, Any],
    pixels: bool,
    video: bool,
    extra_keys: tuple[NestedKey, ...],
    seed: int,
) -> EnvBase:
    """One environment as it comes, guarded and seeded."""
    env = source
    if callable(source) and not isinstance(source, EnvBase):  # a module can be called
        env, kwargs = _call(source, name, kwargs), {}
    elif not isinstance(source, str):
        env = copy.deepcopy(source)
    if isinstance(env, str):
        env, kwargs = make_gymnasium(env, renders=pixels or video, pixels=pixels, **kwargs), {}
    if kwargs:
        raise ValueError(
            f"kwargs is {kwargs}, but task {name!r} is an environment already; only a function and "
            "a Gymnasium id take arguments."
        )
    if not isinstance(env, EnvBase):
        if not isinstance(env, import_gymnasium().Env):
            raise ValueError(
                f"task {name!r} gives an object of type {type(env).__name__}; it must give a "
                "TorchRL environment, a Gymnasium environment or a Gymnasium id."
            )
        env = _wrap(env, name)
        observed = [*env.observation_spec.keys(True, True)]
        if in_info := [key for key in extra_keys if unravel_key(key) not in observed]:
            env.set_info_dict_reader(InfoReader(in_info))
    guard(env, name)
    try:
        env.set_seed(seed)
    except ValueError:
        raise
    except Exception as error:  # of someone else's code
        raise ValueError(
            f"task {name!r} failed when it was reset with a seed ({first_line(error)})."
        ) from error
    return env


def _call(source: Callable[..., Environment], name: str, kwargs: dict[str, Any]) -> Environment:
    try:
        inspect.signature(source).bind(**kwargs)
    except ValueError:  # a function without a signature
        pass
    except TypeError as error:
        raise ValueError(
            f"kwargs is {kwargs}, which the function of task {name!r} does not take: {error}."
        ) from None
    return source(**kwargs)


def _wrap(env: gymnasium.Env, name: str) -> EnvBase:
    try:
        return GymWrapper(env)
    except (KeyError, NotImplementedError, TypeError, ValueError) as error:  # of a space
        raise ValueError(
            f"task {name!r} has a space that TorchRL does not know ({first_line(error)}); choose "
            "Box spaces, or dictionaries of them."
        ) from error


def _facts(name: str, env: EnvBase) -> Facts:
    """The limit that a Gymnasium id declares, and what is published for Gymnasium's tasks.

    Their terminations are the last steps of a slice, so these weigh more: rho 0.7.
    """
    if not isinstance(env, GymWrapper):
        return Facts()
    for reader in env.info_dict_reader:
        if isinstance(reader, InfoReader) and reader.unseen:
            absent, names = min(reader.unseen, key=str), ", ".join(sorted(reader.names))
            warnings.warn(
                f"the first steps of task {name!r} have no {absent!r} in their info, "
                f"which has {names or 'nothing'}; extra_keys counts it as 0 wherever "
                "it is absent.",
                stacklevel=2,
            )
    spec = wrapped_env(env).spec
    time_limit = None if spec is None else spec.max_episode_steps
    return Facts(time_limit=time_limit, discount_cap=0.99, rho=0.7)


def _name(source: object) -> str:
    return source if isinstance(source, str) else getattr(source, "__name__", type(source).__name__)
