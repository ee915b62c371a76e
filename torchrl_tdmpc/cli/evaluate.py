"""Evaluate a trained agent: ``tdmpc2-evaluate checkpoint=PATH eval.episodes=10``.

``PATH`` is the ``output_dir`` of a run (its newest checkpoint counts), one of its checkpoints, or a
``.pt`` file of the official implementation, which needs ``env.task=...`` too. A model of several
tasks is evaluated on all of them; an official one needs ``env.tasks=...``. ``video=true`` writes an
mp4 of the first episode beside it, or into ``output_dir=...``. Any other setting of
``config/tdmpc2_multigamma.yaml`` may be given, in place of the run's own. A task that is a function
must be given: a checkpoint alone decides of no code that is imported.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from torchrl_tdmpc.checkpoints import SavedMemory, load_checkpoint, load_official
from torchrl_tdmpc.checkpoints.archive import first_line
from torchrl_tdmpc.cli.failures import in_one_sentence
from torchrl_tdmpc.cli.fine_tuning import (
    NOT_OFFICIAL,
    is_official,
    not_official,
    place_as_recorded,
)
from torchrl_tdmpc.cli.help import asks_for_help, evaluate_help
from torchrl_tdmpc.cli.modes import resolve_run
from torchrl_tdmpc.cli.parts import make_loss, make_planner, set_up_torch
from torchrl_tdmpc.cli.settings import default_settings, naming, refuse_unknown_keys
from torchrl_tdmpc.envs import Task, TaskSet
from torchrl_tdmpc.planners import TDMPC2Planner
from torchrl_tdmpc.recording import OfflineRecord, check_video, record_first_episode
from torchrl_tdmpc.trainers import (
    EVALUATION_SEED,
    Patience,
    evaluate,
    recorded_agent,
    task_discounts,
)


def run(arguments: list[str]) -> None:
    """Evaluate, print every episode, and say where the video is."""
    if asks_for_help(arguments):
        print(evaluate_help())
        return
    warnings.filterwarnings("ignore", message="No target network updater")
    with in_one_sentence():
        path, settings = read_arguments(arguments)
        config, task, name = read_config(path, settings)
        set_up_torch(config)
        planner = load_planner(path, config, task)
        video, recorder = None, {}
        if config.eval.video:
            check_video(task)
            video = Path(config.output_dir, f"{name}.mp4")
            recorder["on_begin"] = functools.partial(record_first_episode, path=video)
        bar = tqdm(total=task.episode_length, unit=" agent steps", leave=False)
        patience = Patience(config.env.timeout)

        def on_step() -> None:
            patience.begin()
            bar.update()

        with bar, naming("eval"), patience, patience.waiting(planner):
            rows = evaluate(
                planner,
                task,
                episodes=config.eval.episodes,
                num_envs=config.eval.num_envs,
                seed=config.seed + EVALUATION_SEED,
                device=config.device,
                memory=load_memory(path, task),
                on_step=on_step,
                **recorder,
            )
    if isinstance(task, TaskSet):
        print_tasks(task, rows)
    else:
        print_episodes(task, rows)
    if video is not None:
        print(f"video of episode 1: {video}")


def print_episodes(task: Task, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print every episode of a task, their mean and their standard deviation."""
    print("episode      return  length", *task.extra_names)
    for episode, row in enumerate(rows, start=1):
        extra = [f"{row[name]:{len(name)}.3g}" for name in task.extra_names]
        print(f"{episode:7} {row['return']:11.3f} {row['length']:7}", *extra)
    returns = [row["return"] for row in rows]
    mean, deviation = statistics.fmean(returns), statistics.pstdev(returns)
    means = [
        f", {name} {statistics.fmean(row[name] for row in rows):.3g}" for name in task.extra_names
    ]
    print(f"{task.name}: mean {mean:.3f}, standard deviation {deviation:.3f}" + "".join(means))


