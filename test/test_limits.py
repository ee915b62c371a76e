"""Arguments that no sensible run has: refused by the class that owns them, which is named."""

from __future__ import annotations

import math

import pytest
from tiny import tiny_loss, tiny_networks, tiny_planner

from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.envs import load_task, make_env
from torchrl_tdmpc.modules import ModelSize, SymlogTwoHot, make_networks
from torchrl_tdmpc.modules import memory as memory_module
from torchrl_tdmpc.modules.memory import machine_memory
from torchrl_tdmpc.objectives import MultiGammaConfig
from torchrl_tdmpc.trainers import TDMPC2Update, build_replay

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def update(**settings):
    return TDMPC2Update(tiny_loss(), **settings)


def networks(**settings):
    return tiny_networks(**settings)


def two_hot(**settings):
    return SymlogTwoHot(**settings)


def replay(**settings):
    return EpisodeReplay(**{"capacity": 9, "horizon": 1, "batch_size": 1, **settings})


def size(**settings):
    return ModelSize(
        **{"enc_dim": 8, "mlp_dim": 8, "latent_dim": 8, "num_enc_layers": 2, "num_q": 2, **settings}
    )


@pytest.mark.parametrize(
    ("build", "name", "least", "most"),
    [
        (update, "lr", 0.0, 1),
        (update, "enc_lr_scale", -1, 1000),
        (update, "grad_clip_norm", 0.0, 1e12),
        (tiny_loss, "rho", -1, 1),
        (tiny_loss, "consistency_coef", -1, 1e6),
        (tiny_loss, "entropy_coef", -1, 1e6),
        (networks, "log_std_min", -51, 1.9),
        (networks, "log_std_max", -10, 20),
        (networks, "dropout", -0.1, 0.999),
        (two_hot, "vmin", -81, 9),
        (two_hot, "vmax", -10, 80),
        (two_hot, "num_bins", 1, 100_000),
        (tiny_planner, "max_std", 0.01, 100),
        (tiny_planner, "temperature", 0.0, 1e6),
        (tiny_planner, "num_samples", 0, 1_000_000),
        (tiny_planner, "horizon", 0, 1000),
        (tiny_planner, "iterations", 0, 1000),
        (size, "mlp_dim", 0, 2**17),
        (size, "num_enc_layers", 0, 100),
        (size, "num_q", 0, 1000),
        (replay, "batch_size", 0, 1_000_000),
        (MultiGammaConfig, "loss_weight", -1, 1e6),
    ],
)
def test_a_number_is_refused_beyond_its_ends_and_taken_at_the_upper_one(build, name, least, most):
    build(**{name: most})
    for value in (least, most + 1, math.inf, -math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"{name}\b") as error:
            build(**{name: value})
        assert "\n" not in str(error.value)


def test_a_bad_upper_limit_is_not_blamed_on_the_lower_one():
    with pytest.raises(ValueError, match=r"^max_std is -1; it must be positive and at most 100\.$"):
        tiny_planner(max_std=-1)


def test_too_many_environments_are_refused_before_one_is_made():
    task = load_task("dmcontrol", "cartpole-balance")
    with pytest.raises(ValueError, match=r"num_envs 10001 is too many; choose at most 10,000"):
        make_env(task, num_envs=10_001)


def test_what_the_machine_has_no_memory_for_is_refused_with_what_it_would_take(monkeypatch):
    monkeypatch.setattr(memory_module, "machine_memory", lambda: 16e9)
    giant = ModelSize(2**17, 2**17, 2**13, 100, 2)
    with pytest.raises(ValueError, match=r"enc_dim 131072.* would take 7,035 GB, and this .* 16\."):
        make_networks((3,), 2, giant)
    task = load_task("dmcontrol", "cartpole-balance")
    with pytest.raises(ValueError, match=r"capacity is 1,000,000,000; .* would take 30 GB"):
        build_replay(task, horizon=3, steps=10**9, capacity=10**9)
    assert build_replay(task, horizon=3, steps=10**9, capacity=10**8).capacity == 10**8


def test_the_memory_of_this_machine_is_known():
    assert 2**28 < machine_memory() < 2**50
