"""From an environment as it comes to one that the agent understands."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.data import Bounded, Composite, TensorSpec
from torchrl.envs import (
    ActionScaling,
    CatTensors,
    DoubleToFloat,
    DTypeCastTransform,
    EnvBase,
    FlattenObservation,
    FrameSkipTransform,
    SelectTransform,
    StepCounter,
    TransformedEnv,
)
from torchrl.envs.utils import step_mdp

from torchrl_tdmpc.envs.border import declare, guard
from torchrl_tdmpc.envs.checked import CheckedEnv
from torchrl_tdmpc.envs.layers import layers
from torchrl_tdmpc.envs.limit import BatchLimit, Limit
from torchrl_tdmpc.envs.memory import warn_of_memory
from torchrl_tdmpc.envs.pixels import FRAME_CHANNELS, append_frames
from torchrl_tdmpc.envs.rendering import refuse_rendering
from torchrl_tdmpc.envs.seeds import forked_generators
from torchrl_tdmpc.envs.task import Facts, Task, resolve_episode_length
from torchrl_tdmpc.envs.trial import try_out

UNBOUNDED = 1e10  # MuJoCo writes "no limit" as this value


def build_task(
    make_base: Callable[[int], EnvBase],
    *,
    name: str,
    backend: str,
    facts: Callable[[EnvBase], Facts],
    episode_length: int | None = None,
    action_repeat: int = 1,
    observation_keys: Sequence[NestedKey] | None = None,
    pixels: bool = False,
    extra_keys: Sequence[NestedKey] = (),
    success_key: NestedKey | None = None,
) -> Task:
    """The task that environments pose once they are made standard. One is built, tried and closed.

    Args:
        make_base: makes an environment as it comes, from a seed.
        name: the task's name.
        backend: where it comes from.
        facts: reads what an environment tells of its task.
        episode_length: the limit asked for, in agent steps.
        action_repeat: how often each action is given to ``make_base``'s environments.
        observation_keys: see :func:`standardise`.
        pixels: see :func:`standardise`.
        extra_keys: see :func:`standardise`.
        success_key: see :class:`~torchrl_tdmpc.envs.Task`; one of ``extra_keys``.

    Returns:
        The task.

    Raises:
        ValueError: if the environment's actions, observations or time limit do not fit, or if it
            breaks a rule.
    """
    if action_repeat < 1:
        raise ValueError(f"action_repeat is {action_repeat}; it must be at least 1.")
    standard = functools.partial(
        standardise,
        name=name,
        action_repeat=action_repeat,
        observation_keys=observation_keys,
        pixels=pixels,
        extra_keys=extra_keys,
    )
    with forked_generators(seed=0):
        base = make_base(0)
        _refuse_batch(base, name, pixels, observation_keys)
        _refuse_actions(base, name)
        if pixels and not _images(base.observation_spec_unbatched):
            refuse_rendering(base, name, "pixels is true")
        env = standard(base)
        units = try_out(env, name)
        warn_of_memory(base, name)
    steps, episodic, discount_cap, rho = facts(base)
    repeat = units.action_repeat or action_repeat
    declared = units.limit
    if declared is None and steps and steps < math.inf:
        declared = math.ceil(steps / repeat)
    length = resolve_episode_length(name, declared, episode_length)
    is_own = episode_length is None and units.limit is not None
    limit = None
    if base.batch_size:
        limit = functools.partial(BatchLimit, name, length)
    elif is_own or units.limit is None:
        limit = functools.partial(Limit, name, length, is_declared=is_own)
    observation = env.observation_spec_unbatched["observation"]
    env.close()
    return Task(
        name=name,
        backend=backend,
        episode_length=length,
        action_repeat=repeat,
        observation_shape=tuple(observation.shape),
        action_dim=env.action_spec.shape[-1],
        make=functools.partial(
            _make,
            make_base,
            functools.partial(standard, max_steps=None if is_own else length, limit=limit),
        ),
        frame_channels=FRAME_CHANNELS if observation.dtype == torch.uint8 else None,
        episodic=episodic,
        discount_cap=discount_cap,
        rho=rho,
        extra_keys=tuple(map(unravel_key, extra_keys)),
        success_key=success_key if success_key is None else unravel_key(success_key),
        num_envs=base.batch_size.numel() if base.batch_size else None,
    )


def standardise(
    base: EnvBase,
    *,
    name: str,
    max_steps: int | None = None,
    limit: Callable[[], Limit] | None = None,
    action_repeat: int = 1,
    observation_keys: Sequence[NestedKey] | None = None,
    pixels: bool = False,
    extra_keys: Sequence[NestedKey] = (),
) -> EnvBase:
    """An environment with one float32 ``observation`` and an ``action`` in [-1, 1].

    Args:
        base: of batch size ``[]`` or ``[N]``, with one continuous, bounded ``action`` vector.
        name: the task's name, for the messages.
        max_steps: agent steps after which an episode is truncated.
        limit: makes what the first truncated episode is compared with.
        action_repeat: environment steps in an agent step; rewards are summed over them.
        observation_keys: what is concatenated, in this order;
            None takes every entry of ``observation_spec`` in its own order.
        pixels: observe three stacked frames instead: of the one image that is observed, or else
            of ``base.render()``. Where ``observation_keys`` names an image alone, frames of it are
            observed anyway.
        extra_keys: entries of ``observation_spec``, one number each, that are kept beside the
            observation.

    Returns:
        As :class:`~torchrl_tdmpc.envs.Task` promises.

    Raises:
        ValueError: if actions or observations are of another kind.

    Examples:
        >>> from torchrl.testing.mocking_classes import ContinuousActionVecMockEnv
        >>> mock = ContinuousActionVecMockEnv()
        >>> env = standardise(mock, name="mock", observation_keys=["observation"])
        >>> env.rollout(3)["observation"].shape
        torch.Size([3, 7])
    """
    env = _with_border(base, name)
    if action_repeat > 1:
        env.append_transform(RepeatAction(action_repeat))
    state_keys = set(env.state_spec.keys(True, True)) - {"action"}  # what a step reads
    images = _images(env.observation_spec_unbatched) if pixels or observation_keys else []
    if observation_keys is not None:
        images = [key for key in images if key in observation_keys]
    if pixels or (images and len(observation_keys) == 1):
        append_frames(env, _only_image(images, name))
    else:
        _append_vector(env, name, observation_keys, extra_keys)
    _refuse_extra_keys(env, name, extra_keys)
    env.append_transform(SelectTransform("observation", *state_keys, *extra_keys))
    for dtype in (torch.float16, torch.bfloat16):
        if dtype in _dtypes(env):
            env.append_transform(DTypeCastTransform(dtype, torch.float32))
    env.append_transform(DoubleToFloat())
    low, high = env.action_spec.space.low, env.action_spec.space.high
    if not ((low == -1) & (high == 1)).all():
        env.append_transform(ActionScaling())
    env.limit = limit and limit()
    if max_steps is not None:
        env.append_transform(StepCounter(max_steps, step_count_key="_step_count"))
    return env


def _with_border(base: EnvBase, name: str) -> CheckedEnv:
    """An environment guarded and checked, to which transforms may be appended."""
    guard(base, name)
    env = inner = CheckedEnv(base, name)
    while isinstance(inner.base_env, TransformedEnv):
        inner = inner.base_env
    if (declared := declare(inner.base_env)) is not None:
        inner.insert_transform(0, declared)
    return env


class RepeatAction(FrameSkipTransform):
    """TorchRL's transform, which here stops where the episode ends and passes on the state.

    In a batch, environments whose episodes have ended wait for the others: what they give
    meanwhile is dropped.

    Args:
        frame_skip: environment steps in an agent step.
    """

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        env, step = self.parent, tensordict.copy()
        reward = next_tensordict["reward"]
        for _ in range(self.frame_skip - 1):
            ended = self._ended(next_tensordict)
            if ended.all():
                break
            step = step_mdp(step.set("next", next_tensordict), exclude_action=False)
            following = env._step(step)
            if ended.any():
                waiting = next_tensordict.copy().set("reward", torch.zeros_like(reward))
                following = torch.where(ended, waiting, following)
            reward = reward + following["reward"]
            next_tensordict = following
        return next_tensordict.set("reward", reward)

    def _ended(self, data: TensorDictBase) -> Tensor:
        """Which environments have ended their episode, of the shape of the batch."""
        batch = self.parent.batch_size
        flags = (data.get(key, None) for key in self.parent.done_keys)
        ended = [flag.reshape(*batch, -1).any(-1) for flag in flags if flag is not None]
        return torch.stack(ended).any(0)


def _refuse_extra_keys(env: EnvBase, name: str, extra_keys: Sequence[NestedKey]) -> None:
    spec = env.observation_spec_unbatched
    entries = [*spec.keys(True, True)]
    for key in extra_keys:
        if unravel_key(key) not in entries:
            raise ValueError(
                f"task {name!r} has no entry {key!r}; extra_keys must be among "
                f"{', '.join(map(str, entries))}."
            )
        if spec[key].shape.numel() != 1:
            raise ValueError(
                f"task {name!r} has the entry {key!r} of shape {tuple(spec[key].shape)}; an entry "
                "in extra_keys must be one number."
            )


def _append_vector(
    env: TransformedEnv,
    name: str,
    observation_keys: Sequence[NestedKey] | None,
    extra_keys: Sequence[NestedKey],
) -> None:
    """Concatenate vectors, and matrices made flat."""
    spec = env.observation_spec_unbatched
    extra = set(map(unravel_key, extra_keys))
    entries = [*spec.keys(True, True)]
    keys = observation_keys
    if keys is None:
        keys = [key for key in entries if key not in extra]
    if not keys or (missing := set(keys) - set(entries)):
        wrong = f"has no observation {missing.pop()!r}" if keys else "observes nothing"
        raise ValueError(
            f"task {name!r} {wrong}; choose from {', '.join(map(str, entries)) or 'none'}."
        )
    for key in keys:
        if key in _images(spec):
            raise ValueError(
                f"task {name!r} observes {key!r}, an image of shape {tuple(spec[key].shape)}; "
                "choose pixels=True (env.pixels=true), which observes it as three stacked frames, "
                "or leave it out by observation_keys."
            )
        if not _is_floating(spec[key]) or spec[key].ndim not in (1, 2):
            dtype = str(spec[key].dtype or "text").removeprefix("torch.")
            raise ValueError(
                f"task {name!r} observes {key!r} of shape {tuple(spec[key].shape)} and type "
                f"{dtype}; it must be a vector or a matrix of floating-point numbers, or be left "
                "out by observation_keys of make_task."
            )
    if matrices := [key for key in keys if spec[key].ndim == 2]:
        env.append_transform(FlattenObservation(-2, -1, in_keys=matrices))
    env.append_transform(CatTensors(keys, "observation", sort=False, del_keys=False))


def _is_floating(spec: TensorSpec) -> bool:
    return spec.dtype is not None and spec.dtype.is_floating_point


def _dtypes(env: EnvBase) -> set[torch.dtype]:
    specs = (env.observation_spec, env.full_reward_spec, env.full_action_spec, env.state_spec)
    return {leaf.dtype for spec in specs for leaf in spec.values(True, True)}


def _images(spec: Composite) -> list[NestedKey]:
    """The entries that are images: uint8 ``[height, width, 3]``."""
    return [
        key
        for key, leaf in spec.items(True, True)
        if leaf.dtype == torch.uint8 and leaf.ndim == 3 and leaf.shape[-1] == FRAME_CHANNELS
    ]


def _only_image(images: list[NestedKey], name: str) -> NestedKey | None:
    if len(images) > 1:
        raise ValueError(
            f"task {name!r} observes several images; choose one of {', '.join(map(str, images))} "
            "by observation_keys."
        )
    return images[0] if images else None


def _refuse_batch(
    env: EnvBase, name: str, pixels: bool, observation_keys: Sequence[NestedKey] | None
) -> None:
    """Name what keeps environments that are a batch by nature from being posed."""
    if not env.batch_size:
        return
    if env.batch_dims > 1:
        raise ValueError(
            f"task {name!r} has batch size {list(env.batch_size)}; choose a batch of one dimension."
        )
    if any(layers(env)):
        raise ValueError(
            f"task {name!r} is a vector environment of Gymnasium, which resets by itself; choose "
            "its single environment, and num_envs for their number."
        )
    if pixels or set(_images(env.observation_spec_unbatched)) & set(observation_keys or ()):
        raise ValueError(
            f"task {name!r} is a batch of {env.batch_size.numel()} environments, of which no "
            "images are observed; choose vectors."
        )


def _refuse_actions(env: EnvBase, name: str) -> None:
    """Name what keeps an environment from being posed."""
    if [*env.action_keys] != ["action"] or [*env.reward_keys] != ["reward"]:
        raise ValueError(
            f"task {name!r} has the actions {env.action_keys} and the rewards "
            f"{env.reward_keys}; it must have one 'action' and one 'reward'."
        )
    reward = env.reward_spec_unbatched
    if reward.shape.numel() != 1:
        raise ValueError(
            f"task {name!r} has rewards of shape {tuple(reward.shape)}; choose a task "
            "whose reward is one number."
        )
    spec = env.action_spec_unbatched
    if not _is_floating(spec):
        raise ValueError(
            f"task {name!r} has discrete actions; choose a task with continuous, bounded ones."
        )
    if spec.ndim != 1:
        raise ValueError(
            f"task {name!r} has actions of shape {tuple(spec.shape)}; choose a task whose "
            "action is a vector."
        )
    if not isinstance(spec, Bounded) or not _bounded(spec):
        raise ValueError(f"task {name!r} has unbounded actions; choose a task with bounds.")


def _bounded(spec: Bounded) -> bool:
    bounds = torch.stack([spec.space.low, spec.space.high])
    return bool((bounds.abs() < UNBOUNDED).all())


def _make(
    make_base: Callable[[int], EnvBase], standard: Callable[[EnvBase], EnvBase], seed: int
) -> EnvBase:
    """One environment; what it draws from global generators meanwhile is of its own seed."""
    with forked_generators(seed):
        return standard(make_base(seed))
