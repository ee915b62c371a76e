"""Actors beside the learner: what arrives, what they act with, and how they end."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal

import pytest
import torch
from runs import configure, rows, run
from torchrl.testing.mocking_classes import ContinuousActionVecMockEnv

from torchrl_tdmpc import OnlineTrainer, TDMPC2Planner
from torchrl_tdmpc.checkpoints import newest_checkpoint, read_metadata
from torchrl_tdmpc.cli.settings import settle
from torchrl_tdmpc.envs import make_task
from torchrl_tdmpc.modules import MODEL_SIZES, make_networks
from torchrl_tdmpc.trainers import Actors, CollectionError, NoAnswerError, Patience
from torchrl_tdmpc.trainers.agent import build_networks
from torchrl_tdmpc.trainers.parts import make_loss, make_planner

MODEL = {"enc_dim": 16, "mlp_dim": 16, "latent_dim": 16}
ASYNC = ("collector.mode=async", "env.num_envs=2", "collector.actors=2")


class Counts(ContinuousActionVecMockEnv):
    """Observes how often it was stepped, and where its process is."""

    steps = 0

    def _step(self, tensordict):
        self.steps += 1
        data = super()._step(tensordict)
        data["observation"] = torch.full_like(data["observation"], self.steps)
        data["observation"][..., 0] = os.getpid()
        return data


class Overheats(Counts):
    """Raises an error in its seventh step."""

    def _step(self, tensordict):
        if self.steps == 6:
            raise RuntimeError("the motor is hot.\nIt has to cool down.")
        return super()._step(tensordict)


class CannotStart(ContinuousActionVecMockEnv):
    """Raises an error when it is made in another process than a test's."""

    may_start = False

    def __init__(self):
        super().__init__()
        if not self.may_start:
            raise OSError("no licence")


class Hangs(Counts):
    """Never answers from its seventh step on."""

    def _step(self, tensordict):
        if self.steps == 6:
            signal.pause()
        return super()._step(tensordict)


def mock_task(environment, episode_length=4):
    return make_task(environment, episode_length=episode_length, observation_keys=["observation"])


def make(output_dir, environment, *, num_actors=2, num_envs=2, callbacks=(), **settings):
    """A trainer with actors, on tiny networks."""
    task = mock_task(environment)
    torch.manual_seed(0)
    loss = make_loss(task, build_networks(task, MODEL), torch.device("cpu"))
    planner = make_planner(loss)
    planner.mpc = False  # fast
    actors = Actors(
        task, planner, num_envs=num_envs, num_actors=num_actors, sync_interval=3, random_steps=8
    )
    sizes = {"steps": 40, "seed_steps": 8, "eval_episodes": 0, "num_envs": num_envs}
    return OnlineTrainer(
        task,
        output_dir=output_dir,
        loss=loss,
        planner=planner,
        collector=actors,
        callbacks=callbacks,
        **{**sizes, **settings},
    )


class Steps:
    """Notes what arrives, and how far the updates are then."""

    def __init__(self):
        self.seen, self.updates, self.lags, self.collected_lag = [], [], [], None

    def on_collect(self, trainer, data):
        self.seen.append(data["next", "observation"].reshape(-1, 7)[:, :2].long())
        self.updates.append((trainer.counters.agent_steps, trainer.counters.updates))
        self.collected_lag = trainer.counters.updates - data["weights_updates"].float().mean()

    def on_update(self, trainer, metrics):
        self.lags.append((self.collected_lag, metrics["policy_lag"]))


