"""Environments that raise an error: the run ends in one sentence, is saved, and goes on later."""

from __future__ import annotations

import functools
import math
import multiprocessing
import signal
import time
import traceback

import pytest
from torchrl.collectors import Collector
from torchrl.envs import SerialEnv
from torchrl.testing.mocking_classes import ContinuousActionVecMockEnv

from torchrl_tdmpc import OnlineTrainer, TDMPC2Planner
from torchrl_tdmpc.checkpoints import newest_checkpoint, read_metadata
from torchrl_tdmpc.envs import load_task, make_task
from torchrl_tdmpc.trainers import CollectionError, parts, patience

MODEL = {"enc_dim": 16, "mlp_dim": 16, "latent_dim": 16}


class Overheats(ContinuousActionVecMockEnv):
    """Raises an error in its twelfth step."""

    steps = 0

    def _step(self, tensordict):
        self.steps += 1
        if self.steps == 12:
            raise RuntimeError("the motor is hot.\nIt has to cool down.")
        return super()._step(tensordict)


def make(output_dir, environment, *, episode_length=4, **settings):
    task = make_task(environment, episode_length=episode_length, observation_keys=["observation"])
    sizes = {"model": MODEL, "steps": 16, "seed_steps": 8, "eval_episodes": 0}
    return OnlineTrainer(task, output_dir=output_dir, **{**sizes, **settings})


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ("serial", "environment 0 failed after agent step 11 (RuntimeError: the motor is hot);"),
        ("process", "environment 0 failed after agent step 11 (RuntimeError: the motor is hot);"),
    ],
)
def test_an_error_in_a_step_ends_a_run_that_can_go_on(tmp_path, workers, said):
    trainer = make(tmp_path, Overheats, workers=workers)
    with pytest.raises(CollectionError) as error:
        trainer.train()
    sentence = str(error.value)
    assert sentence.startswith(said) and "\n" not in sentence
    assert sentence.endswith(f"the run is saved, and resume={tmp_path} goes on with it.")
    assert "no attribute 'env'" not in "".join(traceback.format_exception(error.value))
    assert trainer.collector.closed
    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert read_metadata(newest)["agent_steps"] == 11

    resumed = make(tmp_path, ContinuousActionVecMockEnv, resume=str(tmp_path))
    resumed.train()
    assert (resumed.counters.agent_steps, resumed.counters.updates) == (16, 16)
    # The third episode was three steps long when its environment failed
    assert resumed.num_truncated_episodes == 1
    assert resumed.replay.num_steps == 16


class OverheatsInEvaluation(ContinuousActionVecMockEnv):
    """Raises an error in a step once somebody says that it is hot."""

    is_hot = False

    def _step(self, tensordict):
        if self.is_hot:
            raise RuntimeError("the motor is hot")
        return super()._step(tensordict)


class Forgets(ContinuousActionVecMockEnv):
    """Gives no reward in its twelfth step, in whose place TorchRL leaves the one before."""

    steps = 0

    def _step(self, tensordict):
        self.steps += 1
        data = super()._step(tensordict)
        return data.exclude("reward") if self.steps == 12 else data


def test_a_step_without_a_reward_ends_a_run(tmp_path):
    with pytest.raises(CollectionError, match=r"step 11 \(RuntimeError: a step gave no reward\)"):
        make(tmp_path, Forgets).train()


class Heat:
    def on_evaluation_begin(self, trainer, env):
        OverheatsInEvaluation.is_hot = True


def test_an_error_in_an_evaluation_ends_a_run_that_can_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(OverheatsInEvaluation, "is_hot", False)
    sizes = {"eval_episodes": 2, "eval_interval": 9}
    with pytest.raises(CollectionError) as error:
        make(tmp_path, OverheatsInEvaluation, callbacks=[Heat()], **sizes).train()
    assert str(error.value) == (
        "in the evaluation, environment 0 failed after agent step 9 (RuntimeError: the motor is "
        f"hot); the run is saved, and resume={tmp_path} goes on with it."
    )
    assert str(error.value.__cause__) == "the motor is hot"
    assert read_metadata(newest_checkpoint(tmp_path / "checkpoints"))["agent_steps"] == 9
    resumed = make(tmp_path, ContinuousActionVecMockEnv, resume="auto", **sizes)
    resumed.train()
    assert resumed.counters.evaluated == 16


class CannotStart(ContinuousActionVecMockEnv):
    """Raises an error when it is made for a run, not for its task."""

    def __init__(self):
        super().__init__()
        if multiprocessing.parent_process() is not None:
            raise OSError("no licence")


def test_an_error_at_the_start_of_a_process_is_told(tmp_path):
    with pytest.raises(CollectionError) as error:
        make(tmp_path, CannotStart, workers="process", num_envs=2)
    assert str(error.value) == "environment 0 failed at the start (OSError: no licence)."
    assert "in __init__" in str(error.value.__cause__)  # the traceback of the other process
    assert not multiprocessing.active_children()


