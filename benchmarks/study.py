"""The numbers of the multi-discount study (docs/study.md) from the folders of its runs.

``python -m benchmarks.study FOLDER...`` prints a table of arms and one of comparisons with the arm
without heads.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from torchrl_tdmpc.cli.report import markdown
from torchrl_tdmpc.recording.report import Arm, Run, find_runs

RESAMPLES = 10_000
BASELINE = "A0"
# The arms by the settings in which they differ: enabled, bootstrap, number of different discounts
ARMS = {(False, "primary", 0): "A0", (True, "primary", 3): "A2", (True, "self", 3): "C1"}
ARMS[True, "primary", 1] = "C2"
SCALES: dict[str, Callable] = {"Pendulum-v1": lambda values: (values + 1600) / 1600}

Scores = Mapping[str, np.ndarray]  # of an arm: for each task, one score a seed, [..., seeds]


def interquartile_mean(scores: Scores) -> float:
    """Mean of the middle half of all scores."""
    return float(stats.trim_mean(np.concatenate(list(scores.values())), 0.25))


def mean(scores: Scores) -> np.ndarray:
    """Mean over tasks of the mean over seeds."""
    return np.mean([values.mean(-1) for values in scores.values()], 0)


def relative_difference(arm: Scores, baseline: Scores) -> np.ndarray:
    """How much larger the mean over tasks is than the baseline's: 0.03 is 3 %."""
    return mean(arm) / mean(baseline) - 1


def probability_of_improvement(arm: Scores, baseline: Scores) -> np.ndarray:
    """Share of pairs of runs in which the arm's is better, mean over tasks; ties count half."""
    shares = []
    for task, values in arm.items():
        difference = values[..., :, None] - baseline[task][..., None, :]
        shares.append(((difference > 0) + 0.5 * (difference == 0)).mean((-2, -1)))
    return np.mean(shares, 0)


def interval(statistic: Callable[..., np.ndarray], *arms: Scores) -> tuple[float, float]:
    """95 % bootstrap interval: the seeds of each task and arm are drawn again, with replacement."""
    generator = np.random.default_rng(0)

    def resample(arm: Scores) -> Scores:  # [resamples, seeds] of each task
        return {
            task: values[generator.integers(len(values), size=(RESAMPLES, len(values)))]
            for task, values in arm.items()
        }

    low, high = np.quantile(statistic(*map(resample, arms)), [0.025, 0.975])
    return float(low), float(high)


def detectable_difference(arm: Scores, baseline: Scores) -> float:
    """Smallest relative difference that a two-sided test at 5 % finds with a probability of 80 %.

    From the measured spread: the standard error of the difference of the means over tasks, with a
    normal distribution, times 1.96 + 0.84.
    """
    variance = sum(
        values.var(ddof=1) / len(values) for scores in (arm, baseline) for values in scores.values()
    )
    error = np.sqrt(variance) / len(arm)
    quantiles = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    return quantiles * error / float(mean(baseline))


class Study(NamedTuple):
    """The areas and the final returns of each arm, scaled."""

    areas: dict[str, Scores]
    final: dict[str, Scores]


def arm_name(run: Run) -> str:
    """Which arm a run belongs to.

    Raises:
        ValueError: none of the study's.
    """
    setting = run.settings
    gammas = setting["multi_gamma.gammas"]
    distinct = len({str(gamma) for gamma in gammas})
    enabled = setting["multi_gamma.enabled"]
    key = (enabled, setting["multi_gamma.bootstrap"], distinct if enabled else 0)
    if key not in ARMS:
        raise ValueError(f"{run.folder} is of no arm of the study (multi_gamma.gammas={gammas}).")
    return ARMS[key]


def read(folders: Sequence[str]) -> Study:
    """The scores of all runs.

    Raises:
        ValueError: a run is of no arm, or an arm lacks a task or has other seeds than the baseline.
    """
    runs: dict[str, dict[str, list[Run]]] = {}
    for run in find_runs(folders):
        runs.setdefault(arm_name(run), {}).setdefault(run.task, []).append(run)
    if BASELINE not in runs:
        raise ValueError(f"there is no run of {BASELINE}, which the others are compared with.")
    expected = {task: _seeds(of_task) for task, of_task in runs[BASELINE].items()}
    study = Study({}, {})
    for name, by_task in sorted(runs.items()):
        if (found := {task: _seeds(of_task) for task, of_task in by_task.items()}) != expected:
            raise ValueError(f"{name} has the seeds {found}, {BASELINE} has {expected}.")
        arms = {task: Arm(task, {"arm": name}, by_task[task]) for task in sorted(by_task)}
        study.areas[name] = {task: _scale(task)(arm.areas) for task, arm in arms.items()}
        study.final[name] = {
            task: _scale(task)(arm.at_steps("returns")[:, -1]) for task, arm in arms.items()
        }
    return study


def _seeds(runs: Sequence[Run]) -> list[int]:
    return sorted(run.settings["seed"] for run in runs)


def _scale(task: str) -> Callable:
    return SCALES.get(task, lambda values: values / 1000)


def arm_rows(study: Study) -> list[dict[str, str]]:
    """A row for each arm and measure."""
    rows = []
    for measure, arms in study._asdict().items():
        for name, scores in arms.items():
            of_tasks = {task: f"{values.mean():.3f}" for task, values in scores.items()}
            low, high = interval(mean, scores)
            over_tasks = f"{mean(scores):.3f} [{low:.3f}, {high:.3f}]"
            middle = f"{interquartile_mean(scores):.3f}"
            first = {"measure": measure, "arm": name, **of_tasks}
            rows.append({**first, "mean": over_tasks, "interquartile mean": middle})
    return rows


def comparison_rows(study: Study) -> list[dict[str, str]]:
    """A row for each arm beside the baseline, by the areas."""
    baseline = study.areas[BASELINE]
    rows = []
    for name, scores in study.areas.items():
        if name == BASELINE:
            continue
        of_tasks = {
            task: f"{relative_difference({task: values}, {task: baseline[task]}):+.1%}"
            for task, values in scores.items()
        }
        low, high = interval(relative_difference, scores, baseline)
        difference = f"{relative_difference(scores, baseline):+.1%} [{low:+.1%}, {high:+.1%}]"
        low, high = interval(probability_of_improvement, scores, baseline)
        probability = probability_of_improvement(scores, baseline)
        rows.append(
            {
                "arm": name,
                **of_tasks,
                "mean over tasks": difference,
                "probability of improvement": f"{probability:.2f} [{low:.2f}, {high:.2f}]",
                "could have been seen": f"{detectable_difference(scores, baseline):.1%}",
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and print both tables."""
    parser = argparse.ArgumentParser(prog="benchmarks.study", description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", help="runs, or folders that hold runs")
    try:
        study = read(parser.parse_args(arguments).folders)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(markdown(arm_rows(study)))
    if comparisons := comparison_rows(study):
        print()
        print(markdown(comparisons))


if __name__ == "__main__":
    main()
