"""Episodes from TorchRL's own storages on disk, and from Minari through TorchRL's loader."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import torch
from tensordict import TensorDict, TensorDictBase

from torchrl_tdmpc.data.dataset import DatasetError

__all__ = ["minari_episodes", "storage_episodes"]

NEEDED = ("observation", "action", *(("next", k) for k in ("observation", "reward", "done")))


def storage_episodes(folder: str | Path) -> list[TensorDict]:
    """The finished episodes of a memory-mapped storage, as :func:`write_episodes` takes them.

    Args:
        folder: of a ``LazyMemmapStorage`` (its ``scratch_dir``), of what ``ReplayBuffer.dumps``
            wrote, or of any memory-mapped TensorDict of steps ``[M]`` in root/next layout. Steps
            follow one another, or tell their trajectories by ``("collector", "traj_ids")``.

    Raises:
        DatasetError: it is none, lacks an entry, or has no finished episode.

    Examples:
        >>> import tempfile
        >>> done = torch.tensor([[False], [True]])
        >>> following = {"observation": torch.ones(2, 3), "reward": torch.ones(2, 1), "done": done}
        >>> following["observation"][1] = 2.0
        >>> steps = TensorDict(
        ...     observation=torch.tensor([[0.0], [1.0]]).expand(2, 3),
        ...     action=torch.zeros(2, 1),
        ...     next=TensorDict(following, batch_size=2),
        ...     batch_size=2,
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = steps.memmap(folder)
        ...     (episode,) = storage_episodes(folder)
        >>> episode["obs"][:, 0].tolist()
        [0.0, 1.0, 2.0]
    """
    folder = Path(folder)
    folder = folder / "storage" if (folder / "storage" / "meta.json").exists() else folder
    if not (folder / "meta.json").exists():
        raise FileNotFoundError(f"there is no memory-mapped storage (meta.json) in {folder}.")
    try:
        steps = TensorDict.load_memmap(folder)
        facts = folder / "storage_metadata.json"
        if facts.exists():  # a buffer that is not full
            steps = steps[: int(json.loads(facts.read_text(encoding="utf-8"))["len"])]
    except Exception as error:  # whatever strange bytes lead tensordict into
        first_line = str(error).partition("\n")[0]
        raise DatasetError(f"{folder} cannot be read as a storage ({first_line}).") from None
    return _episodes(steps, str(folder))


def minari_episodes(name: str) -> list[TensorDict]:
    """The episodes of a Minari data set, which TorchRL's loader downloads.

    Args:
        name: of the data set, such as ``mujoco/hopper/expert-v0``.

    Raises:
        DatasetError: its observations are no vectors, or an entry is missing.
        ImportError: the package is not installed.
    """
    if importlib.util.find_spec("minari") is None:
        raise ImportError(
            f"minari:{name} needs the package minari, which is not installed; install it with "
            "pip install 'minari[hdf5,hf]'."
        )
    from torchrl.data.datasets import MinariExperienceReplay

    steps = MinariExperienceReplay(name, batch_size=1, split_trajs=False)[:]
    return _episodes(steps, f"minari:{name}")


def _episodes(steps: TensorDictBase, source: str) -> list[TensorDict]:
    """Finished episodes ``[T + 1]`` of steps ``[M]``."""
    if steps.ndim != 1:
        raise DatasetError(
            f"{source} has the batch size {list(steps.shape)}; it must be one row of steps."
        )
    for key in NEEDED:
        if not isinstance(steps.get(key, None), torch.Tensor):
            raise DatasetError(f"{source} has no entry {key!r}.")
    if steps["observation"].ndim != 2 or steps["action"].ndim != 2:
        raise DatasetError(f"{source} must have vectors as observations and actions.")
    ids = steps.get(("collector", "traj_ids"), None)
    if ids is not None:
        steps = steps[ids.flatten().sort(stable=True).indices]
        ids = steps["collector", "traj_ids"].flatten()
    episodes, begin = [], 0
    done = steps["next", "done"].reshape(len(steps))
    for end in (done.nonzero().flatten() + 1).tolist():
        episode = steps[begin:end]
        if ids is not None:  # what came before in other trajectories was left open
            episode = episode[ids[begin:end] == ids[end - 1]]
        begin = end
        if not torch.equal(episode["observation"][1:], episode["next", "observation"][:-1]):
            raise DatasetError(
                f"{source} has steps of several episodes in turn, before step {end}; those of one "
                "must follow one another, or have a trajectory id each."
            )
        episodes.append(_rows(episode))
    if not episodes:
        raise DatasetError(f"{source} has no finished episode.")
    return episodes


def _rows(episode: TensorDictBase) -> TensorDict:
    """Rows ``[T + 1]`` from steps ``[T]``: zeros stand where nothing led to the first one."""
    following, length = episode["next"], len(episode)
    terminated = following.get("terminated", None)
    if terminated is None:
        terminated = torch.zeros(length, dtype=torch.bool)

    def led(value: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(value[:1]), value])

    return TensorDict(
        obs=torch.cat([episode["observation"][:1], following["observation"]]).float(),
        action=led(episode["action"].float()),
        reward=led(following["reward"].reshape(length).float()),
        terminated=led(terminated.reshape(length).bool()),
        batch_size=length + 1,
    )
