"""The plot of returns."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from torchrl_tdmpc.recording import CsvFiles, ReturnsPlot, RunRecord, plot_returns, plots


def fake_run(directory: Path, *, seed: int, evaluations: int, episodes: int = 20) -> Path:
    generator = torch.Generator().manual_seed(seed)
    record = RunRecord(seed=seed)
    files = CsvFiles(directory, record.train_columns)
    for episode in range(1, episodes + 1):
        level = 900 * (1 - math.exp(-episode / 6))
        noise = 60 * torch.randn(6, generator=generator)
        at = {"step": 1000 * episode, "agent_steps": 500 * episode}
        (row,) = record.episodes(**at, returns=[level + noise[0]], lengths=[500])
        files.on_episode(None, row)
        if episode <= evaluations:
            row = record.evaluation(**at, returns=level + noise[1:], lengths=[500] * 5)
            files.on_evaluation(None, row)
    files.on_end(None)
    return directory


@pytest.mark.parametrize(("episodes", "evaluations"), [(20, 20), (5, 0), (0, 0)])
def test_plot_of_one_run(tmp_path, episodes, evaluations):
    run = fake_run(tmp_path / "run", seed=1, episodes=episodes, evaluations=evaluations)
    path = plot_returns(run, title="walker-stand, 1M parameters, seed 1")
    assert path == run / "returns.png"
    pixels = imread(path)[..., :3]
    blue = (pixels[..., 2] - pixels[..., 0]) > 0.15  # the first colour: points, line and band
    assert pixels.shape[1] >= 900
    assert blue.any() == (episodes > 0)


def test_plot_of_several_runs(tmp_path):
    runs = [fake_run(tmp_path / f"seed{seed}", seed=seed, evaluations=20) for seed in (1, 2)]
    path = plot_returns(*runs, title="two seeds", path=tmp_path / "both.png")
    pixels = imread(path)[..., :3]
    assert ((pixels[..., 2] - pixels[..., 0]) > 0.15).any()  # blue
    assert ((pixels[..., 0] - pixels[..., 2]) > 0.5).any()  # orange
    assert not (runs[0] / "returns.png").exists()


def test_a_run_is_drawn_at_each_evaluation_and_at_its_end(tmp_path):
    run = fake_run(tmp_path / "run", seed=1, episodes=5, evaluations=5)
    plot, plots = ReturnsPlot(run, title="walker-stand"), []
    for draw in (lambda: plot.on_evaluation(None, {}), lambda: plot.on_end(None)):
        (run / "returns.png").unlink(missing_ok=True)
        draw()
        plots.append(imread(run / "returns.png"))
    expected = imread(plot_returns(run, title="walker-stand", path=tmp_path / "expected.png"))
    assert all((pixels == expected).all() for pixels in plots)


def test_lines_to_compare_with(tmp_path, monkeypatch):
    """The mean of the random warm-up, and the official return of a task that has one."""
    run = fake_run(tmp_path / "run", seed=1, evaluations=3)
    lines = (run / "train.csv").read_text().splitlines()
    at = lines[0].split(",").index("return")
    rows = [line.split(",") for line in lines[1:]]
    # Only the first two episodes are before the first update
    lines = [f"{line},{loss}" for line, loss in zip(lines, ["loss_consistency", "", "", *18 * [2]])]
    (run / "train.csv").write_text("\n".join(lines) + "\n")
    drawn = {}
    monkeypatch.setattr(
        plots, "draw_level", lambda _, value, label, **style: drawn.update({label: (value, style)})
    )
    plot_returns(run, task="walker-walk")
    random = (float(rows[0][at]) + float(rows[1][at])) / 2
    official = "official, 5M parameters, after 100,000 environment steps"
    assert drawn == {
        "before the first update (mean of 2 episodes)": (pytest.approx(random), {}),
        official: (pytest.approx(962, abs=1), {"dotted": True}),
    }
    drawn.clear()
    plot_returns(run, task="Pendulum-v1")
    assert list(drawn) == ["before the first update (mean of 2 episodes)"]
