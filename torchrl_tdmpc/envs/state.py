"""What an environment is in the middle of, so that a run can be continued there."""

from __future__ import annotations

from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy
from torchrl.collectors import BaseCollector
from torchrl.envs import DMControlWrapper, EnvBase, ParallelEnv, SerialEnv, TransformedEnv

from torchrl_tdmpc.envs.attributes import NoStateError, pack_attributes, unpack_attributes
from torchrl_tdmpc.envs.checked import CheckedEnv
from torchrl_tdmpc.envs.layers import innermost
from torchrl_tdmpc.envs.limit import Limit
from torchrl_tdmpc.torchrl_series import serial_envs, worker_processes, wrapped_env

# Arrays of a MuJoCo model that are large, and that no task writes to
_ASSETS = ("mesh_", "skin_", "flex_", "bvh_")


def env_state(env: EnvBase) -> list[dict[str, Any]] | None:
    """Everything that the next steps of environments from :func:`make_env` depend on.

    Of DMControl that is the integration state of the physics (positions, velocities, activations,
    time and the accelerations that warm-start the solver), what the task wrote into the model
    (targets, terrain) and into itself, its random generator and its step counter.

    Args:
        env: environments in this process, transformed or not.

    Returns:
        For each environment tensors and plain numbers, which
        ``torch.load(weights_only=True)`` reads; None if one of them cannot tell its state in
        full; :func:`why_no_state` says why.

    Examples:
        >>> from torchrl_tdmpc.envs import load_task, make_env
        >>> task = load_task("dmcontrol", "cartpole-swingup")
        >>> env, other = make_env(task, seed=1), make_env(task, seed=2)
        >>> now = env.reset()
        >>> _ = other.reset()
        >>> set_env_state(other, env_state(env))
        >>> action = env.rand_action(now)
        >>> bool((env.step(action)["next"] == other.step(action)["next"]).all())
        True
    """
    state = _state_or_reason(env)
    return None if isinstance(state, str) else state


def why_no_state(env: EnvBase) -> str | None:
    """Why :func:`env_state` gives None, or None if it does not.

    Examples:
        >>> from torchrl_tdmpc.envs import load_task, make_env
        >>> env = make_env(load_task("gym", "Pendulum-v1"))
        >>> _ = env.reset()
        >>> why_no_state(env)
        'environments of type GymWrapper cannot tell their state'
    """
    state = _state_or_reason(env)
    return state if isinstance(state, str) else None


def _state_or_reason(env: EnvBase) -> list[dict[str, Any]] | str:
    while isinstance(env, TransformedEnv) and not isinstance(env.base_env, DMControlWrapper):
        env = env.base_env
    if isinstance(env, ParallelEnv):
        return "environments in processes of their own cannot tell their state"
    workers = _workers(env)
    if workers is None:
        first = serial_envs(env)[0] if isinstance(env, SerialEnv) else env
        kind = type(innermost(first)).__name__
        return f"environments of type {kind} cannot tell their state"
    try:
        return [
            {
                "buffers": {name: buffer.clone() for name, buffer in _buffers(worker).items()},
                "limit": None if (limit := _limit(worker)) is None else limit.state_dict(),
                **_dmcontrol_state(_dmcontrol(worker)),
            }
            for worker in workers
        ]
    except NoStateError as error:
        return f"of the task, {error}, which cannot be saved"


def set_env_state(env: EnvBase, state: list[dict[str, Any]]) -> None:
    """Put environments where :func:`env_state` found others of the same task.

    Args:
        env: as many environments, reset at least once.
        state: what :func:`env_state` returned.

    Raises:
        ValueError: if the environments cannot take a state, or not these.
    """
    workers = _workers(env)
    if workers is None or len(workers) != len(state):
        count = "none" if workers is None else len(workers)
        raise ValueError(f"The state is of {len(state)} environments; {count} here can take one.")
    for worker, saved in zip(workers, state, strict=True):
        for name, buffer in _buffers(worker).items():
            if name in saved["buffers"]:
                buffer.copy_(saved["buffers"][name])
        if (limit := _limit(worker)) is not None and saved["limit"] is not None:
            limit.load_state_dict(saved["limit"])
        _set_dmcontrol_state(_dmcontrol(worker), saved)


def first_env(env: EnvBase) -> EnvBase:
    """The first one of batched environments in this process, without the batch's transforms."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return serial_envs(env)[0]


def has_lost_processes(env: EnvBase | BaseCollector) -> bool:
    """Whether environments ran in processes of their own, and no longer do because one died.

    Args:
        env: environments in this process (which gives False) or in others, or actors.
    """
    while isinstance(env, TransformedEnv):
        env = env.base_env
    if isinstance(env, ParallelEnv) and env.is_closed:
        return True
    return any(_has_ended(process) for process in worker_processes(env))


def _has_ended(process: BaseProcess) -> bool:
    try:
        return not process.is_alive()
    except ValueError:  # TorchRL closed it: one of the others had died
        return True


def _workers(env: EnvBase) -> list[EnvBase] | None:
    """The DMControl environments that are stepped together; None if there are others."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    workers = serial_envs(env) if isinstance(env, SerialEnv) else [env]
    return workers if all(_dmcontrol(worker) is not None for worker in workers) else None


def _buffers(env: EnvBase) -> dict[str, torch.Tensor]:
    """What transforms remember; those not filled yet are constants, made at their first use."""
    return {n: b for n, b in env.named_buffers() if not is_lazy(b) and b.numel()}


def _limit(env: EnvBase) -> Limit | None:
    return env.limit if isinstance(env, CheckedEnv) else None


def _dmcontrol(env: EnvBase) -> Any:
    """dm_control's own environment below TorchRL's; None if there is none."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    if not isinstance(env, DMControlWrapper):
        return None
    env = wrapped_env(env)
    while hasattr(env, "_env"):  # dm_control's wrappers
        env = wrapped_env(env)
    return env


def _dmcontrol_state(env: Any) -> dict[str, Any]:
    kind, keys, *rest = env.task.random.get_state()
    return {
        "physics": torch.from_numpy(env.physics.get_state(sig=_integration_state())),
        "model": {name: torch.from_numpy(array.copy()) for name, array in _arrays(env).items()},
        "task": pack_attributes(env.task, constants=(env.task.random, env.physics)),
        "random": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "step_count": env._step_count,
        "reset_next_step": env._reset_next_step,
    }


def _set_dmcontrol_state(env: Any, state: dict[str, Any]) -> None:
    import mujoco

    for name, array in _arrays(env).items():
        np.copyto(array, state["model"][name].numpy())
    env.physics.set_state(state["physics"].numpy(), sig=_integration_state())
    # dm_control steps from positions and velocities that are worked out already
    mujoco.mj_step1(env.physics.model.ptr, env.physics.data.ptr)
    unpack_attributes(env.task, state["task"])
    kind, keys, *rest = state["random"]
    env.task.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    env._step_count, env._reset_next_step = state["step_count"], state["reset_next_step"]


def _arrays(env: Any) -> dict[str, np.ndarray]:
    """The model's arrays that a task may write to when an episode begins."""
    model = env.physics.model.ptr
    names = [n for n in dir(model) if not n.startswith(("_", *_ASSETS))]
    arrays = {name: getattr(model, name) for name in names}
    return {
        name: array
        for name, array in arrays.items()
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.size
    }


def _integration_state() -> int:
    import mujoco

    return int(mujoco.mjtState.mjSTATE_INTEGRATION)
