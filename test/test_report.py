"""Reports on a set of runs: arms, numbers and plots."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from torchrl_tdmpc.cli.report import main
from torchrl_tdmpc.recording.report import (
    arms_of,
    find_runs,
    interval,
    plot_arms,
    read_references,
    table,
)


def write_run(folder, seed, returns, *, task="walker-walk", steps=(100, 200, 400), **further):
    folder.mkdir(parents=True)
    settings = {"seed": seed, "output_dir": str(folder), "env": {"task": task}, "threads": seed}
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, **further, "commit": "abc"}))
    rows = [f"{step},{value},{60 * step}" for step, value in zip(steps, returns)]
    (folder / "eval.csv").write_text("\n".join(["step,reward,seconds", *rows]) + "\n")


@pytest.fixture
def runs(tmp_path):
    """Two arms of walker-walk, of which one has three seeds, and a run of another task."""
    for seed, offset in ((1, 0), (2, 30), (3, 60)):
        returns = [0.0 + offset, 100.0 + offset, 200.0 + offset]
        write_run(tmp_path / f"a/seed{seed}", seed, returns, loss={"rho": 0.5})
    write_run(tmp_path / "b", 1, [7.0, 8.0, 9.0], steps=(100, 200, 300), loss={"rho": 0.7})
    write_run(tmp_path / "c", 1, [500.0], steps=(400,), task="cup-catch", loss={"rho": 0.5})
    return tmp_path


def test_arms_are_runs_that_differ_in_their_seeds_alone(runs):
    cup, low, high = arms_of(find_runs([runs]))
    assert (cup.task, cup.label, len(cup.runs)) == ("cup-catch", "loss.rho=0.5", 1)
    assert (low.task, low.label, len(low.runs)) == ("walker-walk", "loss.rho=0.5", 3)
    assert (cup.legend, low.legend) == ("loss: rho 0.5, 1 seed", "loss: rho 0.5, 3 seeds")
    assert (high.label, high.steps.tolist()) == ("loss.rho=0.7", [100, 200, 300])
    np.testing.assert_array_equal(low.at_steps("returns").mean(0), [30, 130, 230])
    np.testing.assert_array_equal(low.at_steps("minutes")[0], [100, 200, 400])
    # Trapezoids: (0 + 100) / 2 * 100 + (100 + 200) / 2 * 200, divided by 300
    np.testing.assert_allclose(low.areas, np.array([0, 30, 60]) + 35_000 / 300)
    assert cup.areas.tolist() == [500]


def test_seeds_that_stopped_at_other_steps_are_compared_where_all_were_evaluated(runs):
    write_run(runs / "a/seed4", 4, [1.0, 2.0], steps=(200, 300), loss={"rho": 0.5})
    arm = arms_of(find_runs([runs]))[1]
    assert arm.steps.tolist() == [200]
    assert arm.at_steps("returns").flatten().tolist() == [100, 130, 160, 1]


def test_the_interval_is_that_of_a_mean():
    values = np.random.default_rng(1).normal(10, 2, size=(400, 3))
    low, high = interval(values)
    expected = 1.96 * values.std(0) / 20
    np.testing.assert_allclose(values.mean(0) - low, expected, rtol=0.15)
    np.testing.assert_allclose(high - values.mean(0), expected, rtol=0.15)
    assert [float(end) for end in interval(np.array([3.0]))] == [3, 3]


def test_the_command_writes_a_table_and_plots(runs, capsys):
    references = runs / "official.csv"
    text = "task,step,mean,std,name\nwalker-walk,400,962,13,official\nwalker-walk,9,1,,x\n"
    references.write_text(text)
    output = runs / "new/report"
    main([str(runs), "--references", str(references), "--output", str(output)])
    lines = (output / "report.md").read_text().splitlines()
    assert lines[0].startswith("| task | settings | seeds | environment steps | return | area")
    low = arms_of(find_runs([runs]))[1]
    ends = [f"{end:.1f}" for end in interval(low.at_steps("returns")[:, -1])]
    assert f"| walker-walk | loss.rho=0.5 | 1, 2, 3 | 400 | 230.0 [{', '.join(ends)}] |" in lines[3]
    assert lines[3].endswith("| official 962 (13) |") and lines[4].endswith("| - |")
    assert capsys.readouterr().out.splitlines()[:5] == lines
    for name in ("returns_over_steps.png", "returns_over_minutes.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")


def test_a_reference_without_a_deviation_is_a_mean_alone(runs):
    rows = table(
        arms_of(find_runs([runs / "c"])),
        {"cup-catch": [{"name": "other", "step": 400.0, "mean": 981.0, "std": float("nan")}]},
    )
    assert rows[0]["reference"] == "other 981" and rows[0]["settings"] == "-"


def test_a_plot_shows_each_reference_with_its_deviation(runs, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.errorbar",
        lambda panel, step, mean, error, **style: drawn.append((step, mean, error, style["label"])),
    )
    cup = [
        {"name": "official", "step": 400.0, "mean": 981.0, "std": 7.0},
        {"name": "other", "step": 300.0, "mean": 970.0, "std": float("nan")},
    ]
    arms = arms_of(find_runs([runs / "c"]))
    plot_arms(arms, {"cup-catch": cup}, runs / "plot.png")
    assert drawn == [(400, 981, 7, "official"), (300, 970, None, "other")]
    plot_arms(arms, {"cup-catch": cup}, runs / "plot.png", over="minutes")
    assert len(drawn) == 2  # references have no minutes


def test_a_run_on_several_tasks_is_a_run_on_each(tmp_path, capsys):
    for seed in (1, 2):
        folder = tmp_path / f"seed{seed}"
        write_run(folder, seed, [], task="cup-catch+pendulum-spin", mode="offline")
        lines = ["step,task,score,reward,seconds"]
        for step in (100, 200):
            lines += [f"{step},cup-catch,1,{step + seed},9", f"{step},pendulum-spin,1,{seed},9"]
            lines.append(f"{step},all,1,,9")
        (folder / "eval.csv").write_text("\n".join(lines) + "\n")
    cup, pendulum = arms_of(find_runs([tmp_path]))
    assert (cup.task, pendulum.task, len(cup.runs)) == ("cup-catch", "pendulum-spin", 2)
    assert cup.at_steps("returns").tolist() == [[101, 201], [102, 202]]
    assert pendulum.at_steps("returns").tolist() == [[1, 1], [2, 2]]
    main([str(tmp_path), "--output", str(tmp_path / "report")])
    assert "| cup-catch | - | 1, 2 | 200 updates | 201.5" in capsys.readouterr().out


def test_what_cannot_be_reported_is_refused_in_a_sentence(runs, tmp_path):
    with pytest.raises(SystemExit, match="absent is no folder"):
        main([str(tmp_path / "absent")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="no run with an evaluation"):
        main([str(tmp_path / "empty")])
    write_run(runs / "again", 2, [1.0], steps=(100,), loss={"rho": 0.5})
    with pytest.raises(SystemExit, match=r"seed2 and .*again have the same settings and the same"):
        main([str(runs)])
    (runs / "bad.csv").write_text("task,step,mean\nx,1,2\n")
    with pytest.raises(ValueError, match=r"bad.csv lacks the column 'name'"):
        read_references(runs / "bad.csv")