def test_steps_arrive_once_updates_keep_their_ratio_and_the_lag_is_counted(tmp_path):
    noted = Steps()
    sizes = {"num_envs": 4, "seed_steps": 20, "steps": 60, "utd": 0.5}
    trainer = make(tmp_path, Counts, callbacks=[noted], **sizes)
    trainer.train()
    by_process = {}
    for pid, step in torch.cat(noted.seen).tolist():
        by_process.setdefault(pid, []).append(step)
    assert len(by_process) == 2 and os.getpid() not in by_process
    for steps in by_process.values():  # of two environments that are stepped together
        assert steps == [1 + number // 2 for number in range(len(steps))]
    assert trainer.counters.agent_steps == 60 == trainer.replay.num_steps
    for agent_steps, updates in noted.updates:
        # Those that just arrived, of one actor, have not been learned from
        assert updates == (0 if agent_steps - 2 < 20 else (agent_steps - 2) // 2)
    assert trainer.counters.updates == 30
    assert not multiprocessing.active_children()

    expected, metric = (torch.tensor(column) for column in zip(*noted.lags, strict=True))
    assert torch.equal(expected, metric)
    # How large it is depends on which actor is the faster one
    assert metric.min() >= 0 and metric[14:].max() > 0
    assert float(rows(tmp_path / "train.csv")[-1]["policy_lag"]) > 0


def test_weights_arrive_at_every_actor():
    """The policy's bias decides its action."""
    task = mock_task(Counts)
    planner = TDMPC2Planner(*make_networks((7,), 7, MODEL_SIZES[1]), discount=0.9, mpc=False)
    actors = Actors(task, planner, num_envs=2, num_actors=2, random_steps=0)
    steps = iter(actors)

    def actions(bias):
        head = [m for m in planner.policy_prior.modules() if hasattr(m, "out_features")][-1]
        with torch.no_grad():
            head.weight.zero_()
            head.bias.zero_()
            head.bias[:7] = bias
            head.bias[7:] = -100  # of the standard deviation
        actors.send(planner, updates=round(bias * 10))
        under_way, later = set(), {}
        while len(later) < 2:  # until each actor has sent one that it began later
            data = next(steps)
            actor = data["next", "observation"][0, 0, 0].item()
            if actor in under_way:
                later[actor] = data
            under_way.add(actor)
        return torch.cat([*later.values()])

    try:
        for bias in (0.5, -1.0):
            data = actions(bias)
            assert data["weights_updates"].unique().tolist() == [round(bias * 10)]
            assert len(data["next", "observation"][..., 0].unique()) == 2
            assert torch.allclose(data["action"], torch.tensor(bias).tanh(), atol=1e-3)
    finally:
        actors.shutdown()


def test_an_error_in_an_actor_ends_a_run_that_can_go_on(tmp_path):
    trainer = make(tmp_path, Overheats)
    with pytest.raises(CollectionError) as error:
        trainer.train()
    sentence = str(error.value)
    steps = trainer.counters.agent_steps
    assert sentence in [
        f"actor {number} failed after agent step {steps} (RuntimeError: the motor is hot); the run "
        f"is saved, and resume={tmp_path} goes on with it."
        for number in (0, 1)
    ]
    assert "in _step" in str(error.value.__cause__)  # the traceback of the other process
    assert not multiprocessing.active_children()
    assert read_metadata(newest_checkpoint(tmp_path / "checkpoints"))["agent_steps"] == steps

    resumed = make(tmp_path, Counts, resume="auto")
    resumed.train()
    assert (resumed.counters.agent_steps, resumed.counters.updates) == (40, 40)
    assert resumed.replay.num_steps == 40 and resumed.num_truncated_episodes > 0


def test_an_actor_that_is_killed_ends_a_run_that_can_go_on(tmp_path):
    class Kill:
        def on_collect(self, trainer, data):
            if trainer.counters.agent_steps == 13:
                trainer.collector.procs[1].kill()

    trainer = make(tmp_path, Counts, callbacks=[Kill()])
    with pytest.raises(CollectionError, match=r"^the processes of the environments ended after"):
        trainer.train()
    assert not multiprocessing.active_children()
    resumed = make(tmp_path, Counts, resume="auto")
    resumed.train()
    assert resumed.counters.updates == 40


def test_an_actor_that_gives_no_answer_ends_a_run(tmp_path):
    trainer = make(tmp_path, Hangs)
    trainer.patience.seconds = 3.0  # the actors have started by now
    with pytest.raises(CollectionError, match="no answer within the env_timeout of 3 seconds"):
        trainer.train()
    assert not multiprocessing.active_children()


def test_an_error_at_the_start_is_told(monkeypatch):
    monkeypatch.setattr(CannotStart, "may_start", True)
    with pytest.raises(CollectionError) as error:
        make(None, CannotStart, num_actors=1)
    assert str(error.value) == "actor 0 failed at the start (OSError: no licence)."
    assert not multiprocessing.active_children()


def test_threads_are_divided_and_given_back(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(7)
        task = mock_task(Counts)
        planner = TDMPC2Planner(*make_networks((7,), 7, MODEL_SIZES[1]), discount=0.9)
        actors = Actors(task, planner, num_envs=2, num_actors=2, random_steps=0)
        assert (torch.get_num_threads(), actors.num_sub_threads) == (3, 2)
        actors.shutdown()
        assert torch.get_num_threads() == 7
        torch.set_num_threads(1)
        del actors
        gc.collect()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


class Begins:
    """Notes where episodes begin."""

    def __init__(self):
        self.states = []

    def on_collect(self, trainer, data):
        self.states += data["observation"][data["step_count"].squeeze(-1) == 0]


def test_a_command_with_actors_goes_on_with_episodes_of_its_own(tmp_path):
    """In a resumed run nothing begins where the run began."""
    begun, gone_on = Begins(), Begins()
    trainer, train, evaluation = run(tmp_path, *ASYNC, callbacks=[begun])
    assert [int(row["agent_steps"]) for row in evaluation][-1] == 40
    num_open = len(begun.states) - len(train)
    resumed = (*ASYNC, "resume=auto", "train.steps=80")
    trainer, train, _ = run(tmp_path, *resumed, callbacks=[gone_on])
    assert trainer.num_truncated_episodes == num_open
    assert (trainer.counters.agent_steps, trainer.counters.updates) == (80, 80)
    states = torch.stack([*begun.states, *gone_on.states])
    assert len(begun.states) >= 4 and len(gone_on.states) >= 4
    assert len(states.unique(dim=0)) == len(states)


REFUSED = {
    "collector.mode is 'fast'; ": ("collector.mode=fast",),
    "collector.actors is 2, which has no effect with collector.mode=sync; leave it out.": (
        "collector.actors=2",
    ),
    "collector.sync_interval is 5, which has no effect with collector.mode=sync; leave it out.": (
        "collector.sync_interval=5",
    ),
    "collector.actors is 2, but env.num_envs is 3; it must divide their number.": (
        *("collector.mode=async", "collector.actors=2", "env.num_envs=3", "train.seed_steps=30"),
    ),
    "env.workers is 'process'; with collector.mode=async the environments of an actor share its "
    "process: choose serial.": ("collector.mode=async", "env.workers=process"),
    "collector.sync_interval is 0; it must be at least 1.": (
        *("collector.mode=async", "collector.sync_interval=0"),
    ),
}


@pytest.mark.parametrize("said", REFUSED)
def test_settings_that_do_not_fit_are_refused(said):
    with pytest.raises(ValueError) as error:
        settle(configure(*REFUSED[said]))
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_actors": 3}, "num_actors is 3, but there are 2 environments; it must divide"),
        ({"num_actors": 0}, "num_actors is 0, but there are 2 environments; it must divide"),
        ({"sync_interval": 0}, "sync_interval is 0; it must be at least 1."),
    ],
)
def test_the_class_refuses_them_too(settings, said):
    planner = TDMPC2Planner(*make_networks((7,), 7, MODEL_SIZES[1]), discount=0.9)
    with pytest.raises(ValueError, match=f"^{said}"):
        Actors(mock_task(Counts), planner, **{"num_envs": 2, "random_steps": 0, **settings})


def test_the_alarm_is_none_that_a_collector_catches():
    with Patience(0.01) as patience, pytest.raises(NoAnswerError) as error, patience.waiting():
        signal.pause()
    assert not isinstance(error.value, TimeoutError)
