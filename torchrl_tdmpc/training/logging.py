"""What a run writes: two CSV files, TorchRL's logger and its configuration."""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.record.loggers import get_logger

__all__ = ["RunLog", "check_backend", "write_config"]

BACKENDS = ("csv", "tensorboard", "wandb")
PACKAGES = ("torch", "torchrl", "tensordict", "dm-control", "mujoco", "numpy", "torchrl_tdmpc")
FILES = ("train.csv", "eval.csv", "multi_gamma.jsonl")  # that grow while a run goes on
COUNTS = ("skipped_updates",)  # metrics that a row adds up; it averages the others
TRAIN_COLUMNS = ("step", "decisions", "episode", "return", "length")
COST_COLUMNS = ("ms_per_step", "peak_memory_mib", "seconds")
EVAL_COLUMNS = (
    "step",
    "reward",
    "seed",
    "reward_std",
    "episodes",
    "length",
    "decisions",
    "seconds",
)


class RunLog:
    """The record of one run: ``train.csv``, ``eval.csv`` and, if asked for, TorchRL's logger.

    Rows reach the disk as they are written, in full precision; a cell without a value is empty.
    The clock starts with the object, so build it right before the loop.

    Args:
        output_dir: Where the files go; made when absent.
        metrics: Names of the scalars that :meth:`update` receives: columns of ``train.csv`` from
            its first row on, empty in the rows before the first update.
        seed: Written into every row of ``eval.csv``.
        backend: ``"csv"`` writes the two files only; ``"tensorboard"`` and ``"wandb"`` also send
            the same numbers to TorchRL's logger (attribute ``logger``, files in ``output_dir``), as
            ``train/...`` and ``eval/...``. wandb obeys its own variables: ``WANDB_MODE=offline``.
        project: wandb's project.
        device: Whose peak memory is reported: of the process on the CPU, of PyTorch on CUDA.
        resume: Go on with the files in ``output_dir``; :meth:`load_state_dict` says from where.

    Raises:
        ValueError: If ``backend`` is unknown, a metric is named like another column, or the files
            to go on with have other columns.
        ImportError: If the package of ``backend`` is not installed.
        FileExistsError: If ``output_dir`` already holds a run, and it is not resumed.

    Examples:
        >>> import tempfile, torch
        >>> from tensordict import TensorDict
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with RunLog(directory, metrics=["loss_value"], seed=1) as log:
        ...         log.update(TensorDict(loss_value=torch.tensor(0.5)))
        ...         log.update(TensorDict(loss_value=torch.tensor(1.0)))
        ...         row = log.episodes(step=1000, decisions=500, returns=[12.5], lengths=[500])[0]
        >>> row["return"], row["loss_value"]
        (12.5, 0.75)
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        metrics: Sequence[str] = (),
        seed: int = 0,
        backend: str = "csv",
        project: str = "torchrl_tdmpc",
        device: torch.device | str = "cpu",
        resume: bool = False,
    ):
        output_dir = Path(output_dir)
        check_backend(backend)
        if taken := set(metrics) & {*TRAIN_COLUMNS, *COST_COLUMNS}:
            raise ValueError(f"metrics {sorted(taken)} are named like other columns of train.csv")
        checkpoints = list(output_dir.glob("checkpoints/checkpoint-*"))
        if not resume and (checkpoints or _has_rows(output_dir / "train.csv")):
            raise FileExistsError(
                f"output_dir {str(output_dir)!r} already holds a run: "
                "choose another directory, move that run away, or continue it with resume=auto"
            )
        output_dir.mkdir(parents=True, exist_ok=True)
        self.output_dir = output_dir
        self.metrics = tuple(metrics)
        self.seed = seed
        self.device = torch.device(device)
        self.logger = None
        if backend != "csv":
            name = "tensorboard" if backend == "tensorboard" else output_dir.resolve().name
            wandb_kwargs = {"project": project, "log_env_packages": False}
            self.logger = get_logger(backend, str(output_dir), name, wandb_kwargs=wandb_kwargs)
        columns = (*TRAIN_COLUMNS, *self.metrics, *COST_COLUMNS)
        self._train = _CsvFile(output_dir / "train.csv", columns, resume)
        self._eval = _CsvFile(output_dir / "eval.csv", EVAL_COLUMNS, resume)
        self._episode = 0
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}
        self._start = time.perf_counter()
        self._paused = 0.0
        self._last_step, self._last_active = 0, 0.0

    def update(self, metrics: TensorDictBase) -> None:
        """Add one update's metrics to the averages of the next row, without synchronising.

        Numbers that are NaN or infinite are left out of an average that has others: such an update
        is skipped, and ``skipped_updates`` counts it.

        Args:
            metrics: Scalar tensors, all declared in the constructor; absent ones do not count.

        Raises:
            ValueError: If a metric was not declared or is not a scalar.
        """
        for name, value in metrics.items():
            if name not in self.metrics:
                raise ValueError(
                    f"metric {name!r} was not declared; declared: {list(self.metrics)}"
                )
            if value.numel() != 1:
                raise ValueError(f"metric {name!r} has shape {list(value.shape)}, not a scalar's")
            value = value.detach().reshape(()).to(self.device, torch.float32)
            finite = value.isfinite()
            self._sums[name] = self._sums.get(name, 0.0) + torch.where(finite, value, 0.0)
            self._counts[name] = self._counts.get(name, 0.0) + finite

    def episodes(
        self, *, step: int, decisions: int, returns: Sequence[float], lengths: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Write a row of ``train.csv`` for every episode that ended in one vector step.

        Metrics are averages over the updates since the last call, and milliseconds are averages
        over the environment steps since then; both are shared by the rows of one call. A call
        without episodes writes nothing.

        Args:
            step: Environment steps so far, action repeat counted.
            decisions: Actions chosen so far, summed over environments.
            returns: Undiscounted return of each episode.
            lengths: Decisions in each episode.

        Returns:
            The rows as written.
        """
        if not len(returns):
            return []
        shared = {"step": step, "decisions": decisions, **self._take_averages()}
        shared |= {
            "ms_per_step": self._take_ms_per_step(step),
            "peak_memory_mib": _peak_memory_mib(self.device),
            "seconds": time.perf_counter() - self._start,
        }
        rows = []
        for episode_return, length in zip(returns, lengths, strict=True):
            self._episode += 1
            own = {"episode": self._episode, "return": float(episode_return), "length": int(length)}
            rows.append(self._train.write({**shared, **own}))
            self._forward("train", rows[-1])
        return rows

    def evaluation(
        self, *, step: int, decisions: int, returns: Sequence[float], lengths: Sequence[int]
    ) -> dict[str, Any]:
        """Write a row of ``eval.csv``.

        Args:
            step: Environment steps trained so far, action repeat counted.
            decisions: Actions chosen in training so far, summed over environments.
            returns: Undiscounted return of each evaluation episode, at least one.
            lengths: Decisions in each of them.

        Returns:
            The row as written: ``reward`` is the mean return, ``reward_std`` its standard
            deviation over the episodes (0 for one), ``length`` their mean length.
        """
        returns = torch.as_tensor(returns, dtype=torch.float64)
        row = {
            "step": step,
            "reward": returns.mean().item(),
            "seed": self.seed,
            "reward_std": returns.std(correction=0).item(),
            "episodes": len(returns),
            "length": torch.as_tensor(lengths, dtype=torch.float64).mean().item(),
            "decisions": decisions,
            "seconds": time.perf_counter() - self._start,
        }
        self._eval.write(row)
        self._forward("eval", row)
        return row

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Keep the time spent inside (evaluation, checkpoints) out of ``ms_per_step``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        """How far the files reach, which are on disk then, and what the next row averages."""
        self._train.sync()
        self._eval.sync()
        paths = [self.output_dir / name for name in FILES]
        return {
            "sizes": {path.name: path.stat().st_size for path in paths if path.exists()},
            "episode": self._episode,
            "sums": self._sums,
            "counts": self._counts,
            "seconds": time.perf_counter() - self._start,
            "paused": self._paused,
            "last": (self._last_step, self._last_active),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cut off the rows that were written after :meth:`state_dict`, and go on from there.

        Raises:
            ValueError: If a file is shorter than it was then.
        """
        for name in FILES:
            path, size = self.output_dir / name, state["sizes"].get(name, 0)
            present = path.stat().st_size if path.exists() else 0
            if present < size:
                raise ValueError(f"{path} has {present} bytes; it had {size} at the checkpoint.")
            if present > size:
                os.truncate(path, size)
        self._episode = state["episode"]
        self._sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self._counts = {name: value.to(self.device) for name, value in state["counts"].items()}
        self._start = time.perf_counter() - state["seconds"]
        self._paused = state["paused"]
        self._last_step, self._last_active = state["last"]

    def close(self) -> None:
        """Close the files and TorchRL's logger."""
        self._train.file.close()
        self._eval.file.close()
        if self.logger is not None:
            self.logger.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _take_averages(self) -> dict[str, float]:
        """Average every metric since the last call: the one place that waits for the device."""
        if not self._sums:
            return {}
        both = torch.stack([*self._sums.values(), *self._counts.values()]).reshape(2, -1)
        averages = {
            name: total if name in COUNTS else total / count if count else math.nan
            for name, total, count in zip(self._sums, *both.tolist(), strict=True)
        }
        self._sums, self._counts = {}, {}
        return averages

    def _take_ms_per_step(self, step: int) -> float | None:
        """Milliseconds of unpaused time per environment step since the last call."""
        active = time.perf_counter() - self._start - self._paused
        steps, elapsed = step - self._last_step, active - self._last_active
        self._last_step, self._last_active = step, active
        return 1000.0 * elapsed / steps if steps else None

    def _forward(self, prefix: str, row: Mapping[str, Any]) -> None:
        """Send a row to TorchRL's logger at the row's environment step."""
        if self.logger is not None:
            scalars = {f"{prefix}/{key}": value for key, value in row.items() if key != "step"}
            self.logger.log_metrics(scalars, step=row["step"])


class _CsvFile:
    """A CSV file with fixed columns, flushed at each row."""

    def __init__(self, path: Path, columns: Sequence[str], resume: bool):
        header = ",".join(columns) + "\n"
        if not resume:
            path.write_text(header, encoding="utf-8", newline="\n")
        self.file = path.open("a+", newline="", encoding="utf-8")  # writes at its end, wherever
        self.file.seek(0)
        if self.file.readline() != header:
            self.file.close()
            raise ValueError(f"{path} has other columns than this version writes.")
        self._writer = csv.DictWriter(self.file, columns, lineterminator="\n")

    def sync(self) -> None:
        """Make the rows outlive the machine."""
        os.fsync(self.file.fileno())

    def write(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the cells of ``row`` that have a value, and return these."""
        row = {name: value for name, value in row.items() if value is not None}
        self._writer.writerow(row)
        self.file.flush()
        return row


def _has_rows(path: Path) -> bool:
    """Whether a CSV file has more than its header."""
    return path.exists() and path.read_text(encoding="utf-8").count("\n") > 1


def check_backend(backend: str) -> None:
    """Refuse a backend that :class:`RunLog` cannot use.

    Raises:
        ValueError: If it is unknown.
        ImportError: If its package is not installed.
    """
    if backend not in BACKENDS:
        choices = ", ".join(BACKENDS)
        raise ValueError(f"logger.backend is {backend!r}; choose one of {choices}")
    if backend != "csv" and importlib.util.find_spec(backend) is None:
        raise ImportError(
            f"logger.backend={backend} needs the package {backend}: "
            f"pip install 'torchrl_tdmpc[{backend}]'"
        )


def _peak_memory_mib(device: torch.device) -> float:
    """Peak memory so far in MiB: PyTorch's on CUDA, otherwise the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if importlib.util.find_spec("resource") is None:  # Windows
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB on Linux


def write_config(output_dir: str | Path, config: Mapping[str, Any]) -> Path:
    """Write ``config.yaml``: the resolved configuration, ``versions`` and ``commit``.

    Args:
        output_dir: An existing directory.
        config: Plain nested dictionaries, lists and scalars.

    Returns:
        The path of the file. Its ``versions`` names Python and the installed packages that shape a
        result; its ``commit`` is the git commit that this package runs from, ending in ``-dirty``
        when tracked files differ from it, and null when the package is not in a git checkout.
    """
    import yaml

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        if (version := _version(package)) is not None:
            versions[package] = version
    path = Path(output_dir) / "config.yaml"
    record = {**config, "versions": versions, "commit": _git_commit(Path(__file__).parent)}
    path.write_text(yaml.safe_dump(record, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def _version(package: str) -> str | None:
    """What a module says of itself, as its distribution may have another name or leave a part out.

    TorchRL's nightly is distributed as torchrl-nightly; PyTorch's distribution on PyPI does not say
    that it is the CUDA build.
    """
    module = sys.modules.get(package.replace("-", "_"))
    if (version := getattr(module, "__version__", None)) is not None:
        return str(version)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit(folder: Path) -> str | None:
    """The commit that ``folder`` belongs to, with ``-dirty``; None when git does not track it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not git("ls-files", "."):  # an environment that lies inside somebody else's repository
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("diff", "HEAD", "--name-only") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
