"""From the configuration as written to the one that runs, or to a sentence on what is wrong."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from tensordict import NestedKey

from torchrl_tdmpc.checkpoints import find_checkpoint, read_metadata
from torchrl_tdmpc.envs import WORKERS, Task, load_task, resolve_num_envs
from torchrl_tdmpc.modules import missing_for_compilation
from torchrl_tdmpc.planners import default_iterations
from torchrl_tdmpc.recording import check_backend, check_video
from torchrl_tdmpc.trainers import EVAL_MODES, discount_heuristic, seed_steps

LEAST = {
    "seed": 0,
    "env.num_envs": 1,
    "collector.actors": 1,
    "collector.sync_interval": 1,
    "train.steps": 1,
    "train.max_skipped_updates": 1,
    "eval.interval": 1,
    "eval.episodes": 0,
    "eval.num_envs": 1,
    "checkpoint.interval": 1,
    "checkpoint.keep": 1,
}
# Where a class of the library does not say so itself
MOST = {
    "seed": 4_000_000_000,  # NumPy's generators take 2 ** 32; evaluations add a million
    "env.num_envs": 10_000,
    "train.utd": 1_000,
    "eval.episodes": 10_000,
    "multi_gamma.log_num_examples": 1_000_000,
}
LARGEST = 10**15  # of any number
# What may change when a run is resumed: how long it goes on, and what it does beside learning
MAY_CHANGE = (
    *("resume", "output_dir", "data", "compile", "threads", "env.timeout"),
    *("collector.actors", "collector.sync_interval"),
    *("train.steps", "train.max_skipped_updates"),
    *("eval.interval", "eval.episodes", "eval.num_envs", "eval.mode", "eval.video"),
    *("checkpoint.interval", "checkpoint.keep"),
    *(f"logger.{name}" for name in ("backend", "project", "entity", "group", "name", "tags")),
    "logger.artifact",
)
COLLECTORS = ("sync", "async", "ray")
DEVICES = ("device", "replay.device")  # settings that name one
LEAST_STEPS_TO_COMPILE = 3_000  # agent steps; a shorter run is over before compilation pays
DEFAULTS = Path(__file__).parent / "config/tdmpc2_multigamma.yaml"


def _are_keys(value: Any) -> bool:
    """Whether a value names entries: words, or lists of words that lead into nested ones."""
    if not isinstance(value, list):
        return value is None
    words = [word for key in value for word in (key if isinstance(key, list) else [key])]
    return all(isinstance(word, str) for word in words)


# By the type of a default: what a value must be, and whether it is
KINDS = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: type(value) is int),
    float: ("a number", lambda value: type(value) in (int, float)),
    type(None): ("null or a whole number", lambda value: value is None or type(value) is int),
    str: ("a word", lambda value: isinstance(value, str)),
    list: ("a list", lambda value: isinstance(value, list)),
    "auto": ("auto or a number", lambda value: value == "auto" or type(value) in (int, float)),
    "env.observation_keys": ("null or a list of names", _are_keys),
    "env.extra_keys": ("null or a list of names", _are_keys),
    "env.kwargs": (
        "null or a dictionary",
        lambda value: value is None or isinstance(value, dict),
    ),
    "compile": ("auto, off, default or max", lambda value: isinstance(value, str)),
    "matmul_precision": (
        "highest, high or medium",
        lambda value: value in ("highest", "high", "medium"),
    ),
    "resume": ("null, auto or a path", lambda value: value is None or isinstance(value, str)),
    "threads": (
        "auto or a whole number from 1 on",
        lambda value: value == "auto" or (type(value) is int and value >= 1),
    ),
    "loss.discount": (
        "auto, null or a number",
        lambda value: value in ("auto", None) or type(value) in (int, float),
    ),
    "data": ("null or a folder", lambda value: value is None or isinstance(value, str)),
    "env.tasks": (
        "null, mt30 or a list of names",
        lambda value: (
            value is None
            or isinstance(value, str)
            or (isinstance(value, list) and all(isinstance(name, str) for name in value))
        ),
    ),
    "env.success_key": ("null or a word", lambda value: value is None or isinstance(value, str)),
    "replay.load": ("null or a folder", lambda value: value is None or isinstance(value, str)),
    "env.num_envs": (
        "auto or a whole number",
        lambda value: value == "auto" or type(value) is int,
    ),
    "env.timeout": (
        "null or a number of seconds, more than 0",
        lambda value: value is None or (type(value) in (int, float) and value > 0),
    ),
    "train.seed_steps": (
        "auto or a whole number",
        lambda value: value == "auto" or type(value) is int,
    ),
    "train.utd": (
        "a number, more than 0",
        lambda value: type(value) in (int, float) and value > 0,
    ),
    "logger.entity": ("null or a word", lambda value: value is None or isinstance(value, str)),
    "logger.id": ("a word", lambda value: isinstance(value, str)),
    "env.episodic": (
        "auto, true or false",
        lambda value: value == "auto" or isinstance(value, bool),
    ),
}


def settle(config: DictConfig) -> tuple[DictConfig, Task]:
    """The task, and the configuration of a training run with every ``auto`` replaced.

    ``resume`` becomes the path of the checkpoint to go on from, or None.

    Raises:
        CheckpointError: that checkpoint is truncated, altered or something else.
        FileNotFoundError: there is none at the path given.
        ValueError: settings that do not fit together or are out of their range.
        ImportError: a package that a setting needs is not installed.
    """
    settled, task = resolve(config)
    check_run(settled, task)
    settled.resume = resolve_resume(settled)
    name_run(settled)
    return settled, task


def check_run(settled: DictConfig, task: Task) -> None:
    """Refuse what would stop a training run in its middle.

    Raises:
        ImportError: a package that a setting needs is not installed.
        ValueError: a length that leaves nothing to learn from, or a task that has no video.
    """
    with naming("logger"):
        check_backend(settled.logger.backend)
    check_training(settled, task)
    check_collector(settled)
    if settled.eval.mode not in EVAL_MODES:
        raise ValueError(
            f"eval.mode is {settled.eval.mode!r}; it must be {' or '.join(EVAL_MODES)}."
        )
    if settled.eval.video:
        if settled.eval.mode == "background":
            raise ValueError(
                "eval.video is true, but eval.mode is background, which makes no videos; choose "
                "inline."
            )
        check_video(task)


def name_run(settled: DictConfig) -> None:
    """Give a run that has none an id."""
    if settled.logger.id == "auto":
        settled.logger.id = uuid.uuid4().hex[:8]


def resolve(config: DictConfig) -> tuple[DictConfig, Task]:
    """The task, and the configuration with every ``auto`` replaced by what it means for the task.

    Raises:
        ValueError: a setting that does not exist or is out of its range.
    """
    check_types(config)
    check_ranges(config)
    if config.env.workers not in WORKERS:
        raise ValueError(
            f"env.workers is {config.env.workers!r}; it must be {' or '.join(WORKERS)}."
        )
    env = config.env
    with naming("env"):
        task = load_task(
            env.backend,
            env.task,
            episode_length=env.episode_length,
            action_repeat=env.action_repeat,
            observation_keys=nested_keys(env.observation_keys),
            extra_keys=nested_keys(env.extra_keys),
            kwargs=OmegaConf.to_container(env, resolve=True)["kwargs"],
            pixels=env.pixels,
            video=config.eval.video,
        )
        num_envs = resolve_num_envs(task, None if env.num_envs == "auto" else env.num_envs)
    resolve_num_envs(task, config.eval.num_envs, "eval.num_envs")
    automatic = {
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "env.num_envs": num_envs,
        "train.seed_steps": seed_steps(task.episode_length, num_envs),
        "env.episodic": task.episodic,
        "loss.discount": discount_heuristic(task.episode_length, task.discount_cap),
        "loss.rho": task.rho,
        "planner.iterations": default_iterations(task.action_dim),
    }
    settled = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    settled.output_dir = os.path.expanduser(settled.output_dir)
    if settled.resume not in (None, "auto"):
        settled.resume = os.path.expanduser(settled.resume)
    for key, value in automatic.items():
        if OmegaConf.select(config, key) == "auto":
            OmegaConf.update(settled, key, value)
    settle_compile(settled)
    return settled, dataclasses.replace(task, episodic=settled.env.episodic)


def settle_compile(settled: DictConfig) -> None:
    """Replace ``compile=auto``; refuse what this machine cannot compile.

    Raises:
        ValueError: compilation was asked for.
    """
    if settled.compile == "auto":
        settled.compile = "off" if why_not_compiled(settled) else "default"
    device_type = torch.device(settled.device).type
    if settled.compile != "off" and (missing := missing_for_compilation(device_type)):
        raise ValueError(
            f"compile is {settled.compile!r}, but {missing} was not found; choose off or auto."
        )


def why_not_compiled(settled: DictConfig) -> str | None:
    """Why ``compile=auto`` leaves a run as it is; None if it compiles."""
    if settled.train.steps < LEAST_STEPS_TO_COMPILE:
        return f"a run of fewer than {LEAST_STEPS_TO_COMPILE:,} steps would be no faster"
    if missing := missing_for_compilation(torch.device(settled.device).type):
        return f"{missing} was not found; with it the run would be faster"
    return None


def nested_keys(names: ListConfig | None) -> list[NestedKey] | None:
    """Keys as the library takes them: a list of words is a nested one."""
    if names is None:
        return None
    return [name if isinstance(name, str) else tuple(name) for name in names]


def check_ranges(config: DictConfig) -> None:
    """Refuse numbers out of the ranges of ``LEAST`` and ``MOST``.

    Raises:
        ValueError: the first such setting.
    """
    for key, least in LEAST.items():
        value = OmegaConf.select(config, key)
        if value not in (None, "auto") and value < least:
            raise ValueError(f"{key} is {value}; it must be at least {least}.")
    for key, most in MOST.items():
        if (value := OmegaConf.select(config, key)) != "auto" and value > most:
            raise ValueError(f"{key} is {value}; it must be at most {most:,}.")


def check_collector(settled: DictConfig) -> None:
    """Refuse actors that cannot be, or that nobody asked for.

    Raises:
        ValueError: the first setting that does not fit.
    """
    mode, actors = settled.collector.mode, settled.collector.actors
    if mode not in COLLECTORS:
        raise ValueError(f"collector.mode is {mode!r}; it must be {' or '.join(COLLECTORS)}.")
    if mode == "sync":
        for name, default in default_settings()["collector"].items():
            if settled.collector[name] != default:
                raise ValueError(
                    f"collector.{name} is {settled.collector[name]}, which has no effect with "
                    "collector.mode=sync; leave it out."
                )
        return
    if mode == "ray" and importlib.util.find_spec("ray") is None:
        raise ImportError("collector.mode=ray needs ray: pip install 'torchrl_tdmpc[ray]'")
    if settled.env.workers != "serial":
        raise ValueError(
            f"env.workers is {settled.env.workers!r}; with collector.mode={mode} the environments "
            "of an actor share its process: choose serial."
        )
    if settled.env.num_envs % actors:
        raise ValueError(
            f"collector.actors is {actors}, but env.num_envs is {settled.env.num_envs}; it must "
            "divide their number."
        )


def check_training(settled: DictConfig, task: Task) -> None:
    """Refuse lengths that leave nothing to learn from.

    Raises:
        ValueError: the first such setting.
    """
    if settled.planner.horizon > task.episode_length:
        raise ValueError(
            f"planner.horizon is {settled.planner.horizon}; it must be at most the time limit of "
            f"{task.name}, {task.episode_length} agent steps."
        )
    needed = settled.env.num_envs * task.episode_length
    if settled.train.seed_steps < needed and settled.replay.load is None:
        raise ValueError(
            f"train.seed_steps is {settled.train.seed_steps}; it must be auto or at least "
            f"{needed} (an episode of {task.episode_length} agent steps in each of "
            f"{settled.env.num_envs} environments): only finished episodes are learned from."
        )
    if settled.train.steps < settled.train.seed_steps:
        raise ValueError(
            f"train.steps is {settled.train.steps}; it must be at least "
            f"train.seed_steps = {settled.train.seed_steps}, after which learning begins."
        )


def resolve_resume(config: DictConfig) -> str | None:
    """The checkpoint to go on from; the run then goes on in the folder that it is in.

    Raises:
        ValueError: the run in it has other settings.
    """
    checkpoint = find_checkpoint(config.resume, config.output_dir)
    if checkpoint is None:
        return None
    if config.resume != "auto":
        config.output_dir = str(checkpoint.absolute().parents[1])
    metadata = read_metadata(checkpoint)
    if "segments" not in metadata:
        raise ValueError(f"resume is {config.resume!r}; {checkpoint} holds networks, but no run.")
    recorded = dict(leaves(metadata["config"]))
    for key, value in leaves(OmegaConf.to_container(config)):
        differs = value != "auto" and recorded.get(key, value) != value
        if differs and key not in MAY_CHANGE:
            raise ValueError(
                f"{key} is {value!r}, but {recorded[key]!r} in the run to be resumed, "
                f"{checkpoint}; resume it with its own settings."
            )
    if config.logger.id == "auto":
        config.logger.id = recorded.get("logger.id", "auto")
    return str(checkpoint)


def check_types(config: DictConfig) -> None:
    """Refuse a setting that does not exist, or whose value is of another kind than its default.

    Raises:
        ValueError: the first such setting.
    """
    devices = ["auto", "cpu"]
    if torch.cuda.is_available():
        devices += ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    for key in DEVICES:
        if str(device := OmegaConf.select(config, key)) not in devices:
            raise ValueError(f"{key} is {device!r}; this machine has {', '.join(devices)}.")
    defaults = dict(leaves(default_settings()))
    given = dict(leaves(OmegaConf.to_container(config, resolve=True)))
    if absent := [key for key in defaults if key not in given]:
        raise ValueError(f"{absent[0]} is not given; every setting must have a value.")
    for key, value in given.items():
        if key not in defaults:
            raise ValueError(f"{key} is {value!r}; the configuration file has no such setting.")
        default = defaults[key]
        is_number_or_auto = default == "auto" and key not in DEVICES
        kind = key if key in KINDS else "auto" if is_number_or_auto else type(default)
        allowed, holds = KINDS[kind]
        if not holds(value):
            raise ValueError(f"{key} is {value!r}; it must be {allowed}.")
        if isinstance(value, (int, float)) and not -LARGEST <= value <= LARGEST:
            raise ValueError(
                f"{key} is {repr(value)[:40]}; it must be finite, and between -1e15 and 1e15."
            )
        if value == "" and not key.startswith("logger."):
            raise ValueError(f"{key} is ''; it must have a value.")
    if config.threads != "auto" and config.threads > (cores := os.cpu_count() or 1):
        raise ValueError(
            f"threads is {config.threads}; it must be auto or at most {cores}, one for each core."
        )


def leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``("env.task", "walker-stand")`` and so on."""
    for name, value in settings.items():
        if isinstance(value, dict) and f"{prefix}{name}" != "env.kwargs":  # whatever is in it
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@contextmanager
def naming(*sections: str) -> Iterator[None]:
    """Put the setting's key into an error that begins with the name of an argument.

    Args:
        sections: of the configuration; the first one that has a setting of this name counts.

    Examples:
        >>> with naming("train", "planner"):
        ...     raise ValueError("horizon is 0; it must be at least 1.")
        Traceback (most recent call last):
        ValueError: planner.horizon is 0; it must be at least 1.
    """
    try:
        yield
    except (ImportError, ValueError) as error:
        name = str(error).partition(" ")[0]
        settings = default_settings()
        for section in sections:
            if name in settings[section]:
                raise type(error)(f"{section}.{error}") from error
        raise


