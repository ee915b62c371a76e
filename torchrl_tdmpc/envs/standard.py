"""From an environment as it comes to one that the agent understands."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torchrl.data import Bounded
from torchrl.envs import (
    ActionScaling,
    CatTensors,
    DoubleToFloat,
    EnvBase,
    FlattenObservation,
    FrameSkipTransform,
    SelectTransform,
    StepCounter,
    TransformedEnv,
)
from torchrl.envs.utils import step_mdp

from torchrl_tdmpc.envs.pixels import FRAME_CHANNELS, append_frames
from torchrl_tdmpc.envs.rendering import refuse_rendering
from torchrl_tdmpc.envs.task import Facts, Task, resolve_episode_length

UNBOUNDED = 1e10  # MuJoCo writes "no limit" as this value


def build_task(
    make_base: Callable[[int], EnvBase],
    *,
    name: str,
    backend: str,
    facts: Callable[[EnvBase], Facts],
    episode_length: int | None = None,
    action_repeat: int = 1,
    base_repeats: bool = False,
    observation_keys: Sequence[NestedKey] | None = None,
    pixels: bool = False,
    extra_keys: Sequence[NestedKey] = (),
) -> Task:
    """The task that environments pose once they are made standard. One of them is built and closed.

    Args:
        make_base: makes an environment as it comes, from a seed.
        name: the task's name.
        backend: where it comes from.
        facts: reads what an environment tells of its task.
        episode_length: the limit asked for, in agent steps.
        action_repeat: environment steps in an agent step.
        base_repeats: whether ``make_base``'s environments repeat actions by themselves.
        observation_keys: see :func:`standardise`.
        pixels: see :func:`standardise`.
        extra_keys: see :func:`standardise`.

    Returns:
        The task.

    Raises:
        ValueError: if the environment's actions, observations or time limit do not fit.
    """
    base = make_base(0)
    steps, episodic, discount_cap, rho = facts(base)
    declared = math.ceil(math.ceil(steps) / action_repeat) if steps and steps < math.inf else None
    length = resolve_episode_length(name, declared, episode_length)
    if pixels:
        refuse_rendering(base, name, "pixels is true")
    standard = functools.partial(
        standardise,
        name=name,
        max_steps=None if length == declared else length,
        action_repeat=1 if base_repeats else action_repeat,
        observation_keys=observation_keys,
        pixels=pixels,
        extra_keys=extra_keys,
    )
    env = standard(base)
    task = Task(
        name=name,
        backend=backend,
        episode_length=length,
        action_repeat=action_repeat,
        observation_shape=tuple(env.observation_spec["observation"].shape),
        action_dim=env.action_spec.shape[-1],
        make=functools.partial(_make, make_base, standard),
        frame_channels=FRAME_CHANNELS if pixels else None,
        episodic=episodic,
        discount_cap=discount_cap,
        rho=rho,
        extra_keys=tuple(map(unravel_key, extra_keys)),
    )
    env.close()
    return task


def standardise(
    base: EnvBase,
    *,
    name: str,
    max_steps: int | None = None,
    action_repeat: int = 1,
    observation_keys: Sequence[NestedKey] | None = None,
    pixels: bool = False,
    extra_keys: Sequence[NestedKey] = (),
) -> EnvBase:
    """An environment with one float32 ``observation`` and an ``action`` in [-1, 1].

    Args:
        base: of batch size ``[]``, with one continuous, bounded ``action`` vector.
        name: the task's name, for the messages.
        max_steps: agent steps after which an episode is truncated.
        action_repeat: environment steps in an agent step; rewards are summed over them.
        observation_keys: what is concatenated, in this order;
            None takes every entry of ``observation_spec`` in its own order.
        pixels: observe three stacked frames of ``base.render()`` instead.
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
    _refuse_actions(base, name)
    env = TransformedEnv(base, auto_unwrap=False)  # what is around the base stays its own
    if action_repeat > 1:
        env.append_transform(RepeatAction(action_repeat))
    state_keys = set(base.state_spec.keys(True, True)) - {"action"}  # what a step reads
    if pixels:
        append_frames(env)
    else:
        _append_vector(env, name, observation_keys, extra_keys)
    _refuse_extra_keys(env, name, extra_keys)
    env.append_transform(SelectTransform("observation", *state_keys, *extra_keys))
    env.append_transform(DoubleToFloat())
    low, high = env.action_spec.space.low, env.action_spec.space.high
    if not ((low == -1) & (high == 1)).all():
        env.append_transform(ActionScaling())
    if max_steps is not None:
        env.append_transform(StepCounter(max_steps, step_count_key="_step_count"))
    return env


class RepeatAction(FrameSkipTransform):
    """TorchRL's transform, which here stops where the episode ends and passes on the state.

    Args:
        frame_skip: environment steps in an agent step.
    """

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        env, step = self.parent, tensordict.copy()
        reward = next_tensordict["reward"]
        for _ in range(self.frame_skip - 1):
            if any(next_tensordict.get(key, reward.new_zeros(1)).any() for key in env.done_keys):
                break
            step = step_mdp(step.set("next", next_tensordict), exclude_action=False)
            next_tensordict = env._step(step)
            reward = reward + next_tensordict["reward"]
        return next_tensordict.set("reward", reward)


def _refuse_extra_keys(env: EnvBase, name: str, extra_keys: Sequence[NestedKey]) -> None:
    spec = env.observation_spec
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
    spec = env.observation_spec
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
        if not spec[key].dtype.is_floating_point or spec[key].ndim not in (1, 2):
            dtype = str(spec[key].dtype).removeprefix("torch.")
            raise ValueError(
                f"task {name!r} observes {key!r} of shape {tuple(spec[key].shape)} and type "
                f"{dtype}; it must be a vector or a matrix of floating-point numbers, or be left "
                "out by observation_keys of make_task."
            )
    if matrices := [key for key in keys if spec[key].ndim == 2]:
        env.append_transform(FlattenObservation(-2, -1, in_keys=matrices))
    env.append_transform(CatTensors(keys, "observation", sort=False, del_keys=False))


def _refuse_actions(env: EnvBase, name: str) -> None:
    """Name what keeps an environment from being posed."""
    if env.batch_size:
        raise ValueError(
            f"task {name!r} has batch size {list(env.batch_size)}; choose an environment "
            "without batch dimensions, and num_envs for their number."
        )
    if [*env.action_keys] != ["action"] or [*env.reward_keys] != ["reward"]:
        raise ValueError(
            f"task {name!r} has the actions {env.action_keys} and the rewards "
            f"{env.reward_keys}; it must have one 'action' and one 'reward'."
        )
    spec = env.action_spec
    if not spec.dtype.is_floating_point:
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
    return standard(make_base(seed))
