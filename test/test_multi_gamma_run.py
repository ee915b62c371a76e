"""Runs with and without auxiliary heads: trajectories, snapshots, checkpoints and ablations."""

from __future__ import annotations

import itertools
import json
import math
import warnings

import numpy as np
import pytest
import torch
from runs import configure, make, run, without_times
from tiny import scramble
from tiny_heads import tiny_rollout
from torchrl.checkpoint import CheckpointError

from torchrl_tdmpc.checkpoints import load_checkpoint, save_checkpoint
from torchrl_tdmpc.cli.settings import DEFAULTS
from torchrl_tdmpc.recording import take_snapshot

DISCOUNTS = [0.95, 0.97, 0.995]  # A2 in the short episodes of these runs
LABELS = ["g0.97", "g0.995"]


@pytest.fixture(scope="module")
def off(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("off")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*multi_gamma.*")
        return output_dir, *run(output_dir, "multi_gamma.enabled=false")


@pytest.fixture(scope="module")
def on(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("on")
    return output_dir, *run(output_dir, "+ablation=A2")


@pytest.fixture(scope="module")
def debug(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("debug")
    settings = ("multi_gamma.debug_logging=true", "multi_gamma.log_num_examples=3")
    trainer, *tables = run(output_dir, "+ablation=A2", *settings)
    # So short a run leaves values near zero: move them, for what is computed with them later
    torch.manual_seed(0)
    scramble([*trainer.update.loss.parameters(), *trainer.update.auxiliary[0].parameters()])
    scramble(trainer.update.loss.target_q_ensemble_params.values(True, True))
    return output_dir, trainer, *tables


@pytest.fixture
def built(tmp_path):
    """Gives the trainer of some settings."""
    number = itertools.count()  # each holds its folder
    return lambda *overrides: make(
        configure(f"output_dir={tmp_path / str(next(number))}", *overrides)
    )


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items() if k != "_extra_state"}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


# ---------------------------------------------------------------- off means off


def test_one_discount_is_off_bit_for_bit(off, tmp_path):
    with pytest.warns(UserWarning, match=r"gammas has the primary discount alone"):
        settings = ("multi_gamma.enabled=true", "multi_gamma.gammas=[primary]")
        _, train, evaluations = run(tmp_path, *settings)
    assert without_times(train) == without_times(off[2])
    assert without_times(evaluations) == without_times(off[3])
    assert float(train[-1]["loss_value"]) > 0 and len(evaluations) == 3
    for output_dir, table in ((off[0], off[2]), (tmp_path, train)):
        assert not any("aux" in column or "multi_gamma" in column for column in table[0])
        assert not (output_dir / "multi_gamma.jsonl").exists()


def test_heads_are_logged_at_every_discount(off, on):
    columns, row = list(on[2][0]), on[2][-1]
    statistics = ("aux_value_ce", "aux_value_mean", "aux_value_std")
    added = {f"{name}/{label}" for name in statistics for label in LABELS}
    added |= {"aux_value_ce/mean", "loss_multi_gamma"}
    assert set(columns) - set(off[2][0]) == added
    assert all(math.isfinite(float(row[name])) for name in added)
    cross_entropy = [float(row[f"aux_value_ce/{label}"]) for label in LABELS]
    assert float(row["aux_value_ce/mean"]) == pytest.approx(sum(cross_entropy) / 2, rel=1e-5)
    assert cross_entropy[0] < math.log(101) - 0.01  # below the uniform distribution's
    assert row["loss_value"] != off[2][-1]["loss_value"]  # the latents feel the heads


# ---------------------------------------------------------------- snapshots


def read_snapshots(output_dir):
    return [json.loads(line) for line in (output_dir / "multi_gamma.jsonl").open()]


def test_standard_snapshots_have_four_examples(on):
    snapshots = read_snapshots(on[0])
    assert [snapshot["step"] for snapshot in snapshots] == [int(row["step"]) for row in on[3]]
    for snapshot in snapshots:
        assert snapshot["gammas"] == DISCOUNTS[1:]
        assert len(snapshot["examples"]) == 4
        for one in snapshot["examples"]:
            assert set(one) == {"probability", "prediction", "target"}
            assert np.shape(one["probability"]) == (2, 101)
            np.testing.assert_allclose(np.sum(one["probability"], -1), 1, rtol=1e-5)
            assert np.shape(one["prediction"]) == np.shape(one["target"]) == (2,)


def test_snapshots_and_their_size_leave_training_bit_identical(on, debug, tmp_path):
    _, unwatched, _ = run(tmp_path, "+ablation=A2", "eval.episodes=0")
    assert without_times(on[2]) == without_times(debug[2]) == without_times(unwatched)
    assert without_times(on[3]) == without_times(debug[3])
    assert [len(snapshot["examples"]) for snapshot in read_snapshots(debug[0])] == [3, 3, 3]


def snapshot_of(trainer, **kwargs):
    update = trainer.update
    return take_snapshot(
        update.loss, update.auxiliary[0], trainer.planner, trainer.replay, seed=5, **kwargs
    )


def test_taking_a_snapshot_changes_nothing(debug):
    trainer = debug[1]
    modules = (trainer.update.loss, trainer.update.auxiliary[0])
    before, generator = [state(module) for module in modules], torch.get_rng_state()
    first, again = (snapshot_of(trainer, num_examples=3) for _ in range(2))
    assert first == again
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(same(state(module), old) for module, old in zip(modules, before, strict=True))
    # no more examples than a batch has
    assert len(snapshot_of(trainer, num_examples=50)["examples"]) == 8
    assert len(snapshot_of(trainer, num_examples=1)["examples"]) == 1


@pytest.mark.parametrize("num_examples", [None, 3])
def test_snapshot_equals_a_hand_computation(debug, num_examples):
    trainer = debug[1]
    loss, heads, planner = trainer.update.loss, trainer.update.auxiliary[0], trainer.planner
    snapshot = snapshot_of(trainer, num_examples=num_examples)
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(5)
        rollout = loss.model_loss(trainer.replay.sample()[: num_examples or 4])["rollout"]
        zeros = torch.zeros(len(rollout), planner.horizon, planner.action_dim)
        elites = planner.plan(rollout["latent"][:, 0], zeros, explore=False).elite_value.numpy()
    weight = heads.heads.params["weight"].detach().double().numpy()
    bias = heads.heads.params["bias"].detach().double().numpy()
    bins = np.linspace(-10, 10, 101)

    assert elites.std(1).min() > 1e-3
    assert len(snapshot["examples"]) == len(rollout)
    for b, one in enumerate(snapshot["examples"]):
        if num_examples is not None:
            assert one["elite_value_mean"] == pytest.approx(elites[b].mean(), rel=1e-4)
            assert one["elite_value_std"] == pytest.approx(elites[b].std(), rel=1e-4, abs=1e-6)
        for t in range(1 if num_examples is None else 3):
            latent = rollout["latent"][b, t].double().numpy()
            reward = rollout["next", "reward"][b, t].item()
            value = rollout["next", "state_value"][b, t].item()
            ended = rollout["next", "terminated"][b, t].item()
            for i, gamma in enumerate(DISCOUNTS[1:]):
                rows = slice(101 * i, 101 * (i + 1))
                share = np.exp(weight[rows] @ latent + bias[rows])
                share /= share.sum()
                mean_bin = share @ bins
                prediction = math.copysign(math.expm1(abs(mean_bin)), mean_bin)
                target = reward + gamma * (1 - ended) * value
                position = (math.copysign(math.log1p(abs(target)), target) + 10) / 0.2
                lower, upper_share = int(position), position - int(position)
                code = np.eye(101)[lower] * (1 - upper_share) + np.eye(101)[lower + 1] * upper_share
                best = np.argsort(-share)[:2]
                expected = {
                    "probability": share,
                    "prediction": prediction,
                    "target": target,
                    "absolute_error": abs(prediction - target),
                    "cross_entropy": -(code * np.log(share)).sum(),
                    "lower_bin": lower,
                    "upper_share": upper_share,
                    "top_bins": best,
                    "top_probabilities": share[best],
                }
                if num_examples is None:
                    expected = {k: expected[k] for k in ("probability", "prediction", "target")}
                    values = {k: one[k][i] for k in one}
                else:
                    del expected["probability"]
                    assert one["bootstrap"][t][0] == pytest.approx(value, rel=1e-6)
                    values = {k: one[k][t][i] for k in expected}
                for name, want in expected.items():
                    np.testing.assert_allclose(
                        values[name], want, rtol=1e-4, atol=1e-4, err_msg=name
                    )
    names = {"probability", "prediction", "target"}
    if num_examples is not None:
        names = set(expected) | {"bootstrap", "elite_value_mean", "elite_value_std"}
    assert all(set(one) == names for one in snapshot["examples"])


# ---------------------------------------------------------------- checkpoints


def components(trainer):
    learned = ("loss", "multi_gamma", "model_optimizer")
    return {name: part for name, part in trainer.components.items() if name in learned}


def test_heads_and_discounts_come_back(built, on):
    other = built("+ablation=A2", "seed=7")
    heads = on[1].update.auxiliary[0]
    assert all(value.any() for value in state(heads).values())
    metadata = load_checkpoint(on[0] / "checkpoints", components(other))
    assert metadata["config"]["multi_gamma"]["gammas"] == ["primary", 0.97, 0.995]
    assert list(other.update.auxiliary[0].gammas) == DISCOUNTS
    assert same(state(other.update.auxiliary[0]), state(heads))
    moments = other.update.model_optimizer.state
    assert all(p in moments for p in other.update.auxiliary[0].heads.parameters())


def test_target_heads_come_back(built, tmp_path):
    trainers = [built("+ablation=C1", f"seed={seed}") for seed in (1, 2)]
    source, copy = (trainer.update.auxiliary[0] for trainer in trainers)
    for tensor in state(source):
        source.state_dict()[tensor].normal_()
    save_checkpoint(tmp_path, 1, {"multi_gamma": source})
    load_checkpoint(tmp_path, {"multi_gamma": copy})
    assert sum(name.startswith("target_heads_params") for name in state(copy)) == 2
    assert same(state(copy), state(source))


@pytest.mark.parametrize("gammas", ["[primary,0.97,0.99]", "[primary,0.97]"])
def test_other_discounts_are_refused_with_both_lists(built, on, gammas):
    settings = ("multi_gamma.enabled=true", f"multi_gamma.gammas={gammas}")
    other = built(*settings)
    heads = other.update.auxiliary[0]
    before = state(heads)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(on[0] / "checkpoints", {"multi_gamma": heads})
    assert str(DISCOUNTS) in str(error.value) and str(list(heads.gammas)) in str(error.value)
    assert "multi_gamma" in str(error.value)
    assert same(state(heads), before)


def test_without_heads_a_checkpoint_loads_when_they_are_off(built, off, on):
    trainer = built("seed=7")
    parts = components(trainer)
    assert set(parts) == {"loss", "model_optimizer"} and trainer.update.auxiliary == []
    metadata = load_checkpoint(off[0] / "checkpoints", parts)
    assert metadata["config"]["multi_gamma"]["enabled"] is False
    assert same(state(trainer.update.loss), state(off[1].update.loss))
    # a run's networks load without its heads too
    load_checkpoint(on[0] / "checkpoints", {"loss": trainer.update.loss})
    assert same(state(trainer.update.loss), state(on[1].update.loss))
    # heads that a checkpoint does not have are missed by name
    heads = on[1].update.auxiliary[0]
    with pytest.raises(CheckpointError, match="multi_gamma"):
        load_checkpoint(off[0] / "checkpoints", {"multi_gamma": heads})


# ---------------------------------------------------------------- ablations


A2 = {"gammas": (0.99, 0.97, 0.995), "layout": "joint", "loss_weight": 0.5}
A2 |= {"bootstrap": "primary", "detach_latent": False}
ABLATIONS = {
    "A0": None,
    "A1": {**A2, "gammas": (0.99, 0.97)},
    "A2": A2,
    "A3": {**A2, "gammas": (0.99, 0.9, 0.95, 0.97, 0.98, 0.995)},
    "A4": {**A2, "layout": "separate"},
    "C1": {**A2, "bootstrap": "self"},
    "C2": {**A2, "gammas": (0.99, 0.99, 0.99)},
    "C3": {**A2, "detach_latent": True},
    "C4": {**A2, "loss_weight": 0.05},
}


def test_every_ablation_is_tested():
    files = (DEFAULTS.parent / "ablation").glob("*.yaml")
    assert {file.stem for file in files} == set(ABLATIONS)


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation(built, name):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*multi_gamma.*")
        trainer = built(f"+ablation={name}", "loss.discount=0.99")
    expected = ABLATIONS[name]
    if expected is None:
        assert trainer.update.auxiliary == []
        return
    (loss,) = trainer.update.auxiliary
    built = {key: getattr(loss, key) for key in expected if key != "layout"}
    assert {**built, "layout": loss.heads.layout} == expected
    assert loss.heads.num_heads == len(expected["gammas"]) - 1
    labels = [f"g{gamma:g}" for gamma in expected["gammas"][1:]]
    assert loss.labels == (["g0.99", "g0.99#2"] if name == "C2" else labels)
    assert set(loss.out_keys) <= set(trainer.update.metric_names)


@pytest.mark.parametrize("rho", [0.7, 0.3])
def test_the_heads_weigh_steps_as_the_run_does(built, rho):
    update = built("+ablation=A2", f"loss.rho={rho}").update
    heads = update.auxiliary[0]
    scramble([*update.loss.parameters(), *heads.parameters()])
    rollout = tiny_rollout()
    cross_entropy = heads.examine(rollout)["cross_entropy"]
    weights = torch.tensor([1, rho, rho**2])
    expected = 0.5 * (cross_entropy * weights[:, None]).mean((0, 1)).sum()
    torch.testing.assert_close(heads(rollout)["loss_multi_gamma"], expected)
    assert update.loss.rho == rho


def test_a_broken_rule_is_refused_before_anything_starts(built, monkeypatch):
    monkeypatch.setattr(
        "torchrl_tdmpc.trainers.parts.make_env",
        lambda *a, **k: pytest.fail("an environment was made"),
    )
    with pytest.raises(ValueError, match=r"gammas begins with 0.97.*0.95"):
        built("multi_gamma.enabled=true", "multi_gamma.gammas=[0.97,0.995]")
