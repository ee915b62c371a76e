"""From the name of a task to environments that pose it."""

from __future__ import annotations

import numpy as np
import torch
from torchrl.envs import EnvBase, SerialEnv

from torchrl_tdmpc.envs.dmcontrol import dmcontrol_task
from torchrl_tdmpc.envs.task import Task, unknown

BACKENDS = {"dmcontrol": dmcontrol_task}


def load_task(backend: str, name: str, *, episode_length: int | None = None) -> Task:
    """Looks a task up by name.

    Args:
        backend (str): where the task comes from; one of ``BACKENDS``.
        name (str): the task's name in that backend.
        episode_length (int, optional): time limit in decisions. It may shorten the limit that the
            task declares, and is needed where a task declares none.

    Returns:
        Task: the task, ready for :func:`make_env`.

    Raises:
        ValueError: if the backend or the task is unknown or ``episode_length`` does not fit.

    Examples:
        >>> task = load_task("dmcontrol", "cartpole-swingup")
        >>> task.episode_length, task.action_repeat
        (500, 2)
    """
    if backend not in BACKENDS:
        raise unknown("env.backend", backend, BACKENDS)
    return BACKENDS[backend](name, episode_length)


def make_env(
    task: Task, *, num_envs: int = 1, seed: int = 0, device: torch.device | str = "cpu"
) -> EnvBase:
    """Environments of one task, stepped together; one environment is a batch of one.

    Each environment draws its initial states from a generator of its own, whose seed is derived
    from ``seed`` and its index: neither torch's nor NumPy's global generator is read, and the first
    environments stay the same when more are added.

    Args:
        task (Task): what to pose, from :func:`load_task`.
        num_envs (int): number of environments N.
        seed (int): at least 0; equal seeds give equal initial states.
        device (torch.device or str): where observations and rewards appear.

    Returns:
        EnvBase: of batch size ``[N]``. It reads ``action`` ``[N, A]`` and writes ``observation``
        ``[N, O]``, ``reward`` ``[N, 1]`` (summed over the repeated steps), ``done``, ``terminated``
        and ``truncated`` ``[N, 1]``.

    Raises:
        ValueError: if ``num_envs`` is less than 1 or ``seed`` less than 0.

    Examples:
        >>> env = make_env(load_task("dmcontrol", "walker-stand"), num_envs=2, seed=1)
        >>> env.rollout(5)["next", "observation"].shape
        torch.Size([2, 5, 24])
    """
    if num_envs < 1:
        raise ValueError(f"env.num_envs {num_envs} is too few; choose at least 1.")
    if seed < 0:
        raise ValueError(f"seed {seed} is negative; choose at least 0.")
    seeds = np.random.SeedSequence(seed).generate_state(num_envs).tolist()
    return SerialEnv(
        num_envs,
        lambda seed: task.make(seed),  # one callable, so that SerialEnv reads the specs once
        create_env_kwargs=[{"seed": seed} for seed in seeds],
        device=device,
    )
