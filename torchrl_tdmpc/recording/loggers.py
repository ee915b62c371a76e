"""The rows of a run in TorchRL's loggers: TensorBoard, wandb."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrl.record.loggers import Logger, get_logger

__all__ = ["LoggerRows", "check_backend", "make_logger"]

BACKENDS = ("csv", "tensorboard", "wandb")


class LoggerRows:
    """Callback that sends every row to one of TorchRL's loggers, as ``train/...`` and ``eval/...``.

    Args:
        logger: Where the rows go, each at its environment step.
    """

    def __init__(self, logger: Logger):
        self.logger = logger

    def on_episode(self, trainer: Any, row: Mapping[str, Any]) -> None:
        """Send a training row."""
        self._send("train", row)

    def on_evaluation(self, trainer: Any, row: Mapping[str, Any]) -> None:
        """Send an evaluation row."""
        self._send("eval", row)

    def on_end(self, trainer: Any) -> None:
        """Close the logger."""
        self.logger.close()

    def _send(self, prefix: str, row: Mapping[str, Any]) -> None:
        scalars = {f"{prefix}/{key}": value for key, value in row.items() if key != "step"}
        self.logger.log_metrics(scalars, step=row["step"])


def make_logger(backend: str, output_dir: str | Path, *, project: str) -> Logger | None:
    """The logger of a run, with its files in ``output_dir``; None for ``"csv"``.

    Args:
        backend: ``"csv"``, ``"tensorboard"`` or ``"wandb"``. wandb obeys its own variables:
            ``WANDB_MODE=offline``.
        output_dir: The run's folder.
        project: wandb's project.

    Raises:
        ValueError: If ``backend`` is unknown.
        ImportError: If its package is not installed.
    """
    check_backend(backend)
    if backend == "csv":
        return None
    output_dir = Path(output_dir)
    name = "tensorboard" if backend == "tensorboard" else output_dir.resolve().name
    wandb_kwargs = {"project": project, "log_env_packages": False}
    return get_logger(backend, str(output_dir), name, wandb_kwargs=wandb_kwargs)


def check_backend(backend: str) -> None:
    """Refuse a backend that :func:`make_logger` cannot make.

    Raises:
        ValueError: If it is unknown.
        ImportError: If its package is not installed.
    """
    if backend not in BACKENDS:
        choices = ", ".join(BACKENDS)
        raise ValueError(f"backend is {backend!r}; choose one of {choices}")
    if backend != "csv" and importlib.util.find_spec(backend) is None:
        raise ImportError(
            f"backend={backend} needs the package {backend}: pip install 'torchrl_tdmpc[{backend}]'"
        )
