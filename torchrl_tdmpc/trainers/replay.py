"""The replay of a run: as large as it can get, on a device where it fits."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from tensordict import TensorDict, unravel_key

from torchrl_tdmpc.data import DatasetError, EpisodeFiles, EpisodeReplay
from torchrl_tdmpc.envs import Task
from torchrl_tdmpc.modules.memory import refuse_beyond_memory

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
    episodes: EpisodeFiles | None = None,
    fill: bool = True,
) -> EpisodeReplay:
    """Make the replay of a run: empty, or filled with stored episodes.

    Args:
        task: what the run trains on. One that is padded for a model of several has its index in
            the batches too.
        horizon: steps in a slice.
        steps: agent steps of the run, summed over environments.
        num_envs: environments that are stepped together.
        capacity: most transitions that are kept. A run that cannot collect so many gets a smaller
            replay, so that no memory is reserved for what cannot come.
        batch_size: slices in a batch.
        device: where it is stored. ``"auto"`` is ``networks_device`` if the storage takes at most
            half of that device's memory, and the CPU otherwise.
        networks_device: where batches go.
        episodes: of the task, which the run begins with.
        fill: whether they are read now. A run that is resumed gets them from its checkpoint.

    Raises:
        DatasetError: the episodes are of other tasks or shapes.
        ValueError: a size out of its range, or one that the machine has no memory for.

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
    if episodes is not None:
        most += episodes.num_steps + num_frames * episodes.num_episodes
    capacity = min(capacity, max(most, horizon + num_frames))
    num_bytes = capacity * _bytes(task, num_frames)
    refuse_beyond_memory(f"capacity is {capacity:,}; its transitions", num_bytes)
    if device == "auto":
        device = _fitting_device(num_bytes, networks_device)
    replay = EpisodeReplay(
        capacity=capacity,
        horizon=horizon,
        batch_size=batch_size,
        device=device,
        sample_device=networks_device,
        frame_channels=task.frame_channels,
        observation_keys=["observation", *_index_keys(task)],
        episodic=task.episodic,
        extra_keys=[unravel_key(("next", key)) for key in task.extra_keys],
    )
    if episodes is not None and fill:
        for episode in _of_task(episodes, task):
            replay.extend(episode, source="stored")
    return replay


def _of_task(episodes: EpisodeFiles, task: Task) -> Iterator[TensorDict]:
    """The episodes of one task; a data set that names no tasks must have one alone."""
    names, first, is_there = episodes.tasks, None, False
    if names is not None and task.name not in names:
        raise DatasetError(
            f"{episodes.folder} has the tasks {', '.join(names)}, but not {task.name}."
        )
    for episode in episodes:
        index = int(episode["task"][0])
        if names is None:
            first = index if first is None else first
            if index != first:
                raise DatasetError(
                    f"{episodes.folder} has the tasks {first} and {index}, and no names of them; a "
                    "run on one task needs episodes of one."
                )
        elif index >= len(names) or names[index] != task.name:
            continue
        if task.index is not None:
            episode = _padded(episode, task)
        found = (tuple(episode["observation"].shape[1:]), episode["action"].shape[-1])
        if found != (task.observation_shape, task.action_dim):
            raise DatasetError(
                f"{episodes.folder} has observations {list(found[0])} and {found[1]} actions; "
                f"{task.name} has {list(task.observation_shape)} and {task.action_dim}."
            )
        is_there = True
        yield episode
    if not is_there:
        raise DatasetError(f"{episodes.folder} has no episode of {task.name}.")


def _index_keys(task: Task) -> list[str]:
    """The entry that tells a model of several tasks which one it is."""
    return [] if task.index is None else ["task"]


def _padded(episode: TensorDict, task: Task) -> TensorDict:
    """An episode of a task alone as the model of several sees it; what is wider stays so."""
    sizes = {
        "observation": task.observation_shape[0],
        ("next", "observation"): task.observation_shape[0],
        "action": task.action_dim,
    }
    for key, size in sizes.items():
        episode[key] = F.pad(episode[key], (0, max(0, size - episode[key].shape[-1])))
    for key in ("task", ("next", "task")):
        episode[key] = torch.full((len(episode), 1), task.index)
    return episode


def _bytes(task: Task, num_frames: int) -> int:
    """Memory of one transition: a frame of single bytes or a vector of floats, and the rest."""
    observation = math.prod(task.observation_shape) // num_frames
    size = 4 if task.frame_channels is None else 1
    numbers = task.action_dim + 1 + len(task.extra_keys)  # action, reward, further entries
    indices = 8 * len(_index_keys(task))
    return size * observation + 4 * numbers + indices + 2  # and two flags


def _fitting_device(num_bytes: int, networks_device: torch.device | str) -> torch.device:
    """The networks' device, or the CPU if more than half of its memory would be taken."""
    device = torch.device(networks_device)
    if device.type != "cuda":
        return device
    memory = torch.cuda.get_device_properties(device).total_memory
    return device if num_bytes <= memory // 2 else torch.device("cpu")
