"""Evaluations in a process of their own: the rows of an evaluation inline, and nothing lost."""

from __future__ import annotations

import multiprocessing
import time

import pytest
from runs import configure, rows, run, without_times
from torchrl.testing.mocking_classes import ContinuousActionVecMockEnv

from torchrl_tdmpc import OnlineTrainer
from torchrl_tdmpc.checkpoints import newest_checkpoint, read_metadata
from torchrl_tdmpc.cli.settings import settle
from torchrl_tdmpc.envs import make_task
from torchrl_tdmpc.trainers import CollectionError

MODEL = {"enc_dim": 16, "mlp_dim": 16, "latent_dim": 16}
SIZES = {"model": MODEL, "steps": 40, "seed_steps": 8, "eval_episodes": 1, "eval_interval": 16}


class Overheats(ContinuousActionVecMockEnv):
    """Raises an error in an evaluation in another process."""

    def _step(self, tensordict):
        if multiprocessing.parent_process() is not None:
            raise RuntimeError("the motor is hot")
        return super()._step(tensordict)


class Waits(ContinuousActionVecMockEnv):
    """Takes longer in another process than a run does."""

    def _step(self, tensordict):
        if multiprocessing.parent_process() is not None:
            time.sleep(1000)
        return super()._step(tensordict)


def make(output_dir, environment, **settings):
    task = make_task(environment, episode_length=4, observation_keys=["observation"])
    return OnlineTrainer(
        task, output_dir=output_dir, eval_mode="background", **{**SIZES, **settings}
    )


class Ends:
    """Ends the run after so many agent steps."""

    def __init__(self, agent_steps, do):
        self.agent_steps, self.do = agent_steps, do

    def on_collect(self, trainer, data):
        if trainer.counters.agent_steps == self.agent_steps:
            self.do(trainer)


def test_the_rows_are_those_of_an_evaluation_inline(tmp_path):
    """Whatever the weights have become by the time that they are there."""
    _, train, inline = run(tmp_path / "inline")
    _, other_train, background = run(tmp_path / "background", "eval.mode=background")
    assert len(inline) == 3
    assert without_times(background) == without_times(inline)
    assert without_times(other_train) == without_times(train)
    assert not multiprocessing.active_children()


def test_an_error_ends_a_run_that_can_go_on(tmp_path):
    with pytest.raises(CollectionError) as error:
        make(tmp_path, Overheats).train()
    sentence = str(error.value)
    assert sentence.startswith("in the evaluation, the environments failed after agent step ")
    assert "(RuntimeError: the motor is hot); the run is saved, and resume=" in sentence
    assert "in _step" in str(error.value.__cause__)  # the traceback of the other process
    assert not multiprocessing.active_children()
    resumed = make(tmp_path, ContinuousActionVecMockEnv, resume="auto")
    resumed.train()
    assert [int(row["agent_steps"]) for row in rows(tmp_path / "eval.csv")][-1] == 40


def test_a_process_that_is_killed_ends_a_run_that_can_go_on(tmp_path):
    kill = Ends(20, lambda trainer: trainer.evaluator._process.kill())
    with pytest.raises(CollectionError, match="the process of the evaluation ended"):
        make(tmp_path, Waits, callbacks=[kill]).train()
    resumed = make(tmp_path, ContinuousActionVecMockEnv, resume="auto")
    resumed.train()
    assert resumed.counters.evaluated == 40


def test_a_process_that_is_killed_between_evaluations_ends_a_run(tmp_path):
    class Kill:
        def on_evaluation(self, trainer, row):
            trainer.evaluator._process.kill()
            trainer.evaluator._process.join()

    with pytest.raises(CollectionError, match="the process of the evaluation ended"):
        make(tmp_path, ContinuousActionVecMockEnv, callbacks=[Kill()]).train()
    assert len(rows(tmp_path / "eval.csv")) == 1


def test_an_evaluation_under_way_is_begun_again_when_a_run_is_resumed(tmp_path):
    stop = Ends(20, lambda trainer: trainer.stop())
    make(tmp_path, Waits, callbacks=[stop]).train()
    assert not multiprocessing.active_children()
    assert read_metadata(newest_checkpoint(tmp_path / "checkpoints"))["agent_steps"] == 20
    assert rows(tmp_path / "eval.csv") == []
    make(tmp_path, ContinuousActionVecMockEnv, resume="auto").train()
    assert [int(row["agent_steps"]) for row in rows(tmp_path / "eval.csv")] == [20, 32, 40]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["eval.mode=later"], "eval.mode is 'later'; it must be inline or background."),
        (
            ["eval.mode=background", "eval.video=true"],
            "eval.video is true, but eval.mode is background, which makes no videos; choose "
            "inline.",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, said):
    with pytest.raises(ValueError) as error:
        settle(configure(*settings))
    assert str(error.value) == said
