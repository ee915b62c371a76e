"""Whole runs: their files, seeds, schedule and ends."""

from __future__ import annotations

import signal
from copy import deepcopy

import pytest
import torch
import yaml
from runs import configure, make, run, without_times
from tiny import scramble, tiny_loss

from torchrl_tdmpc import OnlineTrainer, TDMPC2Planner
from torchrl_tdmpc.checkpoints import load_checkpoint
from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.envs import make_env
from torchrl_tdmpc.trainers import TDMPC2Update


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("update", "loss"), "loss is given beside update"),
        (("update", "networks"), "networks is given beside update"),
        (("update", "auxiliary"), "auxiliary is given beside update"),
        (("loss", "networks"), "networks is given beside loss"),
    ],
)
def test_a_part_that_would_be_left_out_is_refused(given, message):
    update = TDMPC2Update(tiny_loss(), [])
    parts = {
        "update": update,
        "loss": update.loss,
        "networks": (update.loss.world_model, update.loss.policy_prior, update.loss.q_ensemble),
        "auxiliary": [update.loss],
    }
    with pytest.raises(ValueError, match=message):
        OnlineTrainer(None, **{name: parts[name] for name in given})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("run")
    return output_dir, *run(output_dir)


def test_eval_csv_has_a_row_at_each_interval_and_at_the_end(finished):
    table = finished[3]
    assert list(table[0])[:3] == ["step", "reward", "seed"]
    # every 15 agent steps and at the end, in environment steps: two to an agent step
    assert [int(row["step"]) for row in table] == [30, 60, 80]
    assert all(row["seed"] == "1" and row["episodes"] == "2" for row in table)


def test_train_csv_has_every_metric_once_updates_begin(finished):
    table = finished[2]
    assert [int(row["length"]) for row in table] == [10, 10, 10, 10]
    metrics = ("return", "loss_consistency", "loss_reward", "loss_value", "loss_actor")
    metrics += ("grad_norm_model", "grad_norm_actor", "value_scale", "entropy", "nan_values")
    for name in (*metrics, "ms_per_step", "peak_memory_mib"):
        assert float(table[-1][name]) == float(table[-1][name]), name
    assert table[0]["loss_value"] == ""


def test_config_is_recorded_resolved(finished):
    config = yaml.safe_load((finished[0] / "config.yaml").read_text())
    assert config["train"]["seed_steps"] == 20
    assert config["loss"]["discount"] == 0.95
    assert config["versions"]["torchrl"]
    assert "auto" not in (config["device"], config["planner"]["iterations"])


def test_checkpoint_restores_networks_targets_and_optimisers(finished, tmp_path):
    output_dir, trainer, *_ = finished
    other = make(configure(f"output_dir={tmp_path}", "seed=7"))
    metadata = load_checkpoint(
        output_dir / "checkpoints",
        {"loss": other.update.loss, "model_optimizer": other.update.model_optimizer},
    )
    assert metadata["agent_steps"] == 40
    ours, theirs = other.update.loss.state_dict(), trainer.update.loss.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any("target" in name for name in ours)
    steps = {int(s["step"]) for s in other.update.model_optimizer.state.values()}
    assert steps == {40}


def test_the_plot_is_drawn(finished):
    assert (finished[0] / "returns.png").read_bytes().startswith(b"\x89PNG")


def test_evaluation_leaves_training_bit_identical(finished, tmp_path):
    _, without_evaluation, evaluations = run(tmp_path / "a", "eval.episodes=0")
    assert evaluations == []
    assert without_times(without_evaluation) == without_times(finished[2])


def test_seeds_make_runs(finished, tmp_path):
    _, again, evaluations = run(tmp_path / "a")
    assert without_times(again) == without_times(finished[2])
    assert without_times(evaluations) == without_times(finished[3])
    _, other, _ = run(tmp_path / "b", "seed=2")
    assert other[-1]["loss_value"] != finished[2][-1]["loss_value"]


