"""Slices of the episodes of several tasks, read from disk as they are sampled."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_tdmpc.data.dataset import DatasetError, EpisodeFiles, refuse

__all__ = ["EpisodeStream"]


class EpisodeStream:
    """Samples slices of H consecutive steps from the files of a data set.

    The files stay on disk: of each slice its H + 1 rows are read, and the operating system keeps
    in memory what it has room for. The next batch is read while the last one is learned from.

    Slices are drawn with replacement, as from :class:`EpisodeReplay`: first an episode, uniformly,
    whatever its task, then one of its H-step windows, uniformly.

    Args:
        files: where the episodes are. All of them are looked through once.
        tasks: the tasks' names. Where the files tell names, each task's episodes are found by
            them, and those of other tasks are left out; otherwise the order is that of the index.
        observation_dims: each task's own number of observed numbers; the files pad them with zeros.
        action_dims: each task's own number of action dimensions, padded likewise.
        horizon: steps in a slice, H.
        batch_size: slices in a batch, B.
        seed: of the draws, which come from a generator of their own.
        device: where batches go.

    Raises:
        DatasetError: the files have other tasks or widths, or an episode that terminates, that is
            of another length than the task's others, or whose padding is not zero.

    Attributes:
        folder: where the files are.
        num_episodes: of each task.
        episode_lengths: of each task, in steps.

    Examples:
        >>> import tempfile
        >>> from torchrl_tdmpc.data import write_episodes
        >>> rows = TensorDict(obs=torch.rand(6, 3), action=torch.zeros(6, 2), reward=torch.ones(6))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_episodes(folder, [rows.auto_batch_size_(1)], tasks=["cup-catch"])
        ...     stream = EpisodeStream(
        ...         EpisodeFiles(folder),
        ...         ["cup-catch"],
        ...         observation_dims=[3],
        ...         action_dims=[2],
        ...         horizon=3,
        ...         batch_size=4,
        ...     )
        ...     batch = stream.sample()
        >>> batch["observation"].shape, batch["next", "reward"].shape, batch["task"].shape
        (torch.Size([4, 3, 3]), torch.Size([4, 3, 1]), torch.Size([4, 3]))
    """

    def __init__(
        self,
        files: EpisodeFiles,
        tasks: Sequence[str],
        *,
        observation_dims: Sequence[int],
        action_dims: Sequence[int],
        horizon: int,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        if horizon < 1:
            raise ValueError(f"horizon is {horizon}; it must be at least 1.")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
        self.folder = files.folder
        self.tasks = list(tasks)
        self.observation_dims, self.action_dims = list(observation_dims), list(action_dims)
        self.horizon, self.batch_size = horizon, batch_size
        self.device = torch.device(device)
        self._chunks = [chunk for _, chunk in files.chunks()]
        self._refuse_widths(files)
        self._find_episodes(files)
        self._generator = torch.Generator().manual_seed(seed)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="episodes")
        self._next: Future | None = None
        self._before_next = self._generator.get_state()

    def sample(self) -> TensorDictBase:
        """Draw a batch of slices.

        Returns:
            ``[B, H]`` with the observations (s_t), the action (a_t), the index of the ``task``, and
            ``"next"``: the observations (s_{t+1}), ``reward``, ``terminated`` and ``done``
            ``[B, H, 1]``.
        """
        batch = (self._next or self._draw()).result()
        self._before_next = self._generator.get_state()
        self._next = self._draw()
        return batch.to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Where the draws are; the episodes themselves stay where they are."""
        return {"generator": self._before_next, "num_episodes": list(self.num_episodes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the next draw.

        Raises:
            DatasetError: the files have other episodes now.
        """
        if state["num_episodes"] != self.num_episodes:
            raise DatasetError(
                f"the data set has {self.num_episodes} episodes of its tasks; the run to be "
                f"resumed had {state['num_episodes']}."
            )
        self._next = None
        self._generator.set_state(state["generator"])
        self._before_next = self._generator.get_state()

    # ------------------------------------------------------------------ what there is

    def _refuse_widths(self, files: EpisodeFiles) -> None:
        needed = max(self.observation_dims), max(self.action_dims)
        found = self._chunks[0]["obs"].shape[-1], self._chunks[0]["action"].shape[-1]
        if found[0] < needed[0] or found[1] < needed[1]:
            raise DatasetError(
                f"{files.paths[0]} has observations of {found[0]} numbers and actions of "
                f"{found[1]}; the tasks need {needed[0]} and {needed[1]}."
            )

    def _find_episodes(self, files: EpisodeFiles) -> None:
        """Check every episode, and note where those of our tasks are."""
        ours = _index_of(files, self.tasks)
        number = {path: chunk for chunk, path in enumerate(files.paths)}
        seen = dict.fromkeys(files.paths, 0)
        places: list[Tensor] = []
        self.episode_lengths: list[int] = [0] * len(self.tasks)
        for path, block in files.blocks():
            first, seen[path] = seen[path], seen[path] + len(block)
            theirs = block["task"][:, 0].long()
            is_there = (theirs >= 0) & (theirs < len(ours))
            refuse(path, first, ~is_there, f"a task index beyond the {len(ours)} tasks")
            task = ours[theirs]
            for index in set(task.tolist()) - {-1}:
                self._check_task(path, first, block, task == index, index)
            episode = first + torch.arange(len(block))
            where = torch.stack([torch.full_like(episode, number[path]), episode, task], 1)
            places.append(where[task >= 0])
        self._places = torch.cat(places)  # [episodes, 3]: file, episode in it, task
        self.num_episodes = self._places[:, 2].bincount(minlength=len(self.tasks)).tolist()
        for name, count in zip(self.tasks, self.num_episodes):
            if not count:
                raise DatasetError(f"{files.folder} has no episode of {name}.")
        shortest = min(self.episode_lengths)
        if shortest < self.horizon:
            raise DatasetError(
                f"{files.folder} has episodes of {shortest} steps; a slice takes {self.horizon}."
            )
        lengths = torch.tensor([chunk.shape[1] - 1 for chunk in self._chunks])
        self._num_windows = lengths - self.horizon + 1  # of an episode of each file

    def _check_task(
        self, path: Path, first: int, block: TensorDictBase, mine: Tensor, index: int
    ) -> None:
        """Refuse what does not fit the task of some of the episodes of a block."""
        name = self.tasks[index]
        mask = mine.view(-1, 1, 1)
        obs, action = self.observation_dims[index], self.action_dims[index]
        beyond = block["obs"][..., obs:] != 0
        refuse(path, first, mask & beyond, f"'obs' that is not 0 beyond the {obs} of {name}")
        beyond = block["action"][:, 1:, action:] != 0
        refuse(path, first, mask & beyond, f"'action' that is not 0 beyond the {action} of {name}")
        if (terminated := block.get("terminated", None)) is not None:
            ended = terminated[:, 1:].flatten(1) & mine.unsqueeze(1)
            refuse(path, first, ended, f"a termination of {name}, unknown to a model of tasks,")
        length, before = block.shape[1] - 1, self.episode_lengths[index]
        if before not in (0, length):
            number = first + int(mine.nonzero()[0])
            raise DatasetError(
                f"{path} has {length} steps in episode {number} of {name}; those before it have "
                f"{before}, and all of a task must have the same."
            )
        self.episode_lengths[index] = length

    # ------------------------------------------------------------------ what is drawn

    def _draw(self) -> Future:
        """Choose the slices of a batch now, and read them meanwhile."""
        size = (self.batch_size,)
        chosen = torch.randint(len(self._places), size, generator=self._generator)
        places = self._places[chosen]
        # Uniform below each episode's own number of windows
        share = torch.rand(size, generator=self._generator, dtype=torch.float64)
        begin = (share * self._num_windows[places[:, 0]]).long()
        return self._reader.submit(self._read, places, begin)

    @torch.inference_mode(False)
    def _read(self, places: Tensor, begin: Tensor) -> TensorDict:
        widths = {"obs": max(self.observation_dims), "action": max(self.action_dims)}
        shape = (len(places), self.horizon + 1)
        obs = torch.empty(*shape, widths["obs"])
        action = torch.empty(*shape, widths["action"])
        reward = torch.empty(shape)
        rows = begin.unsqueeze(1) + torch.arange(self.horizon + 1)
        for number in places[:, 0].unique().tolist():
            of_file = (places[:, 0] == number).nonzero().flatten()
            at = places[of_file, 1].unsqueeze(1), rows[of_file]
            chunk = self._chunks[number]
            obs[of_file] = chunk["obs"][at][..., : widths["obs"]].float()
            action[of_file] = chunk["action"][at][..., : widths["action"]].float()
            reward[of_file] = chunk["reward"][at].float()
        terminated = torch.zeros(len(places), self.horizon, 1, dtype=torch.bool)
        last = (self._num_windows[places[:, 0]] + self.horizon - 1).unsqueeze(1)
        following = {
            "observation": obs[:, 1:],
            "reward": reward[:, 1:].unsqueeze(-1),
            "terminated": terminated,
            "done": (rows[:, 1:] == last).unsqueeze(-1),
        }
        batch_size = terminated.shape[:2]
        return TensorDict(
            observation=obs[:, :-1],
            action=action[:, 1:],
            task=places[:, 2:].expand(batch_size).contiguous(),
            next=TensorDict(following, batch_size=batch_size),
            batch_size=batch_size,
        )


def _index_of(files: EpisodeFiles, tasks: Sequence[str]) -> Tensor:
    """Our index of each task of the files, -1 for one that is left out."""
    names = files.tasks
    if names is None:
        return torch.arange(len(tasks))
    if absent := [name for name in tasks if name not in names]:
        raise DatasetError(f"{files.folder} has the tasks {', '.join(names)}, but not {absent[0]}.")
    return torch.tensor([tasks.index(name) if name in tasks else -1 for name in names])
