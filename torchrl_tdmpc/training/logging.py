"""What a run writes: two CSV files, TorchRL's logger, its configuration and a picture."""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
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

__all__ = ["RunLog", "check_backend", "plot_returns", "write_config"]

BACKENDS = ("csv", "tensorboard", "wandb")
PACKAGES = ("torch", "torchrl", "tensordict", "dm-control", "mujoco", "numpy", "torchrl_tdmpc")
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

    Raises:
        ValueError: If ``backend`` is unknown or a metric is named like another column.
        ImportError: If the package of ``backend`` is not installed.
        FileExistsError: If ``output_dir`` already holds a run.

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
    ):
        output_dir = Path(output_dir)
        check_backend(backend)
        if taken := set(metrics) & {*TRAIN_COLUMNS, *COST_COLUMNS}:
            raise ValueError(f"metrics {sorted(taken)} are named like other columns of train.csv")
        if (output_dir / "train.csv").exists():
            raise FileExistsError(
                f"output_dir {str(output_dir)!r} already holds a run (train.csv): "
                "choose another directory or move that run away"
            )
        output_dir.mkdir(parents=True, exist_ok=True)
        self.metrics = tuple(metrics)
        self.seed = seed
        self.device = torch.device(device)
        self.logger = None
        if backend != "csv":
            name = "tensorboard" if backend == "tensorboard" else output_dir.resolve().name
            wandb_kwargs = {"project": project, "log_env_packages": False}
            self.logger = get_logger(backend, str(output_dir), name, wandb_kwargs=wandb_kwargs)
        columns = (*TRAIN_COLUMNS, *self.metrics, *COST_COLUMNS)
        self._train = _CsvFile(output_dir / "train.csv", columns)
        self._eval = _CsvFile(output_dir / "eval.csv", EVAL_COLUMNS)
        self._episode = 0
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._start = time.perf_counter()
        self._paused = 0.0
        self._last_step, self._last_active = 0, 0.0

    def update(self, metrics: TensorDictBase) -> None:
        """Add one update's metrics to the averages of the next row, without synchronising.

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
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().reshape(()).float()
            self._counts[name] = self._counts.get(name, 0) + 1

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
        sums = torch.stack(list(self._sums.values())).tolist()
        averages = {
            name: total / self._counts[name] for name, total in zip(self._sums, sums, strict=True)
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

    def __init__(self, path: Path, columns: Sequence[str]):
        self.file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self.file, columns, lineterminator="\n")
        self._writer.writeheader()
        self.file.flush()

    def write(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the cells of ``row`` that have a value, and return these."""
        row = {name: value for name, value in row.items() if value is not None}
        self._writer.writerow(row)
        self.file.flush()
        return row


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


def plot_returns(
    output_dir: str | Path, *others: str | Path, title: str = "", path: str | Path | None = None
) -> Path:
    """Draw the returns of one or several runs over environment steps.

    Points are training episodes, which explore; lines are evaluation means with a band of one
    standard deviation over the episodes of an evaluation.

    Args:
        output_dir: A directory with ``train.csv`` and ``eval.csv``, either without rows or with.
        others: More of them (other seeds, say), named in the legend and one colour each.
        title: What was trained, such as ``"walker-stand, 1M parameters, seed 1"``.
        path: Where the picture goes; ``returns.png`` in ``output_dir`` when not given.

    Returns:
        The path of the picture.

    Raises:
        FileNotFoundError: If a directory lacks one of the files.
    """
    from matplotlib.figure import Figure  # without pyplot: needs no display, leaves no state

    output_dirs = [Path(output_dir), *map(Path, others)]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for index, directory in enumerate(output_dirs):
        prefix = f"{directory.resolve().name}: " if others else ""
        _draw_run(axes, directory, color=f"C{index}", prefix=prefix)
    axes.set(title=title, xlabel="environment steps", ylabel="episode return")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    path = output_dirs[0] / "returns.png" if path is None else Path(path)
    figure.savefig(path, dpi=120)
    return path


def _draw_run(axes: Any, directory: Path, *, color: str, prefix: str) -> None:
    """Draw one run's training episodes and evaluations, each if there are any."""
    steps, returns = _read_columns(directory / "train.csv", "step", "return")
    if steps:
        label = f"{prefix}training episodes (exploring)"
        axes.plot(steps, returns, ".", color=color, alpha=0.35, markersize=5, label=label)
    steps, means, stds = _read_columns(directory / "eval.csv", "step", "reward", "reward_std")
    if steps:
        low = [mean - std for mean, std in zip(means, stds, strict=True)]
        high = [mean + std for mean, std in zip(means, stds, strict=True)]
        axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        label = f"{prefix}evaluation (mean ± std)"
        axes.plot(steps, means, "o-", color=color, linewidth=2, markersize=4, label=label)


def _read_columns(path: Path, *columns: str) -> list[list[float]]:
    """Read some columns of a CSV file as numbers."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [[float(row[column]) for row in rows] for column in columns]
