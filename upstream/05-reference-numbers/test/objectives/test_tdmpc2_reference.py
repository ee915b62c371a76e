"""TD-MPC2 against numbers of its official implementation.

``tdmpc2_reference.json`` holds what the official implementation (July 2026) computes
for one tiny agent in float32 on CPU: its weights, its inputs, every random draw that it
made and its outputs. The weights were moved away from their initialization, so that
heads that start at zero cannot hide a mistake. Here the networks get these weights, and
every random operation gives the recorded draws.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from torch.utils._python_dispatch import TorchDispatchMode

from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import TdMpc2Planner
from torchrl.modules.models.tdmpc2 import symlog_two_hot_decode
from torchrl.objectives import TdMpc2Loss
from torchrl.objectives.tdmpc2 import symlog_two_hot, symlog_two_hot_cross_entropy
from torchrl.trainers.algorithms.configs.modules import (
    _make_tdmpc2_policy_prior,
    _make_tdmpc2_q_ensemble,
    _make_tdmpc2_world_model,
)
from torchrl.trainers.algorithms.tdmpc2 import TdMpc2OptimizationStepper

REFERENCE = json.loads(Path(__file__).with_name("tdmpc2_reference.json").read_text())


def _group(name):
    """All recorded arrays below a name."""
    name += "/"
    return {
        key[len(name) :]: torch.tensor(value)
        for key, value in REFERENCE.items()
        if key.startswith(name)
    }


CONFIG = {name: REFERENCE["config/" + name] for name in _group("config")}
SUPPORT = {name: CONFIG[name] for name in ("vmin", "vmax", "num_bins")}


class _Replay(TorchDispatchMode):
    """Lets each random operation give the oldest recorded draw of its distribution."""

    distributions = {
        "randn": "normal",
        "randn_like": "normal",
        "randperm": "permutation",
        "exponential_": "exponential",
    }

    def __init__(self, **draws):
        super().__init__()
        self.draws = {name: list(values) for name, values in draws.items()}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in operation.tags:
            name = self.distributions[operation.overloadpacket.__name__]
            draw = self.draws[name].pop(0)
            if name == "permutation":  # the first two are used
                draw = torch.cat([draw, torch.arange(len(result) - 2)])
            result.copy_(draw.reshape(result.shape))
        return result

    def __exit__(self, *error):
        super().__exit__(*error)
        assert error[0] is not None or not any(self.draws.values())


def _official_names(prefix, params, norm_ndim):
    """Weights of an MLP as the official implementation names them.

    It counts layers, each with the layer norm that may follow it.
    """
    named, index = {}, -1
    for key in sorted({key[0] for key in params.keys(True, True)}, key=int):
        is_norm = params[key, "weight"].ndim == norm_ndim
        index += not is_norm
        for name in ("weight", "bias"):
            official = f"{prefix}.{index}.{'ln.' if is_norm else ''}{name}"
            named[official] = params[key, name]
    return named


def _weights(loss):
    """All weights of the agent under their official names."""
    networks = {
        "_encoder.state": loss.world_model.encoder.module,
        "_dynamics": loss.world_model.dynamics.module,
        "_reward": loss.world_model.reward_head.module,
        "_pi": loss.policy_prior.module.network,
    }
    weights = {}
    for prefix, network in networks.items():
        weights.update(_official_names(prefix, TensorDict.from_module(network), 1))
    q_ensemble = loss.q_ensemble
    weights.update(_official_names("_Qs.params", q_ensemble.q_params, 2))
    weights.update(_official_names("_target_Qs_params", q_ensemble.target_q_params, 2))
    return weights


def _make_loss():
    sizes = {name: CONFIG[name] for name in ("latent_dim", "action_dim", "mlp_dim")}
    world_model = _make_tdmpc2_world_model(
        observation_dim=CONFIG["obs_dim"],
        encoder_dim=CONFIG["enc_dim"],
        encoder_depth=CONFIG["num_enc_layers"] - 1,
        simnorm_dim=CONFIG["simnorm_dim"],
        num_bins=CONFIG["num_bins"],
        **sizes,
    )
    policy_prior = _make_tdmpc2_policy_prior(
        log_std_min=CONFIG["log_std_min"], log_std_max=CONFIG["log_std_max"], **sizes
    )
    q_ensemble = _make_tdmpc2_q_ensemble(
        num_q=CONFIG["num_q"],
        dropout=0.0,
        **SUPPORT,
        **sizes,
    )
    coefficients = ("consistency_coef", "reward_coef", "value_coef", "entropy_coef")
    loss = TdMpc2Loss(
        world_model,
        policy_prior,
        q_ensemble,
        scale_tau=CONFIG["tau"],
        **{name: CONFIG[name] for name in ("horizon", "discount", "rho")},
        **{name: CONFIG[name] for name in coefficients},
    )
    recorded = _group("params_before")
    weights = _weights(loss)
    assert weights.keys() == recorded.keys()
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(recorded[name])
    return loss


def _make_stepper(loss):
    model, lr = loss.world_model, CONFIG["lr"]
    encoder_lr = lr * CONFIG["enc_lr_scale"]
    optimizer_model = torch.optim.Adam(
        [
            {"params": model.encoder.parameters(), "lr": encoder_lr},
            {"params": model.dynamics.parameters()},
            {"params": model.reward_head.parameters()},
            {"params": loss.q_ensemble.q_params.parameters()},
        ],
        lr=lr,
    )
    optimizer_actor = torch.optim.Adam(loss.policy_prior.parameters(), lr=lr, eps=1e-5)
    return TdMpc2OptimizationStepper(
        loss, optimizer_model, optimizer_actor, target_tau=CONFIG["tau"]
    )


def _make_sample():
    """The batch with time after batch, as the loss reads it."""
    batch = {name: value.transpose(0, 1) for name, value in _group("batch").items()}
    observation = batch["observation"]
    shape = batch["action"].shape[:2]
    following = TensorDict(
        observation=observation[:, 1:],
        reward=batch["reward"],
        terminated=batch["terminated"].bool(),
        batch_size=shape,
    )
    return TensorDict(
        observation=observation[:, :-1],
        action=batch["action"],
        next=following,
        batch_size=shape,
    )


class TestTdMpc2Reference:
    def test_two_hot(self):
        recorded = _group("two_hot")
        scalar, logits = recorded["scalar"], recorded["logits"]
        close = {"rtol": 1e-5, "atol": 1e-5}
        encoded = symlog_two_hot(scalar, **SUPPORT)
        torch.testing.assert_close(encoded, recorded["encoded"], **close)
        decoded = symlog_two_hot_decode(logits, **SUPPORT)
        torch.testing.assert_close(decoded, recorded["decoded"], **close)
        cross_entropy = symlog_two_hot_cross_entropy(logits, scalar, **SUPPORT)
        torch.testing.assert_close(cross_entropy, recorded["cross_entropy"], **close)

    def test_value_scale(self):
        recorded = _group("value_scale")
        scale = _make_loss().scale
        for value, expected in zip(recorded["inputs"], recorded["values"]):
            scale.update(value)
            torch.testing.assert_close(scale.value, expected)

    @pytest.mark.parametrize("call", ["cold", "warm", "eval"])
    def test_plan(self, call):
        recorded = _group(f"plan_{call}")
        loss = _make_loss()
        names = ("horizon", "discount", "num_samples", "num_elites", "num_pi_trajs")
        names += ("iterations", "min_std", "max_std", "temperature")
        planner = TdMpc2Planner(
            loss.world_model,
            loss.policy_prior,
            loss.q_ensemble,
            **{name: CONFIG[name] for name in names},
        )
        normal = list(recorded["policy_prior_eps"])
        for noises in zip(recorded["sample_noise"], recorded["terminal_policy_eps"]):
            normal.extend(noises)
        exploration = ExplorationType.DETERMINISTIC
        if call != "eval":
            normal.append(recorded["action_noise"])
            exploration = ExplorationType.RANDOM
        # The previous mean of an environment that was reset does not count
        previous_mean = recorded["previous_mean"] + (call == "cold")
        td = TensorDict(
            observation=recorded["observation"],
            is_init=torch.tensor([[call == "cold"]]),
            _tdmpc2_prev_mean=previous_mean.unsqueeze(0),
            batch_size=[1],
        )
        replay = _Replay(
            normal=normal,
            permutation=recorded["q_pair"],
            exponential=[recorded["elite_exponential"]],
        )
        with set_exploration_type(exploration), replay:
            planner(td)
        close = {"rtol": 1e-4, "atol": 1e-4}
        mean = td["next", "_tdmpc2_prev_mean"][0]
        torch.testing.assert_close(mean, recorded["mean"], **close)
        torch.testing.assert_close(td["action"][0], recorded["action"], **close)

    def test_three_updates(self):
        loss, sample = _make_loss(), _make_sample()
        stepper = _make_stepper(loss)
        trainer = SimpleNamespace(
            loss_module=loss, clip_grad_norm=True, clip_norm=CONFIG["grad_clip_norm"]
        )
        for step in range(3):
            recorded = _group(f"update_{step}")
            noise = [recorded["td_policy_eps"], recorded["policy_eps"]]
            with _Replay(
                normal=[eps.transpose(0, 1) for eps in noise],
                permutation=[recorded["td_q_pair"], recorded["policy_q_pair"]],
            ):
                metrics = stepper.step(trainer, sample)
            expected = {
                "loss_model": recorded["metric_total_loss"],
                "loss_actor": recorded["metric_pi_loss"],
                "pi_entropy": recorded["metric_pi_entropy"],
                "pi_scaled_entropy": recorded["metric_pi_scaled_entropy"],
                "pi_scale": recorded["metric_pi_scale"],
                "model_grad_norm": recorded["metric_grad_norm"],
                "actor_grad_norm": recorded["metric_pi_grad_norm"],
            }
            for name in ("consistency", "reward", "value"):
                weight = CONFIG[f"{name}_coef"]
                expected[f"loss_{name}"] = weight * recorded[f"metric_{name}_loss"]
            # Later steps stand on weights that Adam has moved
            tolerance = 1e-5 if step == 0 else 1e-4
            assert set(metrics.keys()) == set(expected)
            for name, value in expected.items():
                assert metrics[name].item() == pytest.approx(
                    value.item(), rel=tolerance, abs=tolerance
                ), (name, step)

        # Adam divides a gradient by its own size. One that is zero but for rounding
        # becomes a step of any size up to the learning rate: a few weights may drift.
        recorded, before = _group("params_after_update_2"), _group("params_before")
        weights = _weights(loss)
        assert weights.keys() == recorded.keys()

        def distance(others):
            differences = [others[name] - recorded[name] for name in recorded]
            return torch.cat([each.abs().flatten() for each in differences])

        error, moved = distance(weights), distance(before)
        assert error.max() <= 3 * CONFIG["lr"]
        assert (error > 1e-6).float().mean() < 0.02
        assert (moved > 1e-4).float().mean() > 0.5


if __name__ == "__main__":
    pytest.main()
