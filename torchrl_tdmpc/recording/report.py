"""A set of runs as a table and plots: means and intervals over seeds."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_tdmpc.recording.style import add_legend, dress, in_words, make_panels
from torchrl_tdmpc.recording.tasks import ALL_TASKS

__all__ = [
    "OFFICIAL",
    "Arm",
    "Run",
    "arms_of",
    "find_runs",
    "plot_arms",
    "read_references",
    "table",
]

# Returns in the result files of the official implementation: python -m benchmarks.official.returns
OFFICIAL = Path(__file__).with_name("official.csv")

# Settings that say how a run is done or how long it goes, not what is learned
NOT_COMPARED = (
    *("seed", "output_dir", "resume", "threads", "device", "parameters", "versions", "commit"),
    *("train.steps", "train.max_skipped_updates", "replay.device"),
    *("eval.", "checkpoint.", "logger.", "machine.", "versions.", "parameters."),
)
RESAMPLES = 2_000  # of the bootstrap


@dataclass(frozen=True)
class Run:
    """One run on one task, as its files tell; of a run on several tasks, what belongs to one.

    Attributes:
        folder: where they are.
        settings: of ``config.yaml``, flat: ``"env.task"`` and so on.
        steps: environment steps, or updates of an offline run, at each evaluation.
        returns: mean return of each evaluation.
        minutes: since the run began, at each evaluation.
    """

    folder: Path
    settings: Mapping[str, Any]
    steps: np.ndarray
    returns: np.ndarray
    minutes: np.ndarray

    @property
    def task(self) -> str:
        """What was trained on."""
        return str(self.settings["env.task"])

    @property
    def unit(self) -> str:
        """What its steps count."""
        return "updates" if self.settings.get("mode") == "offline" else "environment steps"


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seeds alone.

    Attributes:
        task: what they were trained on.
        differing: settings in which they differ from other arms of the set.
        runs: one a seed.
    """

    task: str
    differing: Mapping[str, str]
    runs: Sequence[Run]

    @property
    def label(self) -> str:
        """What is particular to them, as on the command line."""
        return ", ".join(f"{key}={value}" for key, value in self.differing.items())

    @property
    def legend(self) -> str:
        """The same in words, and how many seeds there are."""
        words = [in_words(key, value) for key, value in self.differing.items()]
        count = len(self.runs)
        return ", ".join([*words, f"{count} seed" if count == 1 else f"{count} seeds"])

    @property
    def steps(self) -> np.ndarray:
        """Environment steps at which every run was evaluated."""
        common = set(self.runs[0].steps.tolist())
        for run in self.runs:
            common &= set(run.steps.tolist())
        return np.array(sorted(common))

    def at_steps(self, column: str) -> np.ndarray:
        """``returns`` or ``minutes`` ``[runs, steps]`` at :attr:`steps`."""
        values = []
        for run in self.runs:
            by_step = dict(zip(run.steps.tolist(), getattr(run, column)))
            values.append([by_step[step] for step in self.steps.tolist()])
        return np.array(values)

    @property
    def areas(self) -> np.ndarray:
        """Area under each run's return curve, divided by its width: a mean return ``[runs]``."""
        steps, returns = self.steps, self.at_steps("returns")
        if len(steps) < 2:
            return returns.mean(1)
        return np.trapezoid(returns, steps, axis=1) / (steps[-1] - steps[0])


def find_runs(folders: Iterable[str | Path]) -> list[Run]:
    """Every run in folders or below them: what has ``config.yaml`` and an evaluation.

    Raises:
        FileNotFoundError: a folder is absent, or no run is there.
    """
    import yaml

    runs = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder.")
        for path in sorted(folder.rglob("config.yaml")):
            rows = _read(path.with_name("eval.csv")) if path.with_name("eval.csv").exists() else []
            if rows:
                settings = dict(_flat(yaml.safe_load(path.read_text(encoding="utf-8"))))
                runs += [
                    _run(path.parent, settings | of_task, own) for of_task, own in _by_task(rows)
                ]
    if not runs:
        raise FileNotFoundError("there is no run with an evaluation in these folders.")
    return runs


def _by_task(rows: Sequence[Mapping[str, str]]) -> list[tuple[dict[str, str], list]]:
    """The rows of each task, with the setting that names it; of one task, all of them."""
    if "task" not in rows[0]:
        return [({}, list(rows))]
    tasks = dict.fromkeys(row["task"] for row in rows if row["task"] != ALL_TASKS)
    return [({"env.task": task}, [row for row in rows if row["task"] == task]) for task in tasks]


def _run(folder: Path, settings: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> Run:
    steps, returns, seconds = (
        np.array([float(row[name]) for row in rows]) for name in ("step", "reward", "seconds")
    )
    return Run(folder, settings, steps.astype(int), returns, seconds / 60)


def arms_of(runs: Sequence[Run]) -> list[Arm]:
    """Put runs together that differ in their seeds alone.

    Raises:
        ValueError: two runs of an arm have the same seed.
    """
    compared = [
        {k: str(v) for k, v in run.settings.items() if not k.startswith(NOT_COMPARED)}
        for run in runs
    ]
    # A setting distinguishes arms if runs of one task differ in it
    differing: set[str] = set()
    for one, run in zip(compared, runs):
        for other, other_run in zip(compared, runs):
            if run.task == other_run.task:
                differing |= {k for k in {*one, *other} if one.get(k) != other.get(k)}
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[Run]] = defaultdict(list)
    for settings, run in zip(compared, runs):
        particular = tuple((key, settings[key]) for key in sorted(differing) if key in settings)
        groups[run.task, particular].append(run)
    for members in groups.values():
        seeds = [run.settings["seed"] for run in members]
        if len(set(seeds)) < len(seeds):
            same = [str(run.folder) for run in members if seeds.count(run.settings["seed"]) > 1]
            raise ValueError(f"{' and '.join(same)} have the same settings and the same seed.")
    return [
        Arm(task, dict(particular), members)
        for (task, particular), members in sorted(groups.items())
    ]


