"""The results that the repository holds: how one gets in, and that the pages say what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from benchmarks.keep_run import main
from benchmarks.official import returns
from torchrl_tdmpc.cli.report import markdown
from torchrl_tdmpc.recording.report import OFFICIAL, arms_of, find_runs, read_references, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
RUNS = sorted(path.parent for path in RESULTS.glob("*/eval.csv"))


def write_run(folder, *, agent_steps=20):
    folder.mkdir()
    config = {
        "seed": 3,
        "output_dir": str(folder),
        "resume": str(folder / "checkpoints/x.torchrl"),
        "env": {"task": "walker-walk"},
        "train": {"steps": 20},
        "machine": {"processor": "P", "cores": 2, "gpu": None},
        "commit": "abc",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    row = f"40,7.5,3.0,{agent_steps}"
    (folder / "eval.csv").write_text(f"step,reward,seconds,agent_steps\n{row}\n")
    (folder / "train.csv").write_text("step,return\n20,1.0\n")
    (folder / "checkpoints").mkdir()
    return config


def test_a_finished_run_is_kept_without_its_folders(tmp_path):
    config = write_run(tmp_path / "run")
    main([str(tmp_path / "run"), str(tmp_path / "results/walker-walk-seed3")])
    kept = tmp_path / "results/walker-walk-seed3"
    assert sorted(path.name for path in kept.iterdir()) == ["config.yaml", "eval.csv", "train.csv"]
    del config["output_dir"], config["resume"]
    assert yaml.safe_load((kept / "config.yaml").read_text()) == config
    for name in ("eval.csv", "train.csv"):
        assert (kept / name).read_text() == (tmp_path / "run" / name).read_text()
    assert str(tmp_path) not in "".join(path.read_text() for path in kept.iterdir())


@pytest.mark.parametrize("what", ["unfinished", "there"])
def test_no_other_run_is_kept(tmp_path, what):
    write_run(tmp_path / "run", agent_steps=19 if what == "unfinished" else 20)
    result = tmp_path / "result"
    if what == "there":
        result.mkdir()
    with pytest.raises(SystemExit) as error:
        main([str(tmp_path / "run"), str(result)])
    run = tmp_path / "run"
    assert (
        str(error.value)
        == {
            "unfinished": f"error: {run} was evaluated after 19 of 20 agent steps; let it end.",
            "there": f"error: {result} is there already.",
        }[what]
    )
    assert not any(result.glob("*"))


def test_official_returns_are_those_of_the_result_files(tmp_path, monkeypatch):
    folder = tmp_path / "results/tdmpc2"
    folder.mkdir(parents=True)
    rows = ["0,1.0,1", "100000,10.0,1", "100000,13.0,2", "200000,99,1"]
    (folder / "cup-catch.csv").write_text("\n".join(["step,reward,seed", *rows]) + "\n")
    (folder / "cheetah-jump.csv").write_text("step,reward,seed\n100000,7.25,1\n")
    (folder / "mw-push.csv").write_text("step,reward,seed\n100000,1,1\n")  # of Meta-World
    monkeypatch.setattr(returns, "OFFICIAL", tmp_path / "official.csv")
    returns.main([str(tmp_path)])
    assert (tmp_path / "official.csv").read_text().splitlines() == [
        "task,step,mean,std,name",
        'cheetah-jump,100000,7.2,,"official, 5M parameters"',
        'cup-catch,100000,11.5,2.1,"official, 5M parameters"',
    ]


def test_official_returns_are_in_the_package():
    official = read_references(OFFICIAL)
    (walker,) = official["walker-walk"]
    assert (walker["mean"], walker["std"], walker["step"]) == (961.9, 12.5, 100_000)
    assert all(0 <= references[0]["mean"] <= 1000 for references in official.values())


@pytest.mark.skipif(not RUNS, reason="no run is kept")
def test_the_page_says_what_the_runs_say():
    """Each line of the report stands on the page of results, to the digit."""
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    rows = table(arms_of(find_runs([RESULTS])), read_references(OFFICIAL))
    for line in markdown(rows).splitlines():
        assert line in page.splitlines()


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_result_says_where_it_comes_from(run):
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert re.fullmatch("[0-9a-f]{40}", config["commit"])
    assert config["machine"]["processor"]
    assert not {"output_dir", "resume"} & set(config)