class Hangs(ContinuousActionVecMockEnv):
    """Gives no answer from its second episode on, in the process of a run."""

    resets = 0

    def _reset(self, tensordict=None):
        self.resets += 1
        if self.resets == 3:
            time.sleep(1000)
        return super()._reset(tensordict)


@pytest.mark.parametrize("workers", ["serial", "process"])
def test_an_environment_that_gives_no_answer_ends_a_run_that_can_go_on(tmp_path, workers):
    trainer = make(tmp_path, Hangs, workers=workers, env_timeout=20.0)
    trainer.patience.seconds = 3.0  # it has started by now
    with pytest.raises(CollectionError) as error:
        trainer.train()
    assert "no answer within the env_timeout of 3 seconds" in str(error.value)
    assert str(error.value).endswith(f"the run is saved, and resume={tmp_path} goes on with it.")
    assert not multiprocessing.active_children()


def test_waiting_is_said(monkeypatch, capsys):
    monkeypatch.setattr(patience, "SECONDS_BETWEEN_CALLS", 0.01)
    trainer = make(None, Hangs)
    trainer.patience.seconds = 0.5
    with pytest.raises(CollectionError, match="no answer within"):
        trainer.train()
    assert "waiting for the environments for 0.01 seconds" in capsys.readouterr().out


def test_a_plan_that_takes_long_is_not_waited_for(tmp_path):
    """A compilation on a busy machine is no environment that hangs."""
    trainer = make(tmp_path, ContinuousActionVecMockEnv, eval_episodes=1, eval_interval=16)
    plans = []

    def think(planner, tensordict):
        plans.append(signal.getitimer(signal.ITIMER_REAL)[0])
        return _plan(tensordict)

    _plan = trainer.planner.forward
    trainer.planner.forward = functools.partial(think, trainer.planner)
    waited = []
    trainer.callbacks.append(OnStep(lambda: waited.append(signal.getitimer(signal.ITIMER_REAL)[0])))
    trainer.train()
    assert len(plans) == 8 + 4 and set(plans) == {0.0}  # after the random warm-up, and evaluated
    assert len(waited) == 4 and min(waited) > 0  # the clock goes on with the environment
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert not trainer.planner._forward_hooks and not trainer.planner._forward_pre_hooks


def test_the_plan_at_the_start_is_not_waited_for(monkeypatch):
    """A message in the middle of its compilation would end it."""
    plan, clocks = TDMPC2Planner.forward, []

    def think(planner, tensordict):
        clocks.append(signal.getitimer(signal.ITIMER_REAL)[0])
        return plan(planner, tensordict)

    monkeypatch.setattr(TDMPC2Planner, "forward", think)
    make(None, ContinuousActionVecMockEnv).collector.shutdown()
    assert clocks and set(clocks) == {0.0}


class OnStep:
    def __init__(self, call):
        self.call = call

    def on_evaluation_step(self, trainer):
        self.call()


class StartsSlowly(ContinuousActionVecMockEnv):
    def __init__(self):
        time.sleep(0.1)
        super().__init__()


def test_waiting_for_a_start_says_how_many_are_ready(monkeypatch, capsys):
    monkeypatch.setattr(patience, "SECONDS_BETWEEN_CALLS", 0.01)
    make(None, StartsSlowly, num_envs=2).collector.shutdown()
    assert "(1 of 2 are ready)" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [0, -1, math.inf, math.nan])
def test_a_timeout_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match=f"env_timeout is {bad}; it must be positive"):
        make(None, Hangs, env_timeout=bad)


def test_without_a_folder_nothing_is_said_to_be_saved():
    with pytest.raises(CollectionError) as error:
        make(None, Overheats).train()
    said = "environment 0 failed after agent step 11 (RuntimeError: the motor is hot)."
    assert str(error.value) == said


class StaysOpen(Collector):
    """One that does not shut down when its environments fail."""

    def __iter__(self):
        yield from self.iterator()


@pytest.mark.parametrize("kind", [Collector, StaysOpen])
def test_environments_that_failed_in_a_step_are_not_saved(tmp_path, monkeypatch, kind):
    """Those of DMControl can tell their state, but not whether they took the step."""

    def begin(**settings):
        task = load_task("dmcontrol", "cartpole-swingup", episode_length=4)
        sizes = {"model": MODEL, "steps": 16, "seed_steps": 8, "eval_episodes": 0}
        return OnlineTrainer(task, output_dir=tmp_path, **sizes, **settings)

    monkeypatch.setattr(parts, "Collector", kind)
    trainer, step = begin(), SerialEnv._step

    def failing_step(self, tensordict):
        if trainer.counters.agent_steps == 11:
            raise RuntimeError("the motor is hot")
        return step(self, tensordict)

    with monkeypatch.context() as patch:
        patch.setattr(SerialEnv, "_step", failing_step)
        with pytest.raises(CollectionError, match=r"after agent step 11 .*the motor is hot"):
            trainer.train()
    resumed = begin(resume="auto")
    resumed.train()
    assert (resumed.num_truncated_episodes, resumed.replay.num_steps) == (1, 16)