# Keys of earlier versions
RENAMED = {
    "train.decisions": "train.steps",
    "train.seed_decisions": "train.seed_steps",
    "train.encoder_lr_scale": "train.enc_lr_scale",
    "planner.num_policy_trajs": "planner.num_pi_trajs",
}


def refuse_unknown_keys(
    arguments: Iterable[str], *, further: Sequence[str] = (), is_hydra: bool = True
) -> None:
    """Refuse a command line that sets what does not exist, before it is read.

    Args:
        arguments: ``KEY=VALUE``, and Hydra's own options.
        further: keys that the command has beside the settings.
        is_hydra: whether Hydra reads them, which has options of its own; ``+KEY`` is one.

    Raises:
        ValueError: the first such key, with the nearest ones.

    Examples:
        >>> refuse_unknown_keys(["env.taks=walker-stand"])
        Traceback (most recent call last):
        ValueError: env.taks is no setting; did you mean env.tasks or env.task?
    """
    known = [*dict(leaves(default_settings())), *default_settings(), *further]
    if is_hydra:
        known += ["hydra", "ablation"]
    for argument in arguments:
        key, is_setting, _ = argument.partition("=")
        if key.startswith("~"):
            raise ValueError(f"{argument} would remove a setting; every setting must have a value.")
        if is_hydra:
            if argument.startswith("-") or not is_setting or key.startswith("hydra"):
                continue
            key = key.lstrip("+")
        elif not is_setting:
            raise ValueError(f"{argument} is no setting; it must be KEY=VALUE.")
        if key in known or key.startswith("env.kwargs."):
            continue
        if key in RENAMED:
            raise ValueError(f"{key} is now called {RENAMED[key]}.")
        if near := difflib.get_close_matches(key, known, n=2, cutoff=0.75):
            raise ValueError(f"{key} is no setting; did you mean {' or '.join(near)}?")
        raise ValueError(f"{key} is no setting; {DEFAULTS} has all of them.")


def default_settings() -> dict[str, Any]:
    """The configuration file, without what is Hydra's own."""
    settings = OmegaConf.to_container(OmegaConf.load(DEFAULTS))
    return {key: value for key, value in settings.items() if key not in ("defaults", "hydra")}
