"""Every setting of the configuration arrives where it belongs.

A setting that is added to the configuration file needs a row in wiring.py: a value that is not its
default, and the places where that value must be found.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import fields
from types import SimpleNamespace

import pytest
import runs
import torch
import yaml
from omegaconf import OmegaConf
from wiring import EXPECTED, FOLDER, ROWS, InProcesses, Wandb

from torchrl_tdmpc.checkpoints import newest_checkpoint, read_metadata
from torchrl_tdmpc.cli.parts import make_trainer, set_up_torch
from torchrl_tdmpc.cli.settings import default_settings, leaves, settle
from torchrl_tdmpc.cli.train import train
from torchrl_tdmpc.data import write_episodes
from torchrl_tdmpc.data.dataset import stored_episodes
from torchrl_tdmpc.envs import factory, make_env
from torchrl_tdmpc.modules import ModelSize
from torchrl_tdmpc.recording import loggers
from torchrl_tdmpc.trainers import build_replay, evaluate, loop


class Watch:
    """Callback that keeps what is gone after a run."""

    def __init__(self, run):
        self.run = run

    def on_begin(self, trainer):
        self.run.threads = torch.get_num_threads()
        self.run.matmul_precision = torch.get_float32_matmul_precision()
        self.run.encoder = copy.deepcopy(trainer.update.loss.world_model.encoder.state_dict())

    def on_collect(self, trainer, data):
        if trainer.counters.agent_steps == len(data):
            self.run.first_states = data["observation"][:, 0].clone()

    def on_update(self, trainer, metrics):
        self.run.updates_at.append(trainer.counters.agent_steps)


def configured(name, folder, **others):
    """The configuration of one composition."""
    config = runs.configure()
    values = {key: row[0] for key, row in ROWS[name].items()} | {"output_dir": FOLDER} | others
    for key, value in values.items():
        OmegaConf.update(config, key, str(folder) if value == FOLDER else value)
    return config


def composed(name, folder, **others):
    return SimpleNamespace(
        folder=folder, trainer=runs.make(configured(name, folder, **others)), updates_at=[]
    )


def check(name, run):
    """Every value of a composition is where its row says."""
    rows = ROWS[name]
    folder = str(run.folder)
    expected = {k: [folder if v == FOLDER else v] * len(p) for k, (v, *p) in rows.items()}
    found = {key: [place(run) for place in places] for key, (_, *places) in rows.items()}
    wrong = {key: found[key] for key in rows if found[key] != expected[key]}
    assert wrong == {}, wrong


def test_every_setting_has_a_row_with_another_value_than_its_default():
    defaults = dict(leaves(default_settings()))
    assert EXPECTED.keys() - defaults.keys() == set(), "rows without a setting"
    assert defaults.keys() - EXPECTED.keys() == set(), "settings without a row"
    assert [key for key, value in EXPECTED.items() if value == defaults[key]] == []
    assert all(len(row) > 1 for rows in ROWS.values() for row in rows.values())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = SimpleNamespace(folder=tmp_path_factory.mktemp("trained"), updates_at=[], evaluations=[])

    def evaluated(policy, task, **settings):
        run.evaluations.append({"task": task, **settings})
        return evaluate(policy, task, **settings)

    def compose(config, task):
        trainer = make_trainer(config, task)
        trainer.callbacks.append(Watch(run))
        return trainer

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", evaluated)
        run.trainer = train(configured("trained", run.folder), compose)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    return run


def test_settings_arrive_in_a_run_and_in_its_files(trained):
    check("trained", trained)
    in_yaml = dict(leaves(yaml.safe_load((trained.folder / "config.yaml").read_text())))
    in_checkpoint = dict(leaves(read_metadata(newest(trained))["config"]))
    expected = {key: row[0] for key, row in ROWS["trained"].items()}
    expected["output_dir"] = str(trained.folder)
    for recorded in (in_yaml, in_checkpoint):
        assert {key: recorded[key] for key in expected} == expected


def newest(run):
    return newest_checkpoint(run.folder / "checkpoints")


def test_how_a_run_is_computed_arrives(tmp_path, monkeypatch):
    monkeypatch.setattr(factory, "ProcessEnv", InProcesses)
    check("composed", composed("composed", tmp_path))


def test_the_size_of_the_networks_arrives(tmp_path):
    sizes = {f"model.{field.name}": None for field in fields(ModelSize)}
    check("large", composed("large", tmp_path, **sizes))


def test_pixels_arrive(tmp_path):
    run = composed("seen", tmp_path, **{"env.episode_length": 4})
    run.trainer.replay.extend(run.trainer.collector.env.rollout(4))
    check("seen", run)


@pytest.mark.parametrize("pixels", [True, False])
def test_cuda_looks_for_the_fastest_convolution_of_frames(pixels, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not pixels)
    config = runs.configure(f"env.pixels={pixels}", f"threads={torch.get_num_threads()}")
    set_up_torch(config)
    assert torch.backends.cudnn.benchmark == pixels


def test_what_wandb_is_told_arrives(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "WandbLogger", Wandb)
    check("logged", composed("logged", tmp_path, **{"logger.backend": "wandb"}))


def test_actors_arrive(tmp_path):
    run = composed("acting", tmp_path, **{"env.num_envs": 4, "train.seed_steps": 40})
    try:
        check("acting", run)
        assert run.trainer.collector.requested_frames_per_batch == 2  # of one actor
        assert run.trainer.collector.init_random_frames == 40
    finally:
        run.trainer.collector.shutdown()


def test_stored_episodes_arrive(tmp_path):
    settings = {"env.backend": "function", "env.task": "walks:Walk", "env.episode_length": 5}
    _, task = settle(configured("stored", tmp_path, **settings, **{"replay.load": None}))
    replay = build_replay(task, horizon=3, steps=5)
    replay.extend(make_env(task).rollout(5))
    write_episodes(tmp_path, stored_episodes(replay), [task.name])
    run = composed("stored", tmp_path, **settings, **{"output_dir": str(tmp_path / "run")})
    check("stored", run)


def test_what_is_learned_from_stored_episodes_arrives(tmp_path):
    data = runs.stored_walks(tmp_path)
    config = runs.configure_offline(f"output_dir={tmp_path / 'run'}", "model.task_dim=5")
    config.env.tasks, config.data = ROWS["offline"]["env.tasks"][0], str(data)
    config.env.success_key = ROWS["offline"]["env.success_key"][0]
    check("offline", SimpleNamespace(folder=tmp_path, trainer=runs.make_offline(config)))


def test_the_checkpoint_to_go_on_from_arrives(trained, tmp_path):
    folder = shutil.copytree(trained.folder, tmp_path / "copy")
    given = {key: row[0] for key, row in ROWS["trained"].items()}
    run = composed("resumed", folder, **given | {"output_dir": str(tmp_path / "elsewhere")})
    check("resumed", run)
    assert run.trainer.resume.name == newest(trained).name
