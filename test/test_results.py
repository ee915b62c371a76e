"""The results that the repository holds: how one gets in, and that the pages say what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from benchmarks.keep_run import main
from torchrl_tdmpc.cli.report import markdown
from torchrl_tdmpc.recording.report import arms_of, find_runs, read_references, table

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


def test_references_are_of_tasks_that_there_are():
    for references in read_references(RESULTS / "official.csv").values():
        assert all(0 <= reference["mean"] <= 1000 for reference in references)


@pytest.mark.skipif(not RUNS, reason="no run is kept")
def test_the_page_says_what_the_runs_say():
    """Each line of the report stands on the page of results, to the digit."""
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    rows = table(arms_of(find_runs([RESULTS])), read_references(RESULTS / "official.csv"))
    for line in markdown(rows).splitlines():
        assert line in page.splitlines()


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_result_says_where_it_comes_from(run):
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert re.fullmatch("[0-9a-f]{40}", config["commit"])
    assert config["machine"]["processor"]
    assert not {"output_dir", "resume"} & set(config)
