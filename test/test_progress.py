"""What a run shows where there is no terminal: one line a minute."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from torchrl_tdmpc.recording import Progress, progress
from torchrl_tdmpc.trainers.counters import Counters

STEP = torch.zeros(2, 1)  # what is collected in one agent step of two environments


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test sets; standard error is no terminal."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)
    return clock


def begin(agent_steps=0):
    """A run of two environments that begins, or goes on after so many agent steps."""
    counters = Counters(agent_steps=agent_steps, updates=agent_steps)
    task = SimpleNamespace(episode_length=10)
    trainer = SimpleNamespace(counters=counters, steps=50_000, num_envs=2, task=task)
    shown = Progress()
    shown.on_begin(trainer)
    return shown, trainer


def collect(shown, trainer, agent_steps):
    trainer.counters.agent_steps = agent_steps
    shown.on_collect(trainer, STEP)


def test_a_line_a_minute_with_rate_and_last_return(clock, capsys):
    shown, trainer = begin()
    for second in range(1, 151):  # twenty agent steps a second
        clock.now = 1000.0 + second
        if second in (50, 100):
            shown.on_episode(trainer, {"return": second + 0.25, "loss_value": 0.12345, "length": 9})
        collect(shown, trainer, 20 * second)
    shown.on_end(trainer)
    output = capsys.readouterr()
    assert output.out.splitlines() == [
        "1,200 of 50,000 agent steps (20.0 a second), return 50.2, loss_value 0.123",
        "2,400 of 50,000 agent steps (20.0 a second), return 100.2, loss_value 0.123",
    ]
    assert output.err == ""  # no bar


def test_the_rate_of_a_resumed_run_leaves_out_what_was_done_before(clock, capsys):
    shown, trainer = begin(agent_steps=30_000)
    clock.now += 59.9
    collect(shown, trainer, 30_200)
    assert capsys.readouterr().out == ""
    clock.now = 1060.0
    collect(shown, trainer, 30_300)
    assert capsys.readouterr().out == "30,300 of 50,000 agent steps (5.0 a second)\n"


def test_updates_for_the_random_warm_up_are_counted_down(clock, capsys):
    shown, trainer = begin()
    trainer.counters.agent_steps = 2_000
    for updates, now in ((100, 1030.0), (700, 1060.0), (1_998, 1200.0)):
        trainer.counters.updates, clock.now = updates, now
        shown.on_update(trainer, None)
    # The last one owes no more than an agent step in each environment
    assert capsys.readouterr().out.splitlines() == [
        "2,000 of 50,000 agent steps (33.3 a second), 1,300 updates for the random warm-up to do"
    ]


def test_an_evaluation_is_told_at_once(clock, capsys):
    shown, trainer = begin()
    shown.on_evaluation_begin(trainer, None)
    shown.on_evaluation_step(trainer)
    shown.on_evaluation(trainer, {"step": 80, "reward": 12.34, "reward_std": 0.56})
    assert capsys.readouterr().out == "step 80: evaluation return 12.3 +- 0.6\n"
