"""Videos of evaluation episodes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
from tensordict import TensorDictBase
from torchrl.envs import Transform, TransformedEnv

from torchrl_tdmpc.envs import Task, first_env, refuse_rendering, render

__all__ = ["FirstEpisodeRecorder", "Videos", "check_video", "record_first_episode"]

FRAMES_PER_SECOND = 30  # one frame an agent step


class FirstEpisodeRecorder(Transform):
    """Writes an mp4 of the first episode of a batched environment's first environment.

    One frame shows the initial state and one the state after each agent step, 30 of them a second.
    The file appears when the episode has ended; closing the environment earlier leaves none.

    Args:
        path: the file to write; its folder is made when absent.
        draw: gives the current frame of the first environment, uint8 ``[height, width, 3]``.
    """

    def __init__(self, path: str | Path, draw: Callable[[], np.ndarray]):
        super().__init__()
        self.path = Path(path)
        self.draw = draw
        self.has_ended = False
        self._unfinished = self.path.with_suffix(".unfinished.mp4")
        self._writer: Generator[None, np.ndarray, None] | None = None

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        if self._writer is None and not self.has_ended:
            frame = self.draw()
            self._writer = self._open(frame.shape)
            self._writer.send(np.ascontiguousarray(frame))
        return tensordict_reset

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        if not self.has_ended:
            self._writer.send(np.ascontiguousarray(self.draw()))
            self.has_ended = bool(next_tensordict["done"][0].any())
            if self.has_ended:
                self._writer.close()
                self._unfinished.replace(self.path)
        return next_tensordict

    def close(self) -> None:
        """Drop a video that has not come to its end."""
        if self._writer is not None and not self.has_ended:
            self._writer.close()
            self._unfinished.unlink(missing_ok=True)

    def _open(self, shape: tuple[int, ...]) -> Generator[None, np.ndarray, None]:
        from imageio_ffmpeg import write_frames

        self.path.parent.mkdir(parents=True, exist_ok=True)
        height, width, _ = shape
        writer = write_frames(self._unfinished, (width, height), fps=FRAMES_PER_SECOND)
        writer.send(None)  # starts it
        return writer


class Videos:
    """Callback that writes ``videos/<environment step>.mp4`` of each evaluation's first episode.

    Args:
        output_dir: The run's folder.
    """

    def __init__(self, output_dir: str | Path):
        self.folder = Path(output_dir) / "videos"

    def on_evaluation_begin(self, trainer: Any, env: TransformedEnv) -> None:
        """Record what the first environment shows."""
        step = trainer.counters.agent_steps * trainer.task.action_repeat
        record_first_episode(env, self.folder / f"{step:012d}.mp4")


def record_first_episode(env: TransformedEnv, path: str | Path) -> None:
    """Append a :class:`FirstEpisodeRecorder` of the first one of batched environments."""
    env.append_transform(FirstEpisodeRecorder(path, lambda: render(first_env(env))))


def check_video(task: Task) -> None:
    """Refuse a video that :class:`FirstEpisodeRecorder` cannot make, before it is wanted.

    Raises:
        ImportError: the package that writes videos is not installed.
        ValueError: the task cannot be rendered, or not on this machine.
    """
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ImportError("a video needs imageio-ffmpeg: pip install 'torchrl_tdmpc[video]'.")
    if task.num_envs is not None:
        raise ValueError(
            f"a video is wanted, but the environments of task {task.name!r} are a batch of "
            f"{task.num_envs}, of which none is drawn; leave the video out."
        )
    env = task.make(0)
    try:
        refuse_rendering(env, task.name, "a video is wanted")
    finally:
        env.close()
