"""Ctrl-C and SIGTERM, once and twice, in each phase of a run; and the run that goes on later."""

from __future__ import annotations

import signal

import pytest
from omegaconf import OmegaConf
from runs import configure, rows, without_times
from torchrl.envs import SerialEnv

from torchrl_tdmpc.checkpoints import (
    checkpoint,
    find_checkpoint,
    newest_checkpoint,
    read_metadata,
)
from torchrl_tdmpc.cli.parts import make_trainer
from torchrl_tdmpc.cli.settings import settle
from torchrl_tdmpc.recording import plots
from torchrl_tdmpc.trainers import TDMPC2Update

SMALL = [
    *("env.episode_length=5", "train.seed_steps=10", "train.steps=16", "train.batch_size=4"),
    *("eval.interval=8", "eval.episodes=1", "checkpoint.interval=6"),
]
SIGNALS = {
    f"{number.name}, {count}": [number] * times
    for number in (signal.SIGINT, signal.SIGTERM)
    for times, count in ((1, "once"), (2, "twice"))
}
# What runs in a phase; when the signals come; agent steps of the run's newest checkpoint after the
# first signal, and after the second
PHASES = {
    "collecting": (SerialEnv, "_step", lambda counters: counters.agent_steps == 13, 14, 12),
    "updating": (TDMPC2Update, "__call__", lambda counters: counters.updates == 13, 14, 12),
    "evaluating": (SerialEnv, "_step", lambda counters: counters.agent_steps == 8, 8, 6),
    "saving": (checkpoint, "publish", lambda counters: counters.agent_steps == 12, 13, 6),
}


@pytest.fixture(scope="module", autouse=True)
def without_plots():
    """Which take longer than such a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "plot_returns", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def make():
    """From a folder to the trainer of the run in it."""
    config, task = settle(configure(*SMALL))

    def make(folder):
        found = find_checkpoint("auto", folder)
        place = {"output_dir": str(folder), "resume": found and str(found)}
        return make_trainer(OmegaConf.merge(config, place), task)

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory, make):
    """The tables of a run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    make(folder).train()
    return tables(folder)


def tables(folder):
    return [without_times(rows(folder / name)) for name in ("train.csv", "eval.csv")]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("signals", SIGNALS)
def test_a_run_ends_as_it_was_asked_to_and_goes_on_later(
    tmp_path, monkeypatch, make, whole, phase, signals
):
    owner, name, is_time, saved_at_first, saved_at_second = PHASES[phase]
    trainer, function = make(tmp_path), getattr(owner, name)
    coming = list(SIGNALS[signals])

    def interrupted(*arguments):
        while coming and is_time(trainer.counters):
            signal.raise_signal(coming.pop())
        return function(*arguments)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    is_second = len(coming) == 2
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        if is_second:
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        else:
            trainer.train()
    assert coming == [] and trainer.is_stopping and trainer.collector.closed
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    newest = newest_checkpoint(tmp_path / "checkpoints")
    saved_at = saved_at_second if is_second else saved_at_first
    assert read_metadata(newest)["agent_steps"] == saved_at
    make(tmp_path).train()
    assert tables(tmp_path) == whole
