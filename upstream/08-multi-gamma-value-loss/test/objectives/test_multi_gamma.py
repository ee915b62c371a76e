from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl.modules import AuxiliaryValueHeads
from torchrl.modules.models.model_based import (
    RSSMPosteriorV3,
    RSSMPriorV3,
    RSSMRolloutV3,
)
from torchrl.objectives import MultiGammaValueLoss, SoftUpdate, TdMpc2Loss

GAMMAS = (0.5, 0.97)
LATENT, BINS = 6, 21
BATCH, TIME = 4, 3
_has_hydra = importlib.util.find_spec("hydra") is not None


def _make_heads(gammas=GAMMAS, latent_dim=LATENT, num_bins=BINS, **kwargs):
    """Heads that were trained a little: at zero all would predict the same."""
    heads = AuxiliaryValueHeads(latent_dim, len(gammas), num_bins, **kwargs)
    for parameter in heads.parameters():
        nn.init.normal_(parameter)
    return heads


def _make_loss(gammas=GAMMAS, **kwargs):
    return MultiGammaValueLoss(_make_heads(gammas), gammas, **kwargs)


def _make_rollout():
    following = TensorDict(
        reward=3 * torch.randn(BATCH, TIME, 1),
        terminated=torch.arange(BATCH * TIME).view(BATCH, TIME, 1) % 4 == 0,
        state_value=20 * torch.randn(BATCH, TIME, 1),
        target_latent=torch.randn(BATCH, TIME, LATENT),
        batch_size=[BATCH, TIME],
    )
    latent = torch.randn(BATCH, TIME, LATENT)
    return TensorDict(latent=latent, next=following, batch_size=[BATCH, TIME])


def _reached(module):
    return any(p.grad is not None and p.grad.any() for p in module.parameters())


# One number at a time, with bins -10, -9, .. 10 in symlog space


def _head_logits(linear, latent, head):
    rows = slice(head * BINS, (head + 1) * BINS)
    return linear["weight"][rows] @ latent + linear["bias"][rows]


def _decode(logits):
    mean = (logits.softmax(-1) * torch.linspace(-10, 10, BINS)).sum().item()
    return math.copysign(math.expm1(abs(mean)), mean)


def _cross_entropy(logits, value):
    position = 10 + max(-10.0, min(math.copysign(math.log1p(abs(value)), value), 10.0))
    log_share = logits.log_softmax(-1)
    share = (1 - (torch.arange(BINS) - position).abs()).clamp(min=0)
    return -(share * log_share).sum().item()


class TestAuxiliaryValueHeads:
    def test_zero_and_no_draw(self):
        state = torch.get_rng_state()
        heads = AuxiliaryValueHeads(LATENT, num_heads=2, num_bins=BINS)
        assert torch.equal(torch.get_rng_state(), state)
        assert not any(parameter.any() for parameter in heads.parameters())
        assert sum(p.numel() for p in heads.parameters()) == 2 * BINS * (LATENT + 1)

    def test_nested_keys(self):
        keys = {"latent_key": ("in", "z"), "logits_key": ("out", "logits")}
        heads = _make_heads(**keys)
        latent = torch.randn(5, LATENT)
        data = heads(TensorDict({("in", "z"): latent}, batch_size=[5]))
        linear = {"weight": heads.linear.weight, "bias": heads.linear.bias}
        for head in range(2):
            expected = torch.stack([_head_logits(linear, z, head) for z in latent])
            torch.testing.assert_close(data["out", "logits"][:, head], expected)

    @pytest.mark.parametrize("sizes", [(LATENT, 0, BINS), (LATENT, 2, 1)])
    def test_errors(self, sizes):
        with pytest.raises(ValueError, match="must be"):
            AuxiliaryValueHeads(*sizes)