def print_tasks(tasks: TaskSet, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the mean return and the score of each task, and the mean score."""
    *each, last = OfflineRecord(tasks.tasks, []).tasks_evaluated(0, rows)
    width = max(map(len, tasks.names))
    print(f"{'task':{width}}  episodes  mean return  deviation  score")
    for row in each:
        numbers = f"{row['reward']:11.3f} {row['reward_std']:10.3f} {row['score']:6.1f}"
        print(f"{row['task']:{width}} {row['episodes']:9}  {numbers}")
    print(f"mean score {last['score']:.2f}")


def read_arguments(arguments: list[str]) -> tuple[Path, DictConfig]:
    """The checkpoint's path, and the settings given beside it.

    Raises:
        ValueError: no checkpoint, or several, or an argument that is no setting.
    """
    paths = [argument for argument in arguments if argument.startswith("checkpoint=")]
    if len(paths) != 1:
        raise ValueError(
            f"checkpoint is given {len(paths)} times; it must be given once, as a path."
        )
    others = [argument for argument in arguments if argument not in paths]
    refuse_unknown_keys(others, further=("checkpoint", "video"), is_hydra=False)
    try:
        settings = OmegaConf.from_dotlist(others)
    except Exception as error:  # whatever YAML and OmegaConf make of a value
        raise ValueError(
            f"{' '.join(others)} cannot be read as settings ({first_line(error)})."
        ) from error
    if "video" in settings:
        OmegaConf.update(settings, "eval.video", settings.pop("video"))
    if settings.get("compile") is False:
        settings.compile = "off"  # which YAML reads as false
    path = paths[0].removeprefix("checkpoint=")
    if not path:
        raise ValueError("checkpoint is ''; it must name a file or a folder.")
    return Path(path).expanduser(), settings


def read_config(path: Path, settings: DictConfig) -> tuple[DictConfig, Task | TaskSet, str]:
    """The settings that hold, the task, and a name for what is evaluated."""
    config = OmegaConf.create(default_settings())
    if is_official(path):
        tasks = (OmegaConf.select(settings, f"env.{key}") for key in ("task", "tasks"))
        if not any(tasks):
            raise ValueError(f"env.task is not given; {path} does not say what it was trained on.")
        if OmegaConf.select(settings, "env.tasks") is not None:
            config.mode = "offline"
        for name in settings.get("model", {}):
            if name not in NOT_OFFICIAL:
                raise ValueError(
                    f"model.{name} is given, but {path} decides it; of the model, "
                    f"{', '.join(NOT_OFFICIAL)} may be given."
                )
        name = path.stem
    else:
        record = load_checkpoint(checkpoints(path), {})
        config = recorded_config(path, record)
        refuse_other_tasks(path, record, settings)
        refuse_foreign_code(path, config, settings)
        is_offline = "updates" in record
        if is_offline:  # named after its tasks
            config.env.task = default_settings()["env"]["task"]
        name = (
            f"updates-{record['updates']}" if is_offline else f"agent-steps-{record['agent_steps']}"
        )
    folder = path if path.is_dir() else path.parent
    here = {"device": "auto", "threads": "auto", "output_dir": str(folder), "compile": "off"}
    here["resume"] = None
    here["eval"] = {"video": False}
    config, task = resolve_run(OmegaConf.merge(config, here, settings))
    if not is_official(path):
        task = place_as_recorded(task, checkpoints(path), record)
    return config, task, name


def recorded_config(path: Path, record: dict[str, Any]) -> DictConfig:
    """The configuration of the run that a checkpoint is of.

    Raises:
        ValueError: there is none, or it is none that this version writes.
    """
    recorded = record.get("config")
    if not recorded or not isinstance(record.get("updates", record.get("agent_steps")), int):
        raise ValueError(f"{path} carries no configuration; it must be of a training run.")
    if not isinstance(recorded, dict) or "${" in json.dumps(recorded):
        raise ValueError(f"the configuration in {path} is none that a run writes.")
    return OmegaConf.merge(default_settings(), recorded)


def refuse_other_tasks(path: Path, record: dict[str, Any], settings: DictConfig) -> None:
    """Keep a model of one task from several, and the other way round.

    Raises:
        ValueError: the command line asks for other tasks than the model is of.
    """
    if "agent" not in record:  # refused when it is built
        return
    agent = recorded_agent(path, record)
    ours = agent.get("tasks") if agent.get("index") is None else None  # trained on one of them
    given = OmegaConf.select(settings, "env.tasks")
    if not ours and given is not None:
        raise ValueError(f"{path} is of one task; env.tasks must be left out.")
    if ours and OmegaConf.select(settings, "env.task") is not None:
        raise ValueError(
            f"{path} is of {len(ours)} tasks; leave env.task out, and it is evaluated on all."
        )


def refuse_foreign_code(path: Path, config: DictConfig, settings: DictConfig) -> None:
    """Import nothing because a checkpoint says so.

    Raises:
        ValueError: a task is imported from a module, and the command line does not name it.
    """
    tasks = OmegaConf.select(config, "env.tasks")
    if tasks is not None:
        code = [] if isinstance(tasks, str) else [name for name in tasks if ":" in str(name)]
        if code and OmegaConf.select(settings, "env.tasks") is None:
            raise ValueError(
                f"env.tasks is not given; the run of {path} has {code[0]} among them, which would "
                "be imported: give env.tasks to allow it."
            )
        return
    task = OmegaConf.select(config, "env.task")
    is_code = OmegaConf.select(config, "env.backend") == "function" or ":" in str(task)
    if is_code and OmegaConf.select(settings, "env.task") is None:
        module, _, attribute = str(task).partition(":")
        raise ValueError(
            f"env.task is not given; the run of {path} has env.task={task}, for which "
            f"the module {module} would be imported and {attribute or 'its task'} called: give "
            "env.task to allow it."
        )


def load_planner(path: Path, config: DictConfig, task: Task | TaskSet) -> TDMPC2Planner:
    """The planner of the agent that was saved."""
    if not is_official(path):
        agent = recorded_agent(path, load_checkpoint(checkpoints(path), {}))
        if isinstance(task, TaskSet) and agent.get("tasks") != task.names:
            raise ValueError(
                f"{path} is of the tasks {', '.join(agent.get('tasks') or ())}; env.tasks names "
                f"{', '.join(task.names)}."
            )
        refuse_other_shapes(path, agent.get("observation_shape"), agent.get("action_dim"), task)
        loss = make_loss(config, task)
        load_checkpoint(checkpoints(path), {"loss": loss}, map_location=config.device)
        return make_planner(config, task, loss)
    model = not_official(config)
    discount, action_dims = config.loss.discount, None
    if isinstance(task, TaskSet):
        discount, action_dims = task_discounts(task), task.action_dims
    with naming("loss"):
        official = load_official(
            path, discount=discount, action_dims=action_dims, **model, device=config.device
        )
    refuse_other_shapes(path, official.observation_shape, official.action_dim, task)
    if isinstance(task, TaskSet):
        masks = official.loss.world_model.task_context.action_masks
        if (theirs := masks.sum(1).int().tolist()) != task.action_dims:
            raise ValueError(
                f"{path} is of tasks with {theirs} action dimensions; those of env.tasks have "
                f"{task.action_dims}."
            )
    return make_planner(config, task, official.loss)


def load_memory(path: Path, task: Task | TaskSet) -> dict[str, Any] | None:
    """What the run's first environment remembered across episodes; None if nothing did."""
    if is_official(path) or isinstance(task, TaskSet):  # which come without environments
        return None
    memory = SavedMemory()
    load_checkpoint(checkpoints(path), {"collector": memory})
    return memory.first


def refuse_other_shapes(
    path: Path,
    observation_shape: Sequence[int] | None,
    action_dim: int | None,
    task: Task | TaskSet,
) -> None:
    """Name what an agent and a task differ in.

    Raises:
        ValueError: the agent observes or acts otherwise than the task asks.
    """
    theirs = list(observation_shape or ()), action_dim
    if theirs != (list(task.observation_shape), task.action_dim):
        raise ValueError(
            f"{path} observes {theirs[0]} and acts with {action_dim} numbers; env.task "
            f"{task.name} has {list(task.observation_shape)} and {task.action_dim}."
        )


def checkpoints(path: Path) -> Path:
    """Where the checkpoints are: inside a run's directory, or the path itself."""
    return path / "checkpoints" if (path / "checkpoints").is_dir() else path


def main() -> None:
    """The console script ``tdmpc2-evaluate``."""
    run(sys.argv[1:])


if __name__ == "__main__":
    main()
