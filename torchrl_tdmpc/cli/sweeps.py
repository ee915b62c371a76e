"""Many runs from one command: ``tdmpc2-train -m seed=1,2,3 env.task=walker-walk,cup-catch``."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from torchrl_tdmpc.checkpoints import find_checkpoint, read_metadata
from torchrl_tdmpc.cli.fine_tuning import begins_with

FOLDER = "outputs/sweeps"  # of sweeps that do not say output_dir
# A run stays the same one when these change
NOT_IN_NAMES = {"output_dir", "resume", "threads", "device", "train.steps"}
LONGEST_NAME = 200  # file systems allow 255 bytes


def is_sweep() -> bool:
    """Whether Hydra composes this run as one of several."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def place_run(config: DictConfig) -> DictConfig:
    """The configuration of a run of a sweep: in a folder of its own.

    The folder lies in ``output_dir``, and its name follows from what the command line sets, never
    from the clock. ``threads=auto`` divides the cores among the runs that go on side by side.
    """
    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    given = {one.partition("=")[0].lstrip("+") for one in overrides}
    folder = Path(config.output_dir if "output_dir" in given else FOLDER)
    config = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    config.output_dir = str(folder / name_of(overrides))
    side_by_side = hydra.launcher.get("n_jobs", 1)  # joblib's; -1 means one a core
    if config.threads == "auto" and side_by_side != 1:
        cores = os.cpu_count() or 1
        config.threads = 1 if side_by_side < 0 else max(1, cores // side_by_side)
    return config


def resume_of(config: DictConfig) -> str:
    """What a run of a sweep goes on from: itself, or at first a model of several tasks.

    Raises:
        CheckpointError: the model is damaged.
        FileNotFoundError: there is none at the path given.
    """
    if find_checkpoint("auto", config.output_dir) is not None:
        return "auto"
    return begins_with(config) or "auto"


def name_of(overrides: Sequence[str]) -> str:
    """The name of a run's folder.

    Args:
        overrides: what the command line sets, ``KEY=VALUE``, in any order.

    Examples:
        >>> name_of(["seed=1", "env.task=walker-walk", "train.steps=50000"])
        'env.task=walker-walk,seed=1'
    """
    kept = [one.lstrip("+") for one in overrides]
    kept = sorted(one for one in kept if one.partition("=")[0] not in NOT_IN_NAMES)
    name = ",".join(re.sub(r"[^\w.,=+-]", "-", one) for one in kept) or "run"
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{zlib.crc32(name.encode()):08x}"
    return name


def is_finished(config: DictConfig) -> bool:
    """Whether the run's newest checkpoint is that of its last agent step, or offline update."""
    checkpoint = find_checkpoint("auto", config.output_dir)
    if checkpoint is None:
        return False
    metadata = read_metadata(checkpoint)
    return metadata.get("updates", metadata.get("agent_steps", 0)) >= config.train.steps
