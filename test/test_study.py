"""The statistics of the multi-discount study on runs whose numbers are known."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from scipy import stats

from benchmarks import study

GAMMAS = {
    "A0": {"enabled": False, "bootstrap": "primary", "gammas": []},
    "A2": {"enabled": True, "bootstrap": "primary", "gammas": ["primary", 0.97, 0.995]},
    "C1": {"enabled": True, "bootstrap": "self", "gammas": ["primary", 0.97, 0.995]},
    "C2": {"enabled": True, "bootstrap": "primary", "gammas": ["primary"] * 3},
}


def write_run(folder, arm, task, seed, returns):
    folder = folder / f"{arm}-{task}-{seed}"
    folder.mkdir(parents=True)
    settings = {"seed": seed, "env": {"task": task}, "multi_gamma": GAMMAS[arm]}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    rows = [f"{step},{value},1" for step, value in zip((100, 200, 400), returns)]
    (folder / "eval.csv").write_text("\n".join(["step,reward,seconds", *rows]) + "\n")


def write_study(folder, arms=("A0", "A2"), seeds=(1, 2, 3)):
    for arm in arms:
        for seed in seeds:
            gain = 20 * seed if arm == "A2" else 0
            write_run(folder, arm, "walker-walk", seed, [100 + gain, 200 + gain, 400 + gain])
            write_run(folder, arm, "Pendulum-v1", seed, [-1600, -800 - 80 * seed, 0])


def test_areas_and_final_returns_are_on_one_scale(tmp_path):
    write_study(tmp_path)
    numbers = study.read([str(tmp_path)])
    # (150 x 100 + 300 x 200) / 300, in thousandths
    np.testing.assert_allclose(numbers.areas["A0"]["walker-walk"], 3 * [0.25])
    np.testing.assert_allclose(numbers.areas["A2"]["walker-walk"], [0.27, 0.29, 0.31])
    # ((0 + m) / 2 x 100 + (m + 1) / 2 x 200) / 300 for m in the middle
    middle = np.array([0.45, 0.4, 0.35])
    np.testing.assert_allclose(numbers.areas["A2"]["Pendulum-v1"], (middle * 1.5 + 1) / 3)
    np.testing.assert_allclose(numbers.final["A2"]["walker-walk"], [0.42, 0.44, 0.46])
    np.testing.assert_allclose(numbers.final["A0"]["Pendulum-v1"], 3 * [1.0])


def test_comparisons(tmp_path):
    write_study(tmp_path)
    areas = study.read([str(tmp_path)]).areas
    arm, baseline = areas["A2"], areas["A0"]
    walker = {"walker-walk": arm["walker-walk"]}, {"walker-walk": baseline["walker-walk"]}
    assert study.relative_difference(*walker) == pytest.approx(0.29 / 0.25 - 1)
    means = [np.mean([values.mean() for values in one.values()]) for one in (arm, baseline)]
    assert study.relative_difference(arm, baseline) == pytest.approx(means[0] / means[1] - 1)
    assert study.probability_of_improvement(*walker) == 1.0
    pendulum = {"Pendulum-v1": arm["Pendulum-v1"]}, {"Pendulum-v1": baseline["Pendulum-v1"]}
    assert study.probability_of_improvement(*pendulum) == 0.5  # the same numbers in both
    assert study.probability_of_improvement(arm, baseline) == 0.75
    # of 1 .. 8 the middle half is 3 .. 6
    halves = {"a": np.array([1.0, 8, 3, 4]), "b": np.array([2.0, 5, 6, 7])}
    assert study.interquartile_mean(halves) == 4.5


def test_an_interval_is_that_of_scipy():
    generator = np.random.default_rng(1)
    scores = {task: generator.normal(size=20) for task in ("a", "b")}
    low, high = study.interval(study.mean, scores)

    def over_tasks(a, b, axis):
        return (a.mean(axis) + b.mean(axis)) / 2

    theirs = stats.bootstrap(
        list(scores.values()), over_tasks, n_resamples=10_000, method="percentile", rng=2
    ).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_the_detectable_difference_is_found_four_times_in_five():
    generator, found = np.random.default_rng(0), 0
    spread, seeds, repeats = 0.1, 50, 400
    baseline = {task: generator.normal(1, spread, seeds) for task in ("a", "b")}
    effect = study.detectable_difference(baseline, baseline)
    for _ in range(repeats):
        one = {task: generator.normal(1, spread, seeds) for task in ("a", "b")}
        other = {task: generator.normal(1 + effect, spread, seeds) for task in ("a", "b")}
        difference = study.mean(other) - study.mean(one)
        error = np.sqrt(2 * 2 * spread**2 / seeds) / 2
        found += abs(difference) > 1.96 * error
    assert found / repeats == pytest.approx(0.8, abs=0.1)


def test_the_command_prints_both_tables(tmp_path, capsys):
    write_study(tmp_path, arms=("A0", "A2", "C1", "C2"))
    study.main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| measure | arm | Pendulum-v1 | walker-walk | mean |")
    assert lines[3].startswith("| areas | A2 | 0.533 | 0.290 | 0.412 [")
    (row,) = (line for line in lines if line.startswith("| A2 |"))
    assert row.startswith("| A2 | +0.0% | +16.0% | +5.1% [")
    assert [line.split(" | ")[1] for line in lines[2:6]] == ["A0", "A2", "C1", "C2"]


@pytest.mark.parametrize(
    ("arms", "further", "sentence"),
    [
        (("A2",), None, "error: there is no run of A0, which the others are compared with."),
        (
            ("A0", "A2"),
            ("A2", "walker-walk", 4),
            "error: A2 has the seeds {'Pendulum-v1': [1, 2, 3], 'walker-walk': [1, 2, 3, 4]}, "
            "A0 has {'Pendulum-v1': [1, 2, 3], 'walker-walk': [1, 2, 3]}.",
        ),
    ],
)
def test_a_study_that_is_not_whole_is_refused(tmp_path, arms, further, sentence):
    write_study(tmp_path, arms=arms)
    if further:
        write_run(tmp_path, *further, [1, 2, 3])
    with pytest.raises(SystemExit) as error:
        study.main([str(tmp_path)])
    assert str(error.value) == sentence