class TestMultiGammaValueLoss:
    @pytest.mark.parametrize("bootstrap", ["primary", "self"])
    def test_values(self, bootstrap):
        torch.manual_seed(0)
        weights = {"rho": 0.7, "loss_weight": 0.3}
        loss = _make_loss(bootstrap=bootstrap, reduction="none", **weights)
        rollout, expected = _make_rollout(), torch.zeros(BATCH, TIME)
        following = rollout["next"]
        if bootstrap == "self":  # the target heads are others by now
            for weight in loss.target_heads_params.values(True, True):
                weight.data.add_(torch.randn_like(weight))
        cross_entropy = torch.zeros(BATCH, TIME, 2)
        for b in range(BATCH):
            for t in range(TIME):
                for head, gamma in enumerate(GAMMAS):
                    if bootstrap == "primary":
                        value = following["state_value"][b, t].item()
                    else:
                        latent = following["target_latent"][b, t]
                        target_linear = loss.target_heads_params["linear"]
                        value = _decode(_head_logits(target_linear, latent, head))
                    going_on = 1.0 - following["terminated"][b, t].item()
                    target = following["reward"][b, t].item() + gamma * going_on * value
                    linear = loss.heads_params["linear"]
                    logits = _head_logits(linear, rollout["latent"][b, t], head)
                    cross_entropy[b, t, head] = _cross_entropy(logits, target)
                    expected[b, t] += 0.3 * 0.7**t * cross_entropy[b, t, head]
        output = loss(rollout)
        torch.testing.assert_close(
            output["loss_multi_gamma"].detach(), expected, rtol=1e-4, atol=1e-4
        )
        for head, gamma in enumerate(GAMMAS):
            torch.testing.assert_close(
                output[f"ce_gamma_{gamma}"],
                cross_entropy[..., head].mean(),
                rtol=1e-4,
                atol=1e-4,
            )
        loss.reduction = "mean"
        mean = loss(rollout)["loss_multi_gamma"].detach()
        torch.testing.assert_close(mean, expected.mean(), rtol=1e-4, atol=1e-4)
        assert list(output.keys()) == loss.out_keys

    @pytest.mark.parametrize("bootstrap", ["primary", "self"])
    def test_nested_keys(self, bootstrap):
        loss = _make_loss(bootstrap=bootstrap)
        rollout = _make_rollout()
        expected = loss(rollout)
        keys = {
            "latent": ("agent", "z"),
            "reward": ("agent", "r"),
            "terminated": ("agent", "end"),
            "state_value": ("agent", "v"),
            "target_latent": ("agent", "target_z"),
        }
        nested = TensorDict(batch_size=[BATCH, TIME])
        for name, key in keys.items():
            if name == "latent":
                nested[key] = rollout[name]
            else:
                nested[("next", *key)] = rollout["next", name]
        loss.set_keys(**keys)
        last = "target_z" if bootstrap == "self" else "v"
        names = [("next", "agent", name) for name in ("r", "end", last)]
        assert loss.in_keys == [("agent", "z"), *names]
        for key, value in loss(nested).items():
            torch.testing.assert_close(value, expected[key])

    def test_gradients(self):
        for bootstrap in ("primary", "self"):
            loss, rollout = _make_loss(bootstrap=bootstrap), _make_rollout()
            targets = [
                rollout["next", name].requires_grad_()
                for name in ("reward", "state_value", "target_latent")
            ]
            latent = rollout["latent"].requires_grad_()
            loss(rollout)["loss_multi_gamma"].backward()
            assert all(target.grad is None for target in targets)
            assert latent.grad.flatten(1).any(1).all()
            assert all(parameter.grad.any() for parameter in loss.parameters())

    def test_soft_update(self):
        loss = _make_loss(bootstrap="self")
        updater = SoftUpdate(loss, tau=0.25)
        online, target = loss.heads_params["linear"], loss.target_heads_params["linear"]
        before = target["weight"].clone()
        online["weight"].data.add_(1.0)
        updater.step()
        torch.testing.assert_close(target["weight"], before + 0.25)

    def test_masked_steps_do_not_count(self):
        loss, rollout = _make_loss(reduction="none"), _make_rollout()
        terms = loss(rollout)["loss_multi_gamma"]
        mask = torch.ones(BATCH, TIME, dtype=torch.bool)
        mask[1, 2] = mask[3, 1:] = False
        rollout["next", "reward"][~mask] = 1e3
        rollout["collector", "mask"] = mask
        loss.reduction = "mean"
        masked = loss(rollout)
        torch.testing.assert_close(masked["loss_multi_gamma"], terms[mask].mean())
        # those that count, each as a rollout of one step
        alone = loss(rollout[mask].unsqueeze(1))
        for gamma in GAMMAS:
            name = f"ce_gamma_{gamma}"
            torch.testing.assert_close(masked[name], alone[name])

    def test_state_dict_holds_the_discounts(self):
        loss = _make_loss()
        other = MultiGammaValueLoss(_make_heads(), GAMMAS)
        other.load_state_dict(loss.state_dict())
        rollout = _make_rollout()
        name = "loss_multi_gamma"
        torch.testing.assert_close(other(rollout)[name], loss(rollout)[name])
        with pytest.raises(ValueError, match=r"0\.97.*0\.9"):
            _make_loss((0.5, 0.9)).load_state_dict(loss.state_dict())

    @pytest.mark.parametrize(
        "settings, match",
        [
            ({"gammas": (0.9,)}, "2 heads"),
            ({"gammas": (0.9, 1.0)}, "in \\(0, 1\\)"),
            ({"gammas": (0.9, 0.9)}, "differ"),
            ({"gammas": GAMMAS, "bootstrap": "own"}, "'own'"),
            ({"gammas": GAMMAS, "reduction": "max"}, "'max'"),
        ],
    )
    def test_errors(self, settings, match):
        with pytest.raises(ValueError, match=match):
            MultiGammaValueLoss(_make_heads(), **settings)

    @pytest.mark.skipif(not _has_hydra, reason="hydra is not installed")
    def test_config(self):
        from hydra.utils import instantiate

        from torchrl.trainers.algorithms.configs import (
            AuxiliaryValueHeadsConfig,
            MultiGammaValueLossConfig,
        )

        heads = AuxiliaryValueHeadsConfig(LATENT, 2, BINS, latent_key=["agent", "z"])
        cfg = MultiGammaValueLossConfig(heads=heads, gammas=[0.5, 0.97], rho=0.7)
        loss = instantiate(cfg)
        assert (loss.gammas, loss.rho, loss.loss_weight) == (GAMMAS, 0.7, 0.5)
        assert loss.heads.in_keys == [("agent", "z")]
        assert loss.heads.num_bins == BINS

    def test_tdmpc2(self):
        # On TD-MPC2's own unroll, with its bootstrap: the heads learn, and their
        # gradient reaches encoder and dynamics and nothing else.
        from torchrl.trainers.algorithms.configs.modules import (
            _make_tdmpc2_policy_prior,
            _make_tdmpc2_q_ensemble,
            _make_tdmpc2_world_model,
        )

        torch.manual_seed(0)
        sizes = {"latent_dim": 8, "action_dim": 2, "mlp_dim": 16}
        world_model = _make_tdmpc2_world_model(
            observation_dim=4,
            encoder_dim=16,
            **sizes,
        )
        policy_prior = _make_tdmpc2_policy_prior(**sizes)
        q_ensemble = _make_tdmpc2_q_ensemble(**sizes)
        tdmpc2 = TdMpc2Loss(world_model, policy_prior, q_ensemble, horizon=TIME)
        heads = AuxiliaryValueHeads(8, num_heads=2, num_bins=101)
        loss = MultiGammaValueLoss(heads, GAMMAS)
        loss.set_keys(state_value="q_value")
        sample = TensorDict(
            observation=torch.randn(32, TIME, 4),
            action=torch.rand(32, TIME, 2) * 2 - 1,
            next=TensorDict(
                observation=torch.randn(32, TIME, 4),
                reward=torch.rand(32, TIME, 1),
                terminated=torch.zeros(32, TIME, 1, dtype=torch.bool),
                batch_size=[32, TIME],
            ),
            batch_size=[32, TIME],
        )

        def unroll():
            latents = [world_model.encode(sample[:, 0].clone())["latent"]]
            for action in sample["action"][:, :-1].unbind(1):
                step = TensorDict(latent=latents[-1], action=action, batch_size=[32])
                latents.append(world_model.step(step)["next", "latent"])
            with torch.no_grad():
                following = world_model.encode(sample["next"].clone())
                policy_prior(following)
                q_ensemble.reduce(following, reduction="min", source="target")
            latent = torch.stack(latents, 1)
            return TensorDict(latent=latent, next=following, batch_size=[32, TIME])

        start = loss(unroll())
        optimizer = torch.optim.Adam(
            [
                {"params": tdmpc2.parameters(), "lr": 1e-3},
                {"params": loss.parameters(), "lr": 1e-1},
            ]
        )
        for _ in range(20):
            optimizer.zero_grad()
            model_loss, _ = tdmpc2.model_loss(sample)
            (model_loss + loss(unroll())["loss_multi_gamma"]).backward()
            optimizer.step()
        end = loss(unroll())
        # from the uniform distribution to rewards in [0, 1] and small values
        assert start["ce_gamma_0.97"].item() == pytest.approx(math.log(101), rel=1e-4)
        assert all(end[f"ce_gamma_{gamma}"] < 3 for gamma in GAMMAS), end

        optimizer.zero_grad()
        loss(unroll())["loss_multi_gamma"].backward()
        assert _reached(world_model.encoder) and _reached(world_model.dynamics)
        assert _reached(loss.heads)
        assert not _reached(world_model.reward_head)
        assert not _reached(policy_prior) and not _reached(q_ensemble)

    @pytest.mark.parametrize("bootstrap", ["primary", "self"])
    def test_dreamer(self, bootstrap):
        # On the posterior latents of a DreamerV3 rollout, with its critic's value.
        torch.manual_seed(0)
        embedding, belief_dim, state_dim = 6, 8, 16
        sizes = {"hidden_dim": 8, "num_categoricals": 4, "num_classes": 4}
        prior = TensorDictModule(
            RSSMPriorV3(
                action_shape=(2,),
                action_dim=2,
                rnn_hidden_dim=belief_dim,
                **sizes,
            ),
            in_keys=["state", "belief", "action"],
            out_keys=[
                ("next", "prior_logits"),
                ("next", "state"),
                ("next", "belief"),
            ],
        )
        posterior = TensorDictModule(
            RSSMPosteriorV3(
                rnn_hidden_dim=belief_dim,
                obs_embed_dim=embedding,
                **sizes,
            ),
            in_keys=[("next", "belief"), ("next", "encoded_latents")],
            out_keys=[("next", "posterior_logits"), ("next", "state")],
        )
        encoder = nn.Linear(5, embedding)
        critic = TensorDictModule(
            nn.Linear(state_dim + belief_dim, 1),
            in_keys=["latent"],
            out_keys=["state_value"],
        )
        observation = torch.randn(BATCH, TIME + 1, 5)
        rollout = RSSMRolloutV3(prior, posterior)(
            TensorDict(
                state=torch.zeros(BATCH, TIME + 1, state_dim),
                belief=torch.zeros(BATCH, TIME + 1, belief_dim),
                action=torch.randn(BATCH, TIME + 1, 2),
                next={
                    "encoded_latents": encoder(observation),
                    "reward": torch.randn(BATCH, TIME + 1, 1),
                    "terminated": torch.zeros(BATCH, TIME + 1, 1, dtype=torch.bool),
                },
                batch_size=[BATCH, TIME + 1],
            )
        )
        latent = torch.cat([rollout["next", "state"], rollout["next", "belief"]], -1)
        following = rollout["next"][:, 1:].select("reward", "terminated")
        following["latent"] = latent[:, 1:].detach()
        data = TensorDict(
            latent=latent[:, :-1],
            next=critic(following).detach(),
            batch_size=[BATCH, TIME],
        )
        heads = _make_heads(latent_dim=state_dim + belief_dim)
        loss = MultiGammaValueLoss(heads, GAMMAS, bootstrap=bootstrap)
        loss.set_keys(target_latent="latent")
        output = loss(data)
        output["loss_multi_gamma"].backward()
        assert _reached(encoder) and _reached(prior) and _reached(posterior)
        assert _reached(loss.heads) and not _reached(critic)

        # The head of each discount learns the target of its own
        if bootstrap == "primary":
            linear = TensorDict.from_module(heads.linear)
            for head, gamma in enumerate(GAMMAS):
                following = data["next"]
                target = following["reward"] + gamma * following["state_value"]
                expected = [
                    _cross_entropy(_head_logits(linear, z, head), y.item())
                    for z, y in zip(data["latent"].flatten(0, 1), target.flatten())
                ]
                mean = sum(expected) / len(expected)
                found = output[f"ce_gamma_{gamma}"].item()
                assert found == pytest.approx(mean, rel=1e-4)


if __name__ == "__main__":
    pytest.main()