def test_another_seed_begins_from_other_weights(tmp_path):
    def weights(seed):
        trainer = make(configure(f"output_dir={tmp_path}", f"seed={seed}"))
        return dict(trainer.update.loss.named_parameters())

    first, again, other = (weights(seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name, weight in first.items() if len(weight.unique()) > 1]  # not the biases
    parts = ("encoder", "dynamics", "reward_head", "policy_prior", "q_ensemble")
    assert all(any(part in name for name in drawn) for part in parts)
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_another_seed_begins_from_other_states(tmp_path):
    def first_observations(seed):
        trainer = make(configure(f"output_dir={tmp_path}", f"seed={seed}", "env.num_envs=2"))
        torch.manual_seed(0)
        return next(iter(trainer.collector))["observation"]

    first, again, other = (first_observations(seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert len(torch.cat([first, other]).flatten(0, 1).unique(dim=0)) == 4


def test_the_planner_acts_once_the_random_warm_up_is_over(tmp_path, monkeypatch):
    trainer = make(configure(f"output_dir={tmp_path}", "eval.episodes=0", "train.steps=22"))
    plan, planned_at = TDMPC2Planner.forward, []

    def seen_plan(self, tensordict):
        planned_at.append(trainer.replay.num_steps)
        return plan(self, tensordict)

    monkeypatch.setattr(TDMPC2Planner, "forward", seen_plan)
    trainer.train()
    assert planned_at == [20, 21]


def test_the_settings_of_optimisation_reach_the_update(tmp_path):
    optimisation = ("lr=0.01", "enc_lr_scale=0.5", "grad_clip_norm=0.125", "tau=0.25")
    heads = ("enabled=true", "gammas=[primary,0.9]", "bootstrap=self")
    overrides = [f"train.{one}" for one in optimisation] + [f"multi_gamma.{one}" for one in heads]
    trainer = make(configure(f"output_dir={tmp_path}", *overrides))
    update, task = trainer.update, trainer.task
    losses = (update.loss, *update.auxiliary)
    assert len(losses) == 2
    for loss in losses:
        scramble(loss.parameters())
    before = [deepcopy(loss.state_dict()) for loss in losses]
    metrics = update(make_env(task, num_envs=8, seed=0).rollout(3))

    optimizers = {"model": update.model_optimizer, "actor": update.actor_optimizer}
    groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    encoder = [rates.pop(parameter) for parameter in update.loss.world_model.encoder.parameters()]
    assert set(encoder) == {0.005} and set(rates.values()) == {0.01}
    for name, optimizer in optimizers.items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])
        assert metrics[f"grad_norm_{name}"] > 0.25
        assert gradient.norm().item() == pytest.approx(0.125, rel=1e-4)
    for loss, old in zip(losses, before, strict=True):
        new = loss.state_dict()
        targets = [name for name in new if name.startswith("target_")]
        assert targets
        for name in targets:
            online = new[name.removeprefix("target_")]
            torch.testing.assert_close(new[name], old[name].lerp(online, 0.25), msg=name)
            assert not torch.equal(new[name], old[name]), name


def test_as_many_updates_as_agent_steps_with_several_environments(tmp_path, monkeypatch):
    updates_at = []
    agent_steps = {"now": 0}
    extend, update = EpisodeReplay.extend, TDMPC2Update.__call__

    def counting_extend(self, data):
        agent_steps["now"] += data.numel()
        return extend(self, data)

    def counting_update(self, *arguments):
        updates_at.append(agent_steps["now"])
        return update(self, *arguments)

    monkeypatch.setattr(EpisodeReplay, "extend", counting_extend)
    monkeypatch.setattr(TDMPC2Update, "__call__", counting_update)
    overrides = ("env.num_envs=3", "train.seed_steps=30", "train.steps=40")
    _, table, _ = run(tmp_path, "eval.episodes=0", *overrides)
    # 30 agent steps of the random warm-up, then 3 at a time until 40 are reached
    assert updates_at == [30] * 30 + [33] * 3 + [36] * 3 + [39] * 3 + [42] * 3
    assert [int(row["agent_steps"]) for row in table] == [30, 30, 30]


def test_an_interrupt_ends_a_run_with_everything_written(tmp_path, monkeypatch):
    sample, calls = EpisodeReplay.sample, []

    def interrupted_sample(self):
        calls.append(1)
        if len(calls) == 25:  # five updates after the twenty of the random warm-up
            signal.raise_signal(signal.SIGINT)
        return sample(self)

    monkeypatch.setattr(EpisodeReplay, "sample", interrupted_sample)
    trainer, table, evaluations = run(tmp_path)
    assert len(calls) == 25
    assert len(table) == 2 and len(evaluations) == 1
    assert (tmp_path / "returns.png").exists() and (tmp_path / "config.yaml").exists()
    metadata = load_checkpoint(tmp_path / "checkpoints", {"loss": trainer.update.loss})
    assert metadata["agent_steps"] == 25


def test_wandb_runs_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(tmp_path, "logger.backend=wandb", "eval.episodes=0", "train.steps=20")
    assert list(tmp_path.glob("**/offline-run-*/*.wandb"))
