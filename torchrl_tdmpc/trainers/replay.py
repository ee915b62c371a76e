"""The replay of a run: as large as it can get, on a device where it fits."""

from __future__ import annotations

import math

import torch
from tensordict import unravel_key

from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.envs import Task

__all__ = ["build_replay"]


def build_replay(
    task: Task,
    *,
    horizon: int,
    steps: int,
    num_envs: int = 1,
    capacity: int = 1_000_000,
    batch_size: int = 256,
    device: str = "auto",
    networks_device: torch.device | str = "cpu",
) -> EpisodeReplay:
    """Make an empty replay for a run.

    Args:
        task: what the run trains on.
        horizon: steps in a slice.
        steps: agent steps of the run, summed over environments.
        num_envs: environments that are stepped together.
        capacity: most transitions that are kept. A run that cannot collect so many gets a smaller
            replay, so that no memory is reserved for what cannot come.
        batch_size: slices in a batch.
        device: where it is stored. ``"auto"`` is ``networks_device`` if the storage takes at most
            half of that device's memory, and the CPU otherwise.
        networks_device: where batches go.

    Examples:
        >>> from torchrl_tdmpc.envs import load_task
        >>> task = load_task("dmcontrol", "cartpole-balance", episode_length=100)
        >>> build_replay(task, horizon=3, steps=600).capacity  # 6 episodes, and what is begun
        608
    """
    num_frames = 1
    if task.frame_channels is not None:
        num_frames = task.observation_shape[0] // task.frame_channels
    shortest = horizon if task.episodic else task.episode_length  # of the episodes that are kept
    most = steps + num_envs  # the last step of all environments may go beyond
    most += num_frames * (num_envs + most // shortest)
    capacity = min(capacity, max(most, horizon + num_frames))
    if device == "auto":
        device = _fitting_device(capacity * _bytes(task, num_frames), networks_device)
    return EpisodeReplay(
        capacity=capacity,
        horizon=horizon,
        batch_size=batch_size,
        device=device,
        sample_device=networks_device,
        frame_channels=task.frame_channels,
        episodic=task.episodic,
        extra_keys=[unravel_key(("next", key)) for key in task.extra_keys],
    )


def _bytes(task: Task, num_frames: int) -> int:
    """Memory of one transition: a frame of single bytes or a vector of floats, and the rest."""
    observation = math.prod(task.observation_shape) // num_frames
    size = 4 if task.frame_channels is None else 1
    numbers = task.action_dim + 1 + len(task.extra_keys)  # action, reward, further entries
    return size * observation + 4 * numbers + 2  # and two flags


def _fitting_device(num_bytes: int, networks_device: torch.device | str) -> torch.device:
    """The networks' device, or the CPU if more than half of its memory would be taken."""
    device = torch.device(networks_device)
    if device.type != "cuda":
        return device
    memory = torch.cuda.get_device_properties(device).total_memory
    return device if num_bytes <= memory // 2 else torch.device("cpu")
