"""The settings of the auxiliary heads: every broken rule has its sentence."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import yaml

from torchrl_tdmpc import MultiGammaConfig

CONFIG = Path(__file__).parents[1] / "torchrl_tdmpc/cli/config"
SET = ["primary", 0.97, 0.995]


def broken(gammas=SET, primary=0.99, **kwargs):
    """The message that a configuration is refused with."""
    with pytest.raises(ValueError) as error:
        MultiGammaConfig(**{"enabled": True, "gammas": gammas, **kwargs}).discounts(primary)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        # gammas[0] is the primary discount within 1e-6
        ({"gammas": [0.97, 0.995]}, ("gammas", "0.97", "primary discount 0.99")),
        ({"gammas": [0.990002, 0.97]}, ("gammas", "0.990002", "0.99 ")),
        ({"gammas": [0.989998, 0.97]}, ("gammas", "0.989998", "0.99 ")),
        # at most six
        (
            {"gammas": ["primary", 0.9, 0.91, 0.92, 0.93, 0.94, 0.95]},
            ("gammas", "7", "0.95", "at most 6"),
        ),
        # each in (0, 1), or the word
        ({"gammas": ["primary", 0.0]}, ("gammas", "0.0", "between 0 and 1")),
        ({"gammas": ["primary", 1.0]}, ("gammas", "1.0", "between 0 and 1")),
        ({"gammas": ["primary", -0.5]}, ("gammas", "-0.5", "between 0 and 1")),
        ({"gammas": ["primary", 1]}, ("gammas", "1", "between 0 and 1")),
        ({"gammas": ["primary", float("nan")]}, ("gammas", "nan", "between 0")),
        ({"gammas": ["primary", True]}, ("gammas", "True", "primary", "between")),
        ({"gammas": ["primary", "0.97"]}, ("gammas", "'0.97'", "between 0 and 1")),
        ({"gammas": ["first", 0.97]}, ("gammas", "'first'", "word primary")),
        ({"gammas": ["primary", None]}, ("gammas", "None", "between 0 and 1")),
        ({"gammas": ["primary", [0.97]]}, ("gammas", "[0.97]", "between 0 and 1")),
        # a list
        ({"gammas": "primary"}, ("gammas", "'primary'", "a list")),
        ({"gammas": 0.97}, ("gammas", "0.97", "a list")),
        ({"gammas": None}, ("gammas", "None", "a list")),
        # only the word may repeat
        ({"gammas": ["primary", 0.97, 0.97]}, ("gammas", "0.97", "2 times", "word")),
        ({"gammas": ["primary", 0.97, 0.97 + 1e-9]}, ("gammas", "0.97", "2 times")),
        ({"gammas": ["primary", 0.99]}, ("gammas", "0.99", "2 times", "primary")),
        ({"gammas": [0.99, 0.97, 0.99]}, ("gammas", "0.99", "2 times", "primary")),
        ({"gammas": [0.99 + 9e-7, 0.99]}, ("gammas", "0.99", "2 times", "primary")),
        # words
        ({"head": "shared"}, ("head", "'shared'", "joint, separate")),
        ({"head": None}, ("head", "None", "joint, separate")),
        ({"bootstrap": "target"}, ("bootstrap", "'target'", "primary, self")),
        # numbers
        ({"loss_weight": -0.1}, ("loss_weight", "-0.1", "at least 0")),
        ({"loss_weight": float("nan")}, ("loss_weight", "nan", "at least 0")),
        ({"loss_weight": float("inf")}, ("loss_weight", "inf", "finite")),
        ({"loss_weight": "0.5"}, ("loss_weight", "'0.5'", "number")),
        ({"loss_weight": None}, ("loss_weight", "None", "number")),
        ({"loss_weight": True}, ("loss_weight", "True", "number")),
        ({"log_num_examples": 0}, ("log_num_examples", "0", "at least 1")),
        ({"log_num_examples": 2.5}, ("log_num_examples", "2.5", "integer")),
        ({"log_num_examples": None}, ("log_num_examples", "None", "integer")),
        ({"log_num_examples": True}, ("log_num_examples", "True", "integer")),
        # switches
        ({"enabled": "no"}, ("enabled", "'no'", "true or false")),
        ({"enabled": 1}, ("enabled", "1", "true or false")),
        ({"detach_latent": "false"}, ("detach_latent", "'false'", "true or false")),
        ({"debug_logging": None}, ("debug_logging", "None", "true or false")),
        # on, with nothing to do
        ({"gammas": []}, ("gammas", "[]", "enabled", "[primary, 0.97")),
    ],
)
def test_a_broken_rule_names_key_value_and_what_is_allowed(settings, words):
    message = broken(**settings)
    assert all(word in message for word in words), message


def test_rules_hold_for_the_heads_that_are_off_too():
    with pytest.raises(ValueError, match=r"gammas has 1.5"):
        MultiGammaConfig(enabled=False, gammas=["primary", 1.5])


@pytest.mark.parametrize(
    ("gammas", "expected"),
    [
        (SET, (0.99, 0.97, 0.995)),
        ([0.99, 0.97], (0.99, 0.97)),
        ([0.99 + 9e-7, 0.97], (0.99, 0.97)),
        (["primary", 0.9, 0.95, 0.97, 0.98, 0.995], (0.99, 0.9, 0.95, 0.97, 0.98, 0.995)),
        (["primary", "primary", "primary"], (0.99, 0.99, 0.99)),
        (["primary", 0.97, "primary"], (0.99, 0.97, 0.99)),
    ],
)
def test_discounts(gammas, expected):
    config = MultiGammaConfig(enabled=True, gammas=gammas)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert config.discounts(0.99) == pytest.approx(expected, abs=1e-6)
    assert MultiGammaConfig(enabled=False, gammas=gammas).discounts(0.99) == ()


def test_discounts_that_lie_close_together_are_different_ones():
    config = MultiGammaConfig(enabled=True, gammas=["primary", 0.9951, 0.9952])
    assert config.discounts(0.99) == (0.99, 0.9951, 0.9952)


def test_the_first_discount_is_the_primary_one_to_the_last_digit():
    config = MultiGammaConfig(enabled=True, gammas=[0.99 + 9e-7, 0.97])
    assert config.discounts(0.99) == (0.99, 0.97)


def test_heads_may_have_no_weight():
    assert MultiGammaConfig(enabled=True, gammas=SET, loss_weight=0).loss_weight == 0


@pytest.mark.parametrize("gammas", [["primary"], [0.99]])
def test_one_discount_warns_and_builds_nothing(gammas):
    config = MultiGammaConfig(enabled=True, gammas=gammas)
    with pytest.warns(UserWarning, match=r"gammas .*alone.*no head"):
        assert config.discounts(0.99) == ()


def test_off_without_discounts_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert MultiGammaConfig().discounts(0.99) == ()


def test_defaults_are_those_of_the_yaml():
    settings = yaml.safe_load((CONFIG / "tdmpc2_multigamma.yaml").read_text())["multi_gamma"]
    assert settings.pop("gammas") == []
    default = MultiGammaConfig()
    assert settings == {name: getattr(default, name) for name in settings}
    assert set(settings) | {"gammas"} == set(MultiGammaConfig.__dataclass_fields__)
    assert list(default.gammas) == []


def test_settings_cannot_be_changed():
    with pytest.raises(AttributeError):
        MultiGammaConfig().enabled = True
