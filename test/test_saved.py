"""What a checkpoint holds: all that changes in a run, each part as it was."""

from __future__ import annotations

import random
import re
import shutil

import numpy as np
import pytest
import runs
import torch
from torchrl.checkpoint import Checkpoint, GlobalRNGState

from torchrl_tdmpc.checkpoints import newest_checkpoint, read_metadata
from torchrl_tdmpc.recording import plots

SMALL = [
    *("env.episode_length=5", "train.seed_steps=10", "train.steps=18", "train.batch_size=4"),
    *("eval.interval=8", "eval.episodes=1", "checkpoint.interval=50", "replay.capacity=13"),
    *("multi_gamma.enabled=true", "multi_gamma.gammas=[primary,0.9]", "multi_gamma.bootstrap=self"),
]


class Died(BaseException):
    """Ends a run before it goes on."""


class Observe:
    """Callback that keeps the state of each part at the beginning and at the last checkpoint."""

    def __init__(self, ends_at_once=False):
        self.ends_at_once = ends_at_once

    def on_begin(self, trainer):
        self.begin = states(trainer)
        if self.ends_at_once:
            raise Died

    def on_collect(self, trainer, data):
        random.random(), np.random.random()
        if trainer.counters.agent_steps == 1:
            trainer.update.loss.value_scale.value.fill_(2.0)  # from where it moves
        if trainer.counters.agent_steps == 17:
            trainer.counters.nan_values = torch.tensor(3.0)
            trainer.stop()

    def on_update(self, trainer, metrics):
        trainer.skipped_updates.add(torch.tensor(float(trainer.counters.updates == 16)))

    def on_checkpoint(self, trainer, path):
        self.saved = states(trainer)


def states(trainer):
    """The leaves of what each component says of itself, by component and path."""
    everything = {**trainer.components, "replay": trainer.replay_log, "random": GlobalRNGState()}
    everything |= {f"callback_{k}": part for k, part in trainer.callbacks.components.items()}
    return {name: dict(leaves(part.state_dict())) for name, part in everything.items()}


def leaves(state, path=""):
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, (list, tuple)):
        items = enumerate(state)
    else:
        yield path, copied(state)
        return
    for name, value in items:
        yield from leaves(value, f"{path}/{name}")


def copied(value):
    return value.detach().cpu().numpy().copy() if torch.is_tensor(value) else np.array(value)


def same(one, other):
    if one is None or other is None or one.shape != other.shape:
        return False
    return bool((one == other).all())


@pytest.fixture(scope="module", autouse=True)
def without_plots():
    """Which take longer than such a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "plot_returns", lambda *_, **__: None)
        yield


# Leaves that are the same from a run's beginning to its end, by component
CONSTANT = {
    "model_optimizer": "/param_groups/.*",  # the settings, and the numbers of the parameters
    "actor_optimizer": "/param_groups/.*",
    "multi_gamma": "/_extra_state/multi_gamma/.*",  # the discounts
    # In the middle of an episode nothing is done; of the environment, what this task leaves alone:
    # it remembers nothing across episodes, and has no limit to be compared with
    "collector": "/carried/(done|terminated|truncated|is_init)"
    "|/environments/0/((model|task|buffers)/.*|random/[0134]|reset_next_step|limit)"
    "|/memory"
    "|/collector_progress/.*",  # in TorchRL's next series: of a collector with a replay of its own
    "counters": "/utd",  # a setting
    "replay": "/replay/(capacity|origin|num_short_episodes|frames/.*)",
    "random": "/(python|numpy)/.*",
}
# Leaves that have gone on: the clock, and the number of the next trajectory
GOES_ON = {"record": {"/seconds", "/paused"}, "collector": {"/traj_pool/traj_id"}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run in the middle of an episode, after its ring has wrapped: folder and states."""
    folder, observe = tmp_path_factory.mktemp("saved"), Observe()
    runs.run(folder, *SMALL, callbacks=[observe])
    return folder, observe.begin, observe.saved


def test_a_checkpoint_holds_every_part_and_each_has_changed(saved):
    folder, begin, end = saved
    manifest = Checkpoint.manifest(newest_checkpoint(folder / "checkpoints"))
    assert manifest["components"].keys() == end.keys()
    for name, state in end.items():
        unchanged = {path for path in state if same(state[path], begin[name].get(path))}
        constant = {path for path in unchanged if re.fullmatch(CONSTANT.get(name, ""), path)}
        assert unchanged - constant == set(), name
        assert unchanged != state.keys(), name


def test_every_part_comes_back_as_it_was(saved, tmp_path):
    folder, _, end = saved
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    resumed = Observe(ends_at_once=True)
    with pytest.raises(Died):
        runs.run(tmp_path, *SMALL, "resume=auto", callbacks=[resumed])
    for name, state in end.items():
        found = resumed.begin[name]
        other = {p for p in {*state, *found} if not same(state.get(p), found.get(p))}
        assert other == GOES_ON.get(name, set()), name
        assert all(found[path] > 0 for path in other)


KEPT = [*SMALL, "train.steps=33", "checkpoint.interval=4", "checkpoint.keep=4"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run that kept its checkpoints since its ring wrapped: folder, tables and weights."""
    folder = tmp_path_factory.mktemp("kept")
    trainer, *_ = runs.run(folder, *KEPT)
    return folder, tables(folder), trainer.update.loss.state_dict()


def tables(folder):
    return [runs.without_times(runs.rows(folder / name)) for name in ("train.csv", "eval.csv")]


@pytest.mark.parametrize("index", range(3))
def test_a_run_goes_on_from_each_checkpoint_that_is_kept(kept, tmp_path, index):
    folder, table, weights = kept
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    paths = sorted((tmp_path / "checkpoints").glob("checkpoint-*"))
    steps = [read_metadata(path)["agent_steps"] for path in paths]
    assert steps == [24, 28, 32, 33] and min(steps) > 13  # the ring's size
    torch.manual_seed(1234)  # as in another process
    trainer, *_ = runs.run(tmp_path, *KEPT, f"resume={paths[index]}")
    assert tables(tmp_path) == table
    resumed = trainer.update.loss.state_dict()
    assert all(torch.equal(resumed[name], weight) for name, weight in weights.items())
