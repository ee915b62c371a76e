"""What batched environments remember across episodes, read from some and given to others."""

from __future__ import annotations

from collections.abc import Sequence

from torchrl.envs import EnvBase, ParallelEnv, SerialEnv, TransformedEnv

from torchrl_tdmpc.envs.checked import CheckedEnv
from torchrl_tdmpc.envs.memory import Memory, freeze_memory, read_memory, write_memory
from torchrl_tdmpc.envs.workers import ProcessEnv
from torchrl_tdmpc.torchrl_series import serial_envs


def env_memory(env: EnvBase) -> list[Memory] | None:
    """What environments remember across episodes, such as the statistics that normalise.

    Args:
        env: from :func:`make_env`, in this process or in others, transformed or not; or
            environments of one's own, in this process.

    Returns:
        Of each environment, in a form that ``torch.load(weights_only=True)`` reads; None if they
        remember nothing.

    Examples:
        >>> from torchrl_tdmpc.envs import load_task, make_env
        >>> print(env_memory(make_env(load_task("gym", "Pendulum-v1"))))
        None
    """
    env = _batch(env)
    if isinstance(env, ProcessEnv):
        memories = [dict(memory) for memory in env.state_dict().values()]
    elif isinstance(env, ParallelEnv):
        memories = []
    else:
        memories = [read_memory(_below_checks(one)) for one in _in_this_process(env)]
    return memories if any(memories) else None


def set_env_memory(env: EnvBase, memories: Sequence[Memory], *, frozen: bool = False) -> None:
    """Let environments remember what others of their task did; an episode begins afterwards.

    Args:
        env: as for :func:`env_memory`; of another number where need be: they begin with the first
            memories again.
        memories: what :func:`env_memory` returned.
        frozen: whether statistics stay as they are from now on, where the layers can do so; of
            environments in this process.
    """
    env = _batch(env)
    if isinstance(env, ProcessEnv):
        num = env.num_workers
        env.load_state_dict({f"worker{i}": memories[i % len(memories)] for i in range(num)})
        return
    for number, one in enumerate(_in_this_process(env)):
        write_memory(_below_checks(one), memories[number % len(memories)])
        if frozen:
            freeze_memory(_below_checks(one))


def _batch(env: EnvBase) -> EnvBase:
    """Without the transforms around a batch."""
    while isinstance(env, TransformedEnv) and not isinstance(env, CheckedEnv):
        inner = env.base_env
        if not isinstance(inner, (SerialEnv, ParallelEnv, TransformedEnv)):
            break
        env = inner
    return env


def _in_this_process(env: EnvBase) -> list[EnvBase]:
    if not isinstance(env, SerialEnv):
        return [env]
    if env.is_closed:  # as it is before its first reset
        env.start()
    return serial_envs(env)


def _below_checks(env: EnvBase) -> EnvBase:
    """Without the transforms of the package itself, which begin anew with each episode."""
    return env.base_env if isinstance(env, CheckedEnv) else env