def interval(values: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap interval of the mean over the first dimension, the runs.

    Args:
        values: ``[runs, ...]``; of one run, the interval is the value.
        confidence: how often the interval holds the mean.

    Returns:
        Its lower and upper end ``[...]``.
    """
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    means = values[draws].mean(1)
    tail = (1 - confidence) / 2
    return np.quantile(means, tail, axis=0), np.quantile(means, 1 - tail, axis=0)


def read_references(path: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Points to compare with: a CSV file with ``task``, ``step``, ``mean``, ``std``, ``name``.

    ``step`` is environment steps; ``std`` is over seeds, or empty.

    Raises:
        OSError: the file cannot be read.
        ValueError: it lacks a column, or an entry is no number.
    """
    references: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in _read(Path(path)):
        if missing := {"task", "step", "mean", "std", "name"} - set(row):
            raise ValueError(f"{path} lacks the column {sorted(missing)[0]!r}.")
        numbers = {name: float(row[name] or "nan") for name in ("step", "mean", "std")}
        references[row["task"]].append({"name": row["name"], **numbers})
    return dict(references)


def table(
    arms: Sequence[Arm], references: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[dict[str, str]]:
    """A row for each arm: its last common evaluation, and the reference points of its task."""
    rows = []
    for arm in arms:
        last, steps = arm.at_steps("returns")[:, -1], arm.steps
        row = {
            "task": arm.task,
            "settings": arm.label or "-",
            "seeds": ", ".join(sorted(str(run.settings["seed"]) for run in arm.runs)),
            "environment steps": f"{steps[-1]:,}{_unit_in_table(arm)}",
            "return": _with_interval(last),
            "area": _with_interval(arm.areas),
            "minutes": f"{arm.at_steps('minutes')[:, -1].mean():.0f}",
        }
        at_end = [r for r in references.get(arm.task, ()) if r["step"] == steps[-1]]
        told = [f"{r['name']} {r['mean']:.0f}" + _in_brackets(r["std"]) for r in at_end]
        row["reference"] = "; ".join(told) or "-"
        rows.append(row)
    return rows


def plot_arms(
    arms: Sequence[Arm],
    references: Mapping[str, Sequence[Mapping[str, Any]]],
    path: str | Path,
    *,
    over: str = "steps",
) -> Path:
    """One panel a task: the mean over seeds with its interval, every seed, and references.

    Args:
        arms: what is drawn.
        references: see :func:`read_references`.
        path: where the plot goes.
        over: ``"steps"``, environment steps; or ``"minutes"``.
    """
    tasks = sorted({arm.task for arm in arms})
    labels = sorted({arm.label for arm in arms})
    colors = {label: f"C{index}" for index, label in enumerate(labels)}
    figure, panels = make_panels(len(tasks))
    for panel, task in zip(panels, tasks):
        for arm in (arm for arm in arms if arm.task == task):
            _draw_arm(panel, arm, colors[arm.label], over)
        if over == "steps":
            for reference in references.get(task, ()):
                error = None if np.isnan(reference["std"]) else reference["std"]
                panel.errorbar(
                    reference["step"],
                    reference["mean"],
                    error,
                    color="black",
                    fmt="D",
                    markersize=5,
                    capsize=3,
                    label=reference["name"],
                )
        units = dict.fromkeys(run.unit for arm in arms if arm.task == task for run in arm.runs)
        xlabel = " or ".join(units) if over == "steps" else "minutes"
        of_task = [arm.at_steps("returns") for arm in arms if arm.task == task]
        in_range = all(((values >= 0) & (values <= 1000)).all() for values in of_task)
        dress(panel, title=task, xlabel=xlabel, ylabel="episode return", to_1000=in_range)
    add_legend(figure, panels)
    figure.savefig(path, dpi=120)
    return Path(path)


def _draw_arm(panel: Any, arm: Arm, color: str, over: str) -> None:
    returns = arm.at_steps("returns")
    across = arm.steps if over == "steps" else arm.at_steps("minutes").mean(0)
    for run in arm.runs:
        own = run.steps if over == "steps" else run.minutes
        panel.plot(own, run.returns, color=color, alpha=0.3, linewidth=1)
    if len(arm.runs) > 1:
        low, high = interval(returns)
        panel.fill_between(across, low, high, color=color, alpha=0.2, linewidth=0)
    panel.plot(across, returns.mean(0), "o-", color=color, markersize=4, label=arm.legend)


def _with_interval(values: np.ndarray) -> str:
    low, high = interval(values)
    shown = f"{values.mean():.1f}"
    return f"{shown} [{low:.1f}, {high:.1f}]" if len(values) > 1 else shown


def _unit_in_table(arm: Arm) -> str:
    """Behind a number of steps, unless they are environment steps, as the column says."""
    unit = arm.runs[0].unit
    return "" if unit == "environment steps" else f" {unit}"


def _in_brackets(value: float) -> str:
    return "" if np.isnan(value) else f" ({value:.0f})"


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
