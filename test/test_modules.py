"""Layers, two-hot coding, networks and the value scale, against plain restatements."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from tiny import ACTION, LATENT, scramble, seeded, tiny_networks
from torch import nn
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_tdmpc import TDMPC2Loss
from torchrl_tdmpc.modules import (
    MODEL_SIZES,
    Linear,
    ModelSize,
    NormedLinear,
    PixelEncoder,
    PolicyPrior,
    RunningPercentileScale,
    SimNorm,
    SymlogTwoHot,
    TDMPC2WorldModel,
    make_networks,
    mish,
    mlp,
    model_size,
    norm_mish,
    official_order,
    pixel_encoder,
    symexp,
    symlog,
)
from torchrl_tdmpc.modules.pixel_encoder import shift_frames

close = torch.testing.assert_close
LOOSE = {"rtol": 1e-4, "atol": 1e-4}


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 5, 24)])
@pytest.mark.parametrize("dim", [1, 3, 8, 24])
def test_simnorm_is_a_softmax_over_neighbours_of_the_official_order(shape, dim):
    x = 5 * torch.randn(shape, requires_grad=True)
    order = official_order(24, dim)
    groups = [F.softmax(group, -1) for group in x[..., order.argsort()].split(dim, -1)]
    expected = torch.cat(groups, -1)[..., order]
    close(SimNorm(dim)(x), expected)
    weight = torch.randn(shape)
    (gradient,) = torch.autograd.grad((SimNorm(dim)(x) * weight).sum(), x)
    close(gradient, torch.autograd.grad((expected * weight).sum(), x)[0], atol=1e-6, rtol=1e-5)


def test_simnorm_refuses_features_it_cannot_group():
    with pytest.raises(ValueError, match=r"20 features.*multiple of simnorm_dim = 8"):
        SimNorm(8)(torch.randn(2, 20))
    with pytest.raises(ValueError, match=r"simnorm_dim is 0; it must be at least 1"):
        SimNorm(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mish_value_and_gradient(dtype):
    ends = torch.tensor([-100.0, -88.0, -20.0, 0.0, 19.9, 20.0, 20.1, 88.0, 100.0])
    x = torch.cat([torch.linspace(-30, 30, 1001), ends]).to(dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {}
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    close(mish(ours), F.mish(theirs), **tolerance)
    mish(ours).sum().backward()
    F.mish(theirs).sum().backward()
    close(ours.grad, theirs.grad, **tolerance)


@pytest.mark.parametrize(
    ("shape", "weights"), [((5, 8), (8,)), ((3, 5, 8), (8,)), ((3, 5, 8), (3, 1, 8))]
)
def test_norm_mish_value_and_gradients(shape, weights):
    shapes = (shape, weights, weights)
    inputs = [torch.randn(s, dtype=torch.float64).mul_(3).requires_grad_() for s in shapes]
    x, scale, shift = inputs
    ours, expected = norm_mish(*inputs), F.mish(F.layer_norm(x, (8,)) * scale + shift)
    close(ours, expected)
    weight = torch.randn_like(ours)
    gradients = [torch.autograd.grad((y * weight).sum(), inputs) for y in (ours, expected)]
    close(*gradients)


def test_norm_mish_keeps_its_input_alone():
    kept = []
    x, scale = torch.randn(7, 6, requires_grad=True), torch.ones(6, requires_grad=True)
    hooks = lambda t: kept.append(t.data_ptr()), lambda t: t
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        norm_mish(x, scale, scale)
    assert set(kept) == {x.data_ptr(), scale.data_ptr()}


def test_layers_follow_a_vmap_over_weights():
    stack = [mlp(4, [6], 3) for _ in range(3)]
    for network in stack:
        scramble(network.parameters())
    params, _ = torch.func.stack_module_state(stack)
    x = torch.randn(7, 4)

    def loss(params):
        return torch.func.functional_call(stack[0], params, x).square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss))(params)
    for index, network in enumerate(stack):
        network(x).square().sum().backward()
        for name, weight in network.named_parameters():
            close(gradients[name][index], weight.grad)


def test_normed_linear_is_linear_then_norm_then_activation():
    layer = NormedLinear(4, 6, activation=torch.sin)
    scramble(layer.parameters())
    x = torch.randn(7, 4)
    linear = x @ layer.weight.T + layer.bias
    close(layer(x), torch.sin(F.layer_norm(linear, (6,), layer.ln.weight, layer.ln.bias)))


def test_mlp_has_dropout_in_its_first_layer_only():
    network = mlp(4, [6, 6], 3, dropout=1.0)
    scramble(network.parameters())
    x = torch.randn(7, 4)
    everything_dropped = mish(network[0].ln.bias).expand(7, -1)
    close(network.train()(x), network[1:].eval()(everything_dropped))
    assert not torch.allclose(network.eval()(x), network.train()(x))
    assert [getattr(layer, "dropout", 0.0) for layer in network] == [1.0, 0.0, 0.0]


def test_mlp_ends_in_a_plain_or_a_normed_layer():
    assert type(mlp(4, [6], 8)[-1]) is Linear
    latent = mlp(4, [6], 8, SimNorm(4))(torch.randn(7, 4))
    close(latent.view(7, 4, 2).sum(1), torch.ones(7, 2))


# ---------------------------------------------------------------- two-hot


def test_symlog_and_symexp_are_inverse():
    x = torch.tensor([-1e6, -3.0, -1e-3, 0.0, 1e-3, 3.0, 1e6], dtype=torch.float64)
    close(symlog(x), x.sign() * torch.log(1 + x.abs()))
    close(symexp(symlog(x)), x)


@pytest.mark.parametrize("two_hot", [SymlogTwoHot(), SymlogTwoHot(51, -5, 5), SymlogTwoHot(2)])
def test_two_hot_code_has_the_scalar_as_its_mean(two_hot):
    low, high = symexp(torch.tensor([two_hot.vmin, two_hot.vmax], dtype=torch.float64)).tolist()
    inside = torch.linspace(two_hot.vmin, two_hot.vmax, 37, dtype=torch.float64)
    bins = torch.linspace(two_hot.vmin, two_hot.vmax, two_hot.num_bins, dtype=torch.float64)
    scalar = torch.cat([symexp(inside), symexp(bins), torch.zeros(1)]).unsqueeze(-1)
    code = two_hot.encode(scalar)
    close(code.sum(-1), torch.ones(len(scalar), dtype=torch.float64))
    assert (code >= 0).all() and ((code > 1e-12).sum(-1) <= 2).all()
    for row in code:
        (where,) = (row > 1e-12).nonzero(as_tuple=True)
        assert where[-1] - where[0] <= 1
    close(two_hot.decode(code.log()), scalar, rtol=1e-8, atol=1e-8)

    beyond = torch.tensor([[10 * low], [10 * high]], dtype=torch.float64)
    close(two_hot.encode(beyond), torch.eye(two_hot.num_bins, dtype=torch.float64)[[0, -1]])
    close(two_hot.decode(two_hot.encode(beyond).log()), torch.tensor([[low], [high]]).double())


def test_two_hot_cross_entropy_and_its_gradient():
    two_hot = SymlogTwoHot()
    scalar = torch.tensor([0.0, 1.0, -7.3, 1e5, -1e5, symexp(torch.tensor(10.0))]).unsqueeze(-1)
    logits = torch.randn(3, 6, 101, requires_grad=True)
    expected = -(two_hot.encode(scalar) * logits.log_softmax(-1)).sum(-1, keepdim=True)
    cross_entropy = two_hot.cross_entropy(logits, scalar)
    close(cross_entropy, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((cross_entropy * weight).sum(), logits)
    close(gradient, torch.autograd.grad((expected * weight).sum(), logits)[0], atol=1e-6, rtol=1e-5)


def test_two_hot_refuses_an_empty_support():
    with pytest.raises(ValueError, match=r"num_bins is 1; it must be at least 2"):
        SymlogTwoHot(num_bins=1)
    with pytest.raises(ValueError, match=r"vmin is 3 and vmax is 3; vmin must be"):
        SymlogTwoHot(vmin=3, vmax=3)


# ---------------------------------------------------------------- sizes and initialisation


@pytest.mark.parametrize("size", MODEL_SIZES)
def test_preset_has_the_parameters_it_is_named_after(size):
    with torch.device("meta"):
        networks = make_networks((24,), 6, model_size(size))
    millions = sum(p.numel() for network in networks for p in network.parameters()) / 1e6
    assert millions == pytest.approx(size, rel=0.22 if size == 1 else 0.06)
    assert networks[2].num_q == {1: 2, 317: 8}.get(size, 5)


def test_weights_are_initialised_as_published():
    size = ModelSize(enc_dim=64, mlp_dim=64, latent_dim=64, num_enc_layers=2, num_q=3)
    world_model, policy_prior, q_ensemble = seeded(make_networks, (24,), 6, size, episodic=True)
    layers = [
        (layer.weight, layer.bias)
        for network in (world_model, policy_prior)
        for layer in network.modules()
        if isinstance(layer, nn.Linear) and layer is not world_model.reward_head[-1]
    ]
    assert len(layers) == 2 + 3 + 2 + 3 + 3
    layers += [(q_ensemble.params[i, "weight"], q_ensemble.params[i, "bias"]) for i in "01"]
    for weight, bias in layers:
        assert weight.std().item() == pytest.approx(0.02, rel=3 / weight.numel() ** 0.5)
        assert abs(weight.mean().item()) < 5 * 0.02 / weight.numel() ** 0.5
        if weight.numel() > 64:  # so few may all lie within 0.04
            assert weight.abs().max() > 0.04  # a uniform distribution of that std ends at 0.035
        assert not bias.any()
    assert not torch.equal(*q_ensemble.params["0", "weight"][:2])
    for zero in (world_model.reward_head[-1].state_dict(), q_ensemble.params["2"]):
        assert not zero["weight"].any() and not zero["bias"].any()
    for layer in world_model.modules():
        if isinstance(layer, nn.LayerNorm):
            assert (layer.weight == 1).all() and not layer.bias.any()


def test_encoder_has_the_layers_of_its_size():
    for depth, linears in ((1, 2), (2, 2), (4, 4)):
        world_model, _, _ = make_networks((24,), 6, ModelSize(8, 8, 16, depth, 2))
        assert sum(isinstance(m, nn.Linear) for m in world_model.encoder.modules()) == linears


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: model_size(7), r"size is 7; the choices are 1, 5, 19, 48, 317"),
        (lambda: model_size("5"), r"size is '5'; the choices are 1, 5, 19, 48, 317"),
        (lambda: model_size(1, mlp_dim=0), r"mlp_dim is 0; it must be at least 1"),
        (
            lambda: make_networks((3,), 2, model_size(1, latent_dim=20)),
            r"latent_dim is 20; it must be a multiple of simnorm_dim = 8",
        ),
        (
            lambda: make_networks((3,), 2, model_size(1, num_q=1)),
            r"num_q is 1; it must be at least 2",
        ),
        (
            lambda: make_networks((3, 32, 32), 2, MODEL_SIZES[1]),
            r"shape is \(3, 32, 32\);.*\(D,\).*\(C, 64, 64\)",
        ),
        (
            lambda: make_networks((3, 64, 64), 2, model_size(1, latent_dim=24)),
            r"latent_dim \(here 24\) is a multiple of 16",
        ),
    ],
)
def test_bad_size_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_size_takes_overrides_and_ignores_none():
    size = model_size(5, latent_dim=64, mlp_dim=None)
    assert size == ModelSize(256, 512, 64, 2, 5)
    assert MODEL_SIZES[5].latent_dim == 512


# ---------------------------------------------------------------- policy prior


def test_policy_sample_matches_a_squashed_gaussian():
    policy_prior = tiny_networks()[1].double()
    latent = torch.randn(50, LATENT, dtype=torch.float64)
    eps = torch.randn(50, ACTION, dtype=torch.float64)
    mean, log_std = policy_prior.mean_and_log_std(latent)
    normal = Independent(Normal(mean, log_std.exp()), 1)
    u = mean + log_std.exp() * eps
    squashed = TransformedDistribution(normal, TanhTransform())
    sample = policy_prior.sample(latent, eps)
    close(sample.action, u.tanh())
    close(policy_prior.act(latent, eps), u.tanh())
    close(sample.mean, mean.tanh())
    close(sample.scaled_entropy.squeeze(-1), -ACTION * normal.log_prob(u))
    near = (u.abs() < 2).all(-1)  # the guard against log(0) shows beyond
    expected = -squashed.log_prob(u.tanh())
    close(sample.entropy.squeeze(-1)[near], expected[near], rtol=1e-3, atol=1e-4)


def test_policy_log_std_stays_in_its_range():
    network = nn.Linear(1, 2)
    network.weight.data.copy_(torch.tensor([[0.0], [1.0]])), network.bias.data.zero_()
    policy_prior = PolicyPrior(network, log_std_min=-3.0, log_std_max=1.0)
    _, log_std = policy_prior.mean_and_log_std(torch.tensor([[-50.0], [0.0], [50.0]]))
    close(log_std.flatten(), torch.tensor([-3.0, -1.0, 1.0]))


def test_policy_samples_when_exploring_and_else_takes_the_mode():
    _, policy_prior, _ = tiny_networks()
    data = TensorDict(latent=torch.randn(7, LATENT), batch_size=7)
    with set_exploration_type(ExplorationType.RANDOM):
        close(seeded(policy_prior, data)["action"], seeded(policy_prior.act, data["latent"]))
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        close(policy_prior(data)["action"], policy_prior.mean_and_log_std(data["latent"])[0].tanh())


# ---------------------------------------------------------------- world model and its parts


def test_world_model_from_your_own_parts_and_keys():
    encoder, dynamics = nn.Linear(3, 4), Linear(4 + 2, 4)
    reward_head, termination_head = Linear(4 + 2, 11), nn.Linear(4, 1)
    world_model = TDMPC2WorldModel(
        encoder,
        dynamics,
        reward_head,
        termination_head,
        latent_dim=4,
        two_hot=SymlogTwoHot(11, -2, 2),
        observation_key=("agent", "state"),
        action_key="move",
        latent_key=("agent", "z"),
    )
    state, move = torch.randn(5, 3, 3), torch.randn(5, 3, 2)
    data = TensorDict({("agent", "state"): state, "move": move}, batch_size=(5, 3))
    rollout = world_model(data)
    z = encoder(state[:, 0])
    for t in range(3):
        close(rollout["agent", "z"][:, t], z)
        features = torch.cat([z, move[:, t]], -1)
        expected = world_model.two_hot.decode(reward_head(features))
        close(world_model.reward(z, move[:, t]), expected)
        z = dynamics(features)
        close(rollout["next", "agent", "z"][:, t], z)
        close(world_model.termination(z), torch.sigmoid(termination_head(z)))
    assert world_model.episodic


def test_official_networks_around_your_own_encoder():
    encoder = nn.Sequential(nn.Flatten(-2), nn.Linear(6, LATENT))
    size = ModelSize(8, 8, LATENT, 2, 2)
    world_model, _, _ = make_networks((2, 3), ACTION, size, encoder=encoder)
    observation = torch.randn(7, 2, 3)
    close(world_model.encode(observation), encoder(observation))
    assert not world_model.episodic


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize("pad", [1, 3])
def test_shifted_frames_are_crops_of_the_padded_ones(pad):
    frames = torch.rand(40, 2, 9, 9)
    shift = torch.randint(2 * pad + 1, (40, 2))
    shift[:3] = torch.tensor([[0, 0], [2 * pad, 2 * pad], [0, 2 * pad]])
    padded = F.pad(frames, (pad, pad, pad, pad), mode="replicate")
    shifted = shift_frames(frames, shift, pad)
    for i, (row, column) in enumerate(shift.tolist()):
        assert torch.equal(shifted[i], padded[i, :, row : row + 9, column : column + 9])
    assert torch.equal(shift_frames(frames, torch.full((40, 2), pad), pad), frames)


def test_pixel_encoder_scales_and_convolves():
    encoder = PixelEncoder(9, 4, SimNorm(8), pad=0)
    frames = torch.randint(256, (2, 3, 9, 64, 64), dtype=torch.uint8)
    x = frames.flatten(0, 1) / 255.0 - 0.5
    for layer, stride in ((0, 2), (2, 2), (4, 2), (6, 1)):
        x = F.conv2d(x, encoder[layer].weight, encoder[layer].bias, stride=stride)
        x = x.relu() if layer < 6 else x
    expected = x.flatten(1).view(6, 8, 8).softmax(-1).view(2, 3, 64)[..., official_order(64, 8)]
    close(encoder(frames), expected, rtol=1e-4, atol=1e-5)
    close(encoder(frames[0, 0]), expected[0, 0], rtol=1e-4, atol=1e-5)


def test_pixel_encoder_shifts_each_frame_at_every_call():
    encoder = PixelEncoder(3, 4, SimNorm(8))
    frames = torch.randint(256, (3, 64, 64), dtype=torch.uint8).expand(6, -1, -1, -1)
    first, again, other = (seeded(encoder.eval(), frames, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first[0], first[1])


def test_pixel_encoder_draws_every_shift(monkeypatch):
    shifts = []

    def recorded(frames, shift, pad):
        shifts.append(shift)
        return shift_frames(frames, shift, pad)

    monkeypatch.setattr(pixel_encoder, "shift_frames", recorded)
    frames = torch.zeros(200, 3, 64, 64, dtype=torch.uint8)
    seeded(PixelEncoder(3, 4, SimNorm(8), pad=3), frames)
    (shift,) = shifts
    assert shift.unique().tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_pixel_networks_give_latents():
    size = ModelSize(8, 8, 32, 2, 2)
    world_model, _, _ = make_networks((9, 64, 64), ACTION, size)
    latent = world_model.encode(torch.randint(256, (2, 9, 64, 64), dtype=torch.uint8))
    close(latent.view(2, 8, 4).sum(1), torch.ones(2, 4))


# ---------------------------------------------------------------- value scale


def test_value_scale_averages_the_percentile_range():
    scale, expected = RunningPercentileScale(tau=0.1), 1.0
    for seed, size in enumerate((50.0, 0.01, 3.0)):
        values = size * seeded(torch.randn, 64, 1, seed=seed)
        low, high = np.percentile(values.numpy(), [5, 95])
        expected = 0.9 * expected + 0.1 * max(high - low, 1.0)
        scale.update(values)
        assert scale.value.item() == pytest.approx(expected, rel=1e-4)
    close(scale(torch.tensor([2.0])), torch.tensor([2.0 / expected]).float())
    assert dict(scale.named_parameters()) == {} and list(scale.state_dict()) == ["value"]


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_value_scale_stays_where_the_spread_is_not_finite(lost):
    scale = RunningPercentileScale(tau=0.5)
    values = [0.0] * 10 + [10.0] * 9 + [lost]  # the 95th percentile lies between the last two
    scale.update(torch.tensor(values))
    assert scale.value == 1


def test_parameters_are_reset_as_they_were_initialised():
    networks = tiny_networks(episodic=True)
    loss = TDMPC2Loss(*networks, discount=0.9)
    seeded(loss.reset_parameters_recursive)
    world_model, policy_prior, q_ensemble = networks
    encoder = world_model.encoder[0]
    assert encoder.weight.std().item() == pytest.approx(0.02, rel=3 / encoder.weight.numel() ** 0.5)
    assert not encoder.bias.any() and (encoder.ln.weight == 1).all()
    assert not world_model.reward_head[-1].weight.any()
    assert policy_prior.network[-1].weight.abs().max() < 0.1
    assert q_ensemble.params["1", "weight"].abs().max() < 0.1
    assert not q_ensemble.params["2", "weight"].any()
