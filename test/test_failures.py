"""Environments that raise an error: the run ends in one sentence, is saved, and goes on later."""

from __future__ import annotations

import traceback

import pytest
from torchrl.collectors import Collector
from torchrl.envs import SerialEnv
from torchrl.testing.mocking_classes import ContinuousActionVecMockEnv

from torchrl_tdmpc import OnlineTrainer
from torchrl_tdmpc.checkpoints import newest_checkpoint, read_metadata
from torchrl_tdmpc.envs import load_task, make_task
from torchrl_tdmpc.trainers import CollectionError, online

MODEL = {"enc_dim": 16, "mlp_dim": 16, "latent_dim": 16}


class Overheats(ContinuousActionVecMockEnv):
    """Raises an error in its twelfth step."""

    steps = 0

    def _step(self, tensordict):
        self.steps += 1
        if self.steps == 12:
            raise RuntimeError("the motor is hot.\nIt has to cool down.")
        return super()._step(tensordict)


def make(output_dir, environment, **settings):
    task = make_task(environment, episode_length=4, observation_keys=["observation"])
    sizes = {"model": MODEL, "steps": 16, "seed_steps": 8, "eval_episodes": 0}
    return OnlineTrainer(task, output_dir=output_dir, **sizes, **settings)


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ("serial", "the environments failed after agent step 11 (RuntimeError: the motor is hot);"),
        ("process", "the processes of the environments ended after agent step 11 (RuntimeError: "),
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


def test_without_a_folder_nothing_is_said_to_be_saved():
    with pytest.raises(CollectionError) as error:
        make(None, Overheats).train()
    said = "the environments failed after agent step 11 (RuntimeError: the motor is hot)."
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

    monkeypatch.setattr(online, "Collector", kind)
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
