"""Evaluate a trained agent: ``tdmpc2-evaluate checkpoint=PATH eval.episodes=10``.

``PATH`` is the ``output_dir`` of a run (its newest checkpoint counts), one of its checkpoints, or a
``.pt`` file of the official implementation, which needs ``env.task=...`` too. ``video=true``
writes an mp4 of the first episode beside it, or into ``output_dir=...``. Any other setting of
``config/tdmpc2_multigamma.yaml`` may be given, in place of the run's own.
"""

from __future__ import annotations

import functools
import statistics
import sys
import warnings
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torchrl.checkpoint import CheckpointError
from tqdm import tqdm

from torchrl_tdmpc.checkpoints import load_checkpoint, load_official
from torchrl_tdmpc.cli.parts import make_loss, make_planner
from torchrl_tdmpc.cli.settings import default_settings, naming, resolve
from torchrl_tdmpc.envs import Task
from torchrl_tdmpc.planners import TDMPC2Planner
from torchrl_tdmpc.recording import check_video, record_first_episode
from torchrl_tdmpc.trainers import EVALUATION_SEED, evaluate

NOT_OFFICIAL = ("simnorm_dim", "vmin", "vmax", "dropout")  # what a published file does not decide


def run(arguments: list[str]) -> None:
    """Evaluate, print every episode, and say where the video is."""
    warnings.filterwarnings("ignore", message="No target network updater")
    try:
        path, settings = read_arguments(arguments)
        config, task, name = read_config(path, settings)
        torch.set_num_threads(config.threads)
        planner = load_planner(path, config, task)
        video, recorder = None, {}
        if config.eval.video:
            check_video(task)
            video = Path(config.output_dir, f"{name}.mp4")
            recorder["on_begin"] = functools.partial(record_first_episode, path=video)
        bar = tqdm(total=task.episode_length, unit=" agent steps", leave=False)
        with bar as progress, naming("eval"):
            rows = evaluate(
                planner,
                task,
                episodes=config.eval.episodes,
                num_envs=config.eval.num_envs,
                seed=config.seed + EVALUATION_SEED,
                device=config.device,
                on_step=progress.update,
                **recorder,
            )
    except (CheckpointError, ImportError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print("episode      return  length", *task.extra_names)
    for episode, row in enumerate(rows, start=1):
        extra = [f"{row[name]:{len(name)}.3g}" for name in task.extra_names]
        print(f"{episode:7} {row['return']:11.3f} {row['length']:7}", *extra)
    returns = [row["return"] for row in rows]
    mean, deviation = statistics.fmean(returns), statistics.pstdev(returns)
    print(f"{task.name}: mean {mean:.3f}, standard deviation {deviation:.3f}")
    if video is not None:
        print(f"video of episode 1: {video}")


def read_arguments(arguments: list[str]) -> tuple[Path, DictConfig]:
    """The checkpoint's path, and the settings given beside it.

    Raises:
        ValueError: no checkpoint, or several.
    """
    paths = [argument for argument in arguments if argument.startswith("checkpoint=")]
    if len(paths) != 1:
        raise ValueError(
            f"checkpoint is given {len(paths)} times; it must be given once, as a path."
        )
    settings = OmegaConf.from_dotlist([argument for argument in arguments if argument not in paths])
    if "video" in settings:
        OmegaConf.update(settings, "eval.video", settings.pop("video"))
    if settings.get("compile") is False:
        settings.compile = "off"  # which YAML reads as false
    return Path(paths[0].removeprefix("checkpoint=")), settings


def read_config(path: Path, settings: DictConfig) -> tuple[DictConfig, Task, str]:
    """The settings that hold, the task, and a name for what is evaluated."""
    config = OmegaConf.create(default_settings())
    if is_official(path):
        if OmegaConf.select(settings, "env.task") is None:
            raise ValueError(f"env.task is not given; {path} does not say what it was trained on.")
        for name in settings.get("model", {}):
            if name not in NOT_OFFICIAL:
                raise ValueError(
                    f"model.{name} is given, but {path} decides it; of the model, "
                    f"{', '.join(NOT_OFFICIAL)} may be given."
                )
        name = path.stem
    else:
        record = load_checkpoint(checkpoints(path), {})
        if "config" not in record:
            raise ValueError(f"{path} carries no configuration; it must be of a training run.")
        config.merge_with(record["config"])
        name = f"agent-steps-{record['agent_steps']}"
    folder = path if path.is_dir() else path.parent
    here = {"device": "auto", "threads": "auto", "output_dir": str(folder)}
    here["eval"] = {"video": False}
    config, task = resolve(OmegaConf.merge(config, here, settings))
    return config, task, name


def load_planner(path: Path, config: DictConfig, task: Task) -> TDMPC2Planner:
    """The planner of the agent that was saved."""
    if not is_official(path):
        loss = make_loss(config, task)
        load_checkpoint(checkpoints(path), {"loss": loss}, map_location=config.device)
        return make_planner(config, task, loss)
    model = {name: config.model[name] for name in NOT_OFFICIAL}
    official = load_official(path, discount=config.loss.discount, **model, device=config.device)
    if official[1:] != (task.observation_shape, task.action_dim):
        raise ValueError(
            f"{path} observes {list(official.observation_shape)} and acts with "
            f"{official.action_dim} numbers; env.task {task.name} has "
            f"{list(task.observation_shape)} and {task.action_dim}."
        )
    return make_planner(config, task, official.loss)


def is_official(path: Path) -> bool:
    """Whether a path is that of an official checkpoint, by its ending."""
    return path.suffix == ".pt"


def checkpoints(path: Path) -> Path:
    """Where the checkpoints are: inside a run's directory, or the path itself."""
    return path / "checkpoints" if (path / "checkpoints").is_dir() else path


def main() -> None:
    """The console script ``tdmpc2-evaluate``."""
    run(sys.argv[1:])


if __name__ == "__main__":
    main()
