"""A run that was stopped and resumed is the run that was not stopped."""

from __future__ import annotations

import pytest
import test_example
import torch
from test_example import configure, rows, without_times
from tiny import seeded

example = test_example.example  # the fixture


class Died(BaseException):
    """Instead of kill -9: nothing that would tidy up may catch it."""


def begin(example, output_dir, *overrides):
    config, task = example.settle(configure(f"output_dir={output_dir}", "resume=auto", *overrides))
    agent = example.make_agent(config, task)
    return config, task, agent, example.make_log(config, agent)


def run(example, output_dir, *overrides):
    config, task, agent, log = begin(example, output_dir, *overrides)
    example.train(config, task, agent, log)
    return agent, *tables(output_dir)


def tables(output_dir):
    return [without_times(rows(output_dir / name)) for name in ("train.csv", "eval.csv")]


def die_at(monkeypatch, example, decisions):
    """Die when so many decisions are made, after the row of an episode that ends there."""
    log_episodes = example.log_episodes

    def dying(log, progress, data, now, task):
        log_episodes(log, progress, data, now, task)
        if now >= decisions:
            raise Died

    monkeypatch.setattr(example, "log_episodes", dying)


def disturb():
    """Another process begins from other generators."""
    torch.manual_seed(1234)


RUNS = {
    "in an episode": (["checkpoint.interval=24"], 29),
    "in the seed phase": (["checkpoint.interval=14"], 17),
    "2 environments": (["env.num_envs=2", "checkpoint.interval=26", "train.decisions=52"], 40),
    "before the first": ([], 3),
    "a random target": (["env.task=reacher-easy", "checkpoint.interval=34"], 40),
    "the ring wrapped": (["replay.capacity=17", "checkpoint.interval=7"], 38),
    "auxiliary heads": (
        ["multi_gamma.enabled=true", "multi_gamma.gammas=[primary,0.9]"]
        + ["checkpoint.interval=24"],
        31,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_has_the_numbers_of_one_that_was_not_stopped(
    example,
    tmp_path,
    monkeypatch,
    name,
):
    overrides, death = RUNS[name]
    whole, *whole_tables = run(example, tmp_path / "whole", *overrides)
    with monkeypatch.context() as patch:
        die_at(patch, example, death)
        with pytest.raises(Died):
            run(example, tmp_path / "stopped", *overrides)
    disturb()
    resumed, *resumed_tables = run(example, tmp_path / "stopped", *overrides)
    assert resumed_tables == whole_tables
    ours, theirs = resumed.update.loss.state_dict(), whole.update.loss.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (seeded(resumed.replay.sample) == seeded(whole.replay.sample)).all()
