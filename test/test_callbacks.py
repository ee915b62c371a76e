"""What a run tells its callbacks, and what they may do."""

from __future__ import annotations

import threading

import pytest
import runs

from torchrl_tdmpc import OnlineTrainer
from torchrl_tdmpc.envs import load_task
from torchrl_tdmpc.trainers import Callbacks

MODEL = {"enc_dim": 16, "mlp_dim": 16, "latent_dim": 16}


def make(**settings):
    """Episodes of 4 agent steps, of which the first two are random."""
    task = load_task("dmcontrol", "cartpole-swingup", episode_length=4)
    defaults = {"model": MODEL, "steps": 10, "seed_steps": 8, "eval_interval": 10}
    return OnlineTrainer(task, **{**defaults, "eval_episodes": 1, **settings})


class Recorder:
    def __init__(self):
        self.events = []

    def __getattr__(self, name):
        if name not in Callbacks.EVENTS:
            raise AttributeError(name)
        return lambda trainer, *what: self.events.append(name)


class Count:
    """Callback with a state."""

    def __init__(self):
        self.updates = 0

    def on_update(self, trainer, metrics):
        self.updates += 1

    def state_dict(self):
        return {"updates": self.updates}

    def load_state_dict(self, state):
        self.updates = state["updates"]


class Metric:
    metric_names = ("twice_the_updates",)

    def on_update(self, trainer, metrics):
        metrics["twice_the_updates"] = 2.0 * metrics["loss_value"].new_tensor(
            trainer.counters.updates
        )


class StopAt:
    def __init__(self, agent_steps):
        self.agent_steps = agent_steps

    def on_collect(self, trainer, data):
        if trainer.counters.agent_steps == self.agent_steps:
            trainer.stop()


def test_events_come_in_their_order(tmp_path):
    recorder = Recorder()
    make(output_dir=tmp_path, callbacks=[recorder]).train()
    collect, episode = ["on_collect"], ["on_episode"]
    warm_up = 2 * (4 * collect + episode)
    learning = 8 * ["on_update"] + collect + ["on_update"] + collect + ["on_update"]
    evaluation = ["on_evaluation_begin", *4 * ["on_evaluation_step"], "on_evaluation"]
    saving = ["on_checkpoint"]
    expected = ["on_begin", *saving, *warm_up, *learning, *evaluation, *saving, "on_end"]
    assert recorder.events == expected


def test_what_listens_to_nothing_is_refused():
    with pytest.raises(TypeError, match=r"dict is no callback; .* on_begin, on_collect"):
        Callbacks([{}])


def test_metrics_of_a_callback_are_columns(tmp_path):
    make(output_dir=tmp_path, callbacks=[Metric()], steps=12).train()
    table = runs.rows(tmp_path / "train.csv")
    assert [row["twice_the_updates"] for row in table[:2]] == ["", ""]
    # Updates 1 to 11 lie between the second episode's end and the third's
    assert float(table[2]["twice_the_updates"]) == pytest.approx(sum(range(2, 23, 2)) / 11)


def test_metrics_of_a_callback_that_comes_late_are_refused(tmp_path):
    trainer = make(output_dir=tmp_path)
    trainer.callbacks.append(Metric())
    with pytest.raises(ValueError, match=r"metric_names \['twice_the_updates'\] have no columns"):
        trainer.train()
    assert trainer.counters.agent_steps == 0


@pytest.mark.parametrize("resume", ["auto", "outputs/a-run"])
def test_a_run_without_a_folder_is_not_resumed(resume):
    with pytest.raises(ValueError, match=f"resume is '{resume}', but output_dir is None"):
        make(resume=resume)


def test_a_callback_stops_a_run_that_can_go_on(tmp_path):
    trainer = make(output_dir=tmp_path, callbacks=[StopAt(9)])
    trainer.train()
    assert trainer.counters.agent_steps == 9 and trainer.is_stopping
    resumed = make(output_dir=tmp_path, resume="auto")
    resumed.train()
    assert (resumed.counters.agent_steps, resumed.counters.updates) == (10, 10)


def test_state_of_callbacks_is_saved_each_for_itself(tmp_path):
    first, second = Count(), Count()
    second.updates = 100
    make(output_dir=tmp_path, callbacks=[first, second]).train()
    assert (first.updates, second.updates) == (10, 110)
    others = Count(), Count()
    make(output_dir=tmp_path, callbacks=others, steps=11, resume="auto").train()
    assert [other.updates for other in others] == [11, 111]


def test_the_end_is_told_after_an_error(tmp_path):
    class Fail:
        def on_collect(self, trainer, data):
            raise RuntimeError("on purpose")

    recorder = Recorder()
    with pytest.raises(RuntimeError, match="on purpose"):
        make(callbacks=[recorder, Fail()]).train()
    assert recorder.events == ["on_begin", "on_collect", "on_end"]


def test_environments_are_closed_though_a_callback_fails_at_the_end():
    class Fail:
        def on_end(self, trainer):
            raise RuntimeError("on purpose")

    trainer = make(callbacks=[Fail()], steps=8)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.train()
    assert trainer.collector.closed


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make().train()
    assert list(tmp_path.iterdir()) == []


def test_a_thread_trains_without_handling_signals():
    trainer = make(eval_episodes=0)
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.counters.updates == 10
