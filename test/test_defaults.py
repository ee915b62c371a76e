"""Whoever builds from the library gets what the configuration file gives: the published numbers."""

from __future__ import annotations

import inspect

import pytest

from torchrl_tdmpc import (
    MultiGammaConfig,
    MultiGammaValueLoss,
    OnlineTrainer,
    TDMPC2Loss,
    TDMPC2Planner,
    TDMPC2Update,
    make_networks,
)
from torchrl_tdmpc.checkpoints import load_official
from torchrl_tdmpc.cli.settings import default_settings
from torchrl_tdmpc.envs import Task
from torchrl_tdmpc.modules import (
    MODEL_SIZES,
    PixelEncoder,
    PolicyPrior,
    QEnsemble,
    SimNorm,
    SymlogTwoHot,
    TaskContext,
)
from torchrl_tdmpc.modules.value_scale import RunningPercentileScale
from torchrl_tdmpc.trainers import build_replay, discount_heuristic

SECTIONS = {
    "model": [make_networks, load_official, SymlogTwoHot, PolicyPrior, QEnsemble],
    "loss": [TDMPC2Loss],
    "train": [TDMPC2Update, OnlineTrainer, build_replay],
    "planner": [TDMPC2Planner],
    "multi_gamma": [MultiGammaConfig, MultiGammaValueLoss],
    "replay": [build_replay],
}
# 6,000 in the configuration, for a first look on a laptop
LENGTHS = {("OnlineTrainer", "steps")}


@pytest.mark.parametrize(
    ("section", "made"), [(s, made) for s, several in SECTIONS.items() for made in several]
)
def test_a_default_is_that_of_the_configuration(section, made):
    settings = default_settings()[section]
    shared = {
        name: one.default
        for name, one in inspect.signature(made).parameters.items()
        if one.default not in (inspect.Parameter.empty, None)
        and settings.get(name, "auto") not in ("auto", None)
        and (made.__name__, name) not in LENGTHS
    }
    shared.pop("size", None)  # a number there, the numbers that it stands for here
    if shared.get("gammas") == ():
        shared["gammas"] = []
    assert shared and shared == {name: settings[name] for name in shared}


@pytest.mark.parametrize(
    ("made", "name", "published"),
    [
        (SimNorm, "dim", 8),
        (RunningPercentileScale, "tau", 0.01),
        (QEnsemble, "num_q", 5),
        (TaskContext, "embedding_dim", 96),
        (PixelEncoder, "pad", 3),
        (discount_heuristic, "maximum", 0.995),
        (Task, "discount_cap", 0.995),
        (Task, "rho", 0.5),
        (TDMPC2Loss, "rho", 0.5),
        (MultiGammaValueLoss, "rho", 0.5),
        (make_networks, "size", MODEL_SIZES[5]),
        (make_networks, "two_hot", SymlogTwoHot(101, -10.0, 10.0)),
        (OnlineTrainer, "steps", 50_000),
    ],
)
def test_further_defaults_are_the_published_ones(made, name, published):
    assert inspect.signature(made).parameters[name].default == published
