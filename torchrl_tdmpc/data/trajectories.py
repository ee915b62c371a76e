"""The trajectories that have not ended yet, however their steps come in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

DONE = ("next", "done")


class ReplayError(RuntimeError):
    """What the environments sent cannot be learned from."""


class OpenTrajectories:
    """Keeps the transitions of each trajectory until it ends.

    All of them lie in one pool, which grows as needed; a trajectory is the list of its rows in it,
    in order. So a call costs one write for each entry, of however many trajectories it has steps.

    A trajectory of T steps is K + T transitions: the K frames of the observation that it begins
    with, and for each step the newest frame of the observation that it led to, its action and what
    else is kept. The first K have an observation only; the rest of them is 0.

    Args:
        num_frames: frames in an observation, K; 1 for vectors.
        device: where the pool is.
    """

    def __init__(self, num_frames: int, device: torch.device):
        self.num_frames = num_frames
        self.device = device
        self._rows: dict[tuple, dict[int, list[int]]] = {}  # by name and id
        self._free: list[int] = []
        self._size = 0  # rows, free or not
        self._pool: TensorDictBase | None = None

    @property
    def num_steps(self) -> int:
        """Steps of all open trajectories."""
        return sum(len(rows) - self.num_frames for *_, rows in self._all())

    def has_any(self, name: tuple) -> bool:
        """Whether a trajectory of this name is open."""
        return bool(self._rows.get(name))

    def extend(
        self, name: tuple, ids: Tensor, histories: TensorDictBase, transitions: TensorDictBase
    ) -> tuple[TensorDictBase | None, list[int]]:
        """Take steps, those of one trajectory in their order.

        Args:
            name: what the ids are unique in, the source first.
            ids: ``[M]``, the trajectory of each step; on the CPU. After a step that is
                ``done`` the same id begins another trajectory.
            histories: ``[M, K]``, the frames that each step begins with.
            transitions: ``[M]``, what is kept of each step.

        Returns:
            The transitions of the trajectories that ended, in the order of their last steps (None
            if none ended), and how many belong to each.

        Raises:
            ReplayError: if a step does not begin with the observation that the one before it led
                to. Nothing is kept then.
        """
        trajectories = self._rows.setdefault(name, {})
        taken = self._take(len(ids))
        first_rows: list[int] = []  # of the trajectories that begin here, K of each
        first_steps: list[int] = []
        before: list[list[int]] = [[] for _ in range(self.num_frames)]  # rows of each step's frames
        extended: list[tuple[int, list[int], int]] = []  # from which length on
        ended: list[list[int]] = []
        for begin, end, number, is_done in _runs(ids, transitions[DONE].cpu().flatten()):
            rows = trajectories.get(number)
            if rows is None:
                rows = trajectories[number] = self._take(self.num_frames)
                first_rows += rows
                first_steps.append(begin)
                extended.append((number, rows, 0))
            else:
                extended.append((number, rows, len(rows)))
            oldest = len(rows) - self.num_frames
            rows += taken[begin:end]
            for frame, column in enumerate(before, oldest):
                column += rows[frame : frame + end - begin]
            if is_done:
                ended.append(trajectories.pop(number))

        pool = self._grow(transitions)
        pool[self._index(taken)] = transitions
        if first_rows:
            first = torch.zeros_like(transitions[:1]).expand(len(first_rows)).clone()
            first.update(histories[self._index(first_steps)].flatten(0, 1))
            pool[self._index(first_rows)] = first
        if (difference := _difference(pool, self._index(before).T, histories)) is not None:
            for number, rows, length in reversed(extended):
                trajectories[number] = rows
                del rows[length:]
                if not rows:
                    del trajectories[number]
            self._free += taken + first_rows
            key, step = difference
            raise ReplayError(
                f"Trajectory {int(ids[step])} of source {name[0]!r} does not go on where it was, "
                f"because {key!r} is not what its last step led to: steps are missing, or another "
                "collector uses the same id; give each collector a source of its own, and call "
                "truncate() before a new one takes the place of an old one."
            )
        return self._leave(ended)

    def truncate(self) -> tuple[TensorDictBase | None, list[int]]:
        """End all of them where they are, and return them like :meth:`extend`."""
        ended = [rows for *_, rows in self._all()]
        self._rows.clear()
        for rows in ended:
            self._pool[DONE][rows[-1]] = True
        return self._leave(ended)

    def state_dict(self) -> list[tuple[list, int, dict[str, Any]]]:
        """Name, id and transitions of each."""
        return [
            (list(name), number, self._pool[self._index(rows)].to_dict())
            for name, number, rows in self._all()
        ]

    def load_state_dict(self, state: list[tuple[list, int, dict[str, Any]]]) -> None:
        """Take up those that :meth:`state_dict` told of; before, there are none."""
        for name, number, entries in state:
            transitions = TensorDict(entries).auto_batch_size_(1).to(self.device)
            rows = self._take(len(transitions))
            self._grow(transitions)[self._index(rows)] = transitions
            self._rows.setdefault(tuple(name), {})[number] = rows

    def _all(self) -> Iterator[tuple[tuple, int, list[int]]]:
        for name, trajectories in self._rows.items():
            for number, rows in trajectories.items():
                yield name, number, rows

    def _leave(self, ended: list[list[int]]) -> tuple[TensorDictBase | None, list[int]]:
        """Take trajectories out of the pool."""
        rows = [row for trajectory in ended for row in trajectory]
        if not rows:
            return None, []
        self._free += rows
        return self._pool[self._index(rows)], [len(trajectory) for trajectory in ended]

    def _take(self, number: int) -> list[int]:
        """Rows that were free."""
        if number > len(self._free):
            new = max(number, self._size)
            self._free += range(self._size, self._size + new)
            self._size += new
        taken = self._free[-number:]
        del self._free[-number:]
        return taken

    def _grow(self, transitions: TensorDictBase) -> TensorDictBase:
        """The pool, with every row that was taken."""
        if self._pool is None or len(self._pool) < self._size:
            old = self._pool
            self._pool = torch.zeros_like(transitions[:1]).expand(self._size).clone()
            if old is not None:
                self._pool[: len(old)] = old
        return self._pool

    def _index(self, rows: list) -> Tensor:
        return torch.tensor(rows, device=self.device)


def _runs(ids: Tensor, done: Tensor) -> Iterator[tuple[int, int, int, bool]]:
    """Consecutive steps of one trajectory: begin, end, its id and whether it is done."""
    is_last = done.clone()
    is_last[:-1] |= ids[1:] != ids[:-1]
    is_last[-1] = True
    last = is_last.nonzero().flatten()
    ends = (last + 1).tolist()
    return zip([0, *ends[:-1]], ends, ids[last].tolist(), done[last].tolist(), strict=True)


def _difference(pool: TensorDictBase, rows: Tensor, histories: TensorDictBase) -> Any:
    """The first key that differs between rows ``[M, K]`` of the pool and ``histories``, and where.

    None if there is none.
    """
    for key, history in histories.items(True, True):
        same = (pool[key][rows] == history).flatten(1).all(1)
        if not same.all():
            return key, int(same.logical_not().nonzero()[0])
    return None
