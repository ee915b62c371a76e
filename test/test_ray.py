"""Actors in a Ray cluster on this machine; ``make test-ray`` installs Ray and runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import configure, rows, run
from test_actors import Begins, CannotStart, Counts, Overheats, mock_task

from torchrl_tdmpc import OnlineTrainer
from torchrl_tdmpc.cli.settings import settle
from torchrl_tdmpc.trainers import CollectionError
from torchrl_tdmpc.trainers.agent import build_networks
from torchrl_tdmpc.trainers.parts import make_loss, make_planner

MODEL = {"enc_dim": 16, "mlp_dim": 16, "latent_dim": 16}
RAY = ("collector.mode=ray", "env.num_envs=2", "collector.actors=2")


@pytest.fixture(scope="module")
def ray():
    """A cluster with as many cores as the actors of a test ask for."""
    ray = pytest.importorskip("ray")
    ray.init(
        num_cpus=4,
        log_to_driver=False,
        logging_level="error",
        include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
    )
    yield ray
    ray.shutdown()


def make(output_dir, environment, *, callbacks=(), **settings):
    """A trainer with two actors of an environment each, on tiny networks."""
    from torchrl_tdmpc.trainers.ray_actors import RayActors

    task = mock_task(environment)
    torch.manual_seed(0)
    loss = make_loss(task, build_networks(task, MODEL), torch.device("cpu"))
    planner = make_planner(loss)
    planner.mpc = False  # fast
    actors = RayActors(task, planner, num_envs=2, num_actors=2, sync_interval=3, random_steps=8)
    sizes = {"steps": 40, "seed_steps": 8, "eval_episodes": 0, "num_envs": 2}
    return OnlineTrainer(
        task,
        output_dir=output_dir,
        loss=loss,
        planner=planner,
        collector=actors,
        callbacks=callbacks,
        **{**sizes, **settings},
    )


def test_a_run_learns_with_weights_that_arrive_and_goes_on_with_new_episodes(ray, tmp_path):
    begun, gone_on = Begins(), Begins()
    trainer, train, _ = run(tmp_path, *RAY, callbacks=[begun])
    assert (trainer.counters.agent_steps, trainer.counters.updates) == (40, 40)
    assert trainer.replay.num_steps + trainer.replay.num_pending >= 40
    num_open = len(begun.states) - len(train)
    resumed = (*RAY, "resume=auto", "train.steps=80")
    trainer, _, _ = run(tmp_path, *resumed, callbacks=[gone_on])
    assert trainer.num_truncated_episodes == num_open
    assert (trainer.counters.agent_steps, trainer.counters.updates) == (80, 80)
    assert float(rows(tmp_path / "train.csv")[-1]["policy_lag"]) > 0
    states = torch.stack([*begun.states, *gone_on.states])
    assert len(states.unique(dim=0)) == len(states)


def test_an_error_in_an_actor_ends_a_run_that_can_go_on(ray, tmp_path):
    with pytest.raises(CollectionError) as error:
        make(tmp_path, Overheats).train()
    sentence = str(error.value)
    assert sentence.startswith(("actor 0 failed after agent step", "actor 1 failed after"))
    assert "(RuntimeError: the motor is hot); the run is saved, and resume=" in sentence
    assert "in _step" in str(error.value.__cause__)


def test_an_actor_that_is_killed_ends_a_run(ray, tmp_path):
    class Kill:
        def on_collect(self, trainer, data):
            if trainer.counters.agent_steps == 13:
                ray.kill(trainer.collector.remote_collectors[1])

    with pytest.raises(CollectionError, match=r"^actor 1 failed after .* \(its process ended\)"):
        make(tmp_path, Counts, callbacks=[Kill()]).train()


def test_an_error_at_the_start_is_told(ray, monkeypatch):
    monkeypatch.setattr(CannotStart, "may_start", True)
    with pytest.raises(CollectionError) as error:
        make(None, CannotStart)
    assert str(error.value) == "an actor failed at the start (OSError: no licence)."


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError) as error:
        settle(configure(*RAY))
    assert str(error.value) == "collector.mode=ray needs ray: pip install 'torchrl_tdmpc[ray]'"
