"""The rows of a run in TorchRL's loggers: TensorBoard, wandb."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl.record.loggers import Logger, TensorboardLogger, WandbLogger

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["LoggerRows", "check_backend", "make_logger"]

BACKENDS = ("csv", "tensorboard", "wandb")


class LoggerRows:
    """Callback that sends every row to one of TorchRL's loggers, as ``train/...`` and ``eval/...``.

    Of several tasks, each is evaluated under its own name, as ``eval/walker-stand/...``.

    Args:
        logger: Where the rows go, each at its environment step.
        artifact: Whether wandb gets the last checkpoint too when the run ends.
    """

    def __init__(self, logger: Logger, *, artifact: bool = False):
        self.logger = logger
        self.artifact = artifact
        self._checkpoint: Path | None = None

    def on_episode(self, trainer: Any, row: Mapping[str, Any]) -> None:
        """Send a training row."""
        self._send("train", row)

    on_updates = on_episode

    def on_evaluation(self, trainer: Any, row: Mapping[str, Any]) -> None:
        """Send an evaluation row."""
        if "task" in row:
            task = row["task"]
            self._send(f"eval/{task}", {k: v for k, v in row.items() if k != "task"})
        else:
            self._send("eval", row)

    def on_checkpoint(self, trainer: Any, path: Path) -> None:
        """Remember the newest checkpoint."""
        self._checkpoint = path

    def on_end(self, trainer: Any) -> None:
        """Close the logger."""
        if self.artifact and self._checkpoint is not None:
            run = self.logger.experiment
            run.log_artifact(self._checkpoint, name=f"checkpoint-{run.id}", type="model")
        self.logger.close()

    def _send(self, prefix: str, row: Mapping[str, Any]) -> None:
        scalars = {f"{prefix}/{key}": value for key, value in row.items() if key != "step"}
        self.logger.log_metrics(scalars, step=row["step"])


class ResumedTensorboardLogger(TensorboardLogger):
    """TorchRL's logger, which goes on with a run: what came after the checkpoint is not shown.

    Args:
        exp_name: see TorchRL's.
        log_dir: see TorchRL's.
        purge_step: the first environment step whose points are dropped.
    """

    def __init__(self, exp_name: str, log_dir: str, *, purge_step: int):
        self.purge_step = purge_step
        super().__init__(exp_name, log_dir)

    def _create_experiment(self) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(Path(self.log_dir, self.exp_name), purge_step=self.purge_step)


def make_logger(
    backend: str,
    output_dir: str | Path,
    *,
    resumed_step: int | None = None,
    **wandb_settings: Any,
) -> Logger | None:
    """The logger of a run, with its files in ``output_dir``; None for ``"csv"``.

    Args:
        backend: ``"csv"``, ``"tensorboard"`` or ``"wandb"``. wandb obeys its own variables:
            ``WANDB_MODE=offline``.
        output_dir: The run's folder.
        resumed_step: Environment steps at the checkpoint that a run goes on from.
        wandb_settings: Of ``wandb.init``: ``project``, ``entity``, ``group``, ``tags``, ``name``
            and ``id``. A run that goes on is the same one for wandb if its id is.

    Raises:
        ValueError: If ``backend`` is unknown.
        ImportError: If its package is not installed.
    """
    check_backend(backend)
    if backend == "csv":
        return None
    if backend == "wandb":
        name = wandb_settings.pop("name")
        return WandbLogger(name, log_dir=str(output_dir), log_env_packages=False, **wandb_settings)
    if resumed_step is None:
        return TensorboardLogger("tensorboard", str(output_dir))
    return ResumedTensorboardLogger("tensorboard", str(output_dir), purge_step=resumed_step + 1)


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
