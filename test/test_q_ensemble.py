"""The Q ensemble: its stacked networks against plain ones."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tiny import ACTION, LATENT, NUM_Q, seeded, tiny_networks
from torch import nn

from torchrl_tdmpc import QEnsemble

close = torch.testing.assert_close
LOOSE = {"rtol": 1e-4, "atol": 1e-4}


def plain_q(q_ensemble, i):
    """The i-th Q-function as a plain network."""
    params = q_ensemble.params.data
    layers = []
    for name in "012":
        layer = params[name].apply(lambda weight: weight[i])
        linear = nn.Linear(*reversed(layer["weight"].shape))
        linear.load_state_dict({"weight": layer["weight"], "bias": layer["bias"]})
        layers.append(linear)
        if name != "2":
            norm = nn.LayerNorm(linear.out_features)
            norm.load_state_dict(layer["ln"].to_dict())
            layers += [norm, nn.Mish()]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("shape", [(), (7,), (4, 5), (2, 3, 4)])
def test_stacked_q_functions_equal_plain_networks(shape):
    _, _, q_ensemble = tiny_networks()
    latent, action = torch.randn(*shape, LATENT), torch.randn(*shape, ACTION)
    logits = q_ensemble.logits(latent, action)
    plain = [plain_q(q_ensemble, i)(torch.cat([latent, action], -1)) for i in range(NUM_Q)]
    close(logits, torch.stack(plain), rtol=1e-5, atol=1e-5)
    values = q_ensemble.value(latent, action)
    close(values, q_ensemble.two_hot.decode(torch.stack(plain)), **LOOSE)

    for pair in ([2, 0], [0, 2], [1, 1]):
        picked = q_ensemble.value(latent, action, pair=torch.tensor(pair))
        close(picked, values[pair], rtol=1e-5, atol=1e-5)


def test_q_gradients_equal_those_of_plain_networks():
    _, _, q_ensemble = tiny_networks()
    latent = torch.randn(7, LATENT, requires_grad=True)
    action = torch.randn(7, ACTION, requires_grad=True)
    weight = torch.randn(NUM_Q, 7, 101)
    (q_ensemble.logits(latent, action) * weight).sum().backward()
    ours = latent.grad.clone(), action.grad.clone()
    latent.grad = action.grad = None
    plain = [plain_q(q_ensemble, i) for i in range(NUM_Q)]
    for network, w in zip(plain, weight, strict=True):
        (network(torch.cat([latent, action], -1)) * w).sum().backward()
    close(ours, (latent.grad, action.grad), **LOOSE)
    for i, network in enumerate(plain):
        close(q_ensemble.params["0", "weight"].grad[i], network[0].weight.grad, **LOOSE)
        close(q_ensemble.params["0", "ln", "bias"].grad[i], network[1].bias.grad, **LOOSE)
        close(q_ensemble.params["1", "ln", "weight"].grad[i], network[4].weight.grad, **LOOSE)
        close(q_ensemble.params["2", "weight"].grad[i], network[6].weight.grad, **LOOSE)


def test_q_functions_take_other_weights():
    _, _, q_ensemble = tiny_networks(0)
    _, _, other = tiny_networks(1)
    latent, action = torch.randn(7, LATENT), torch.randn(7, ACTION)
    params = TensorDict.from_module(other)
    close(q_ensemble.value(latent, action, params=params), other.value(latent, action))
    pair = torch.tensor([1, 2])
    expected = other.value(latent, action, pair=pair)
    close(q_ensemble.value(latent, action, params=params, pair=pair), expected)


def test_q_dropout_is_an_argument_and_in_the_first_layer_only():
    _, _, q_ensemble = tiny_networks(dropout=0.5)
    q_ensemble.dropout = 1.0  # everything
    latent, action = torch.randn(7, LATENT), torch.randn(7, ACTION)
    dropped = q_ensemble.logits(latent, action, dropout=True)
    for i in range(NUM_Q):
        plain = plain_q(q_ensemble, i)
        close(dropped[i], plain[2:](plain[1].bias.expand(7, -1)), rtol=1e-5, atol=1e-5)
    for training in (True, False):
        logits = q_ensemble.train(training).logits(latent, action)
        plain = plain_q(q_ensemble, 1)(torch.cat([latent, action], -1))
        close(logits[1], plain, rtol=1e-5, atol=1e-5)


def test_q_ensemble_as_a_tensordict_module():
    q_ensemble = tiny_networks()[2].eval()
    data = TensorDict(latent=torch.randn(4, 5, LATENT), action=torch.randn(4, 5, ACTION))
    value = q_ensemble(data)["state_action_value"]
    expected = q_ensemble.value(data["latent"], data["action"])
    close(value, torch.stack([expected[i, ..., 0] for i in range(NUM_Q)], -1))


def test_q_ensemble_as_a_module_has_dropout_in_training_only():
    q_ensemble = tiny_networks(dropout=0.5)[2]
    q_ensemble.dropout = 1.0
    latent, action = torch.randn(4, LATENT), torch.randn(4, ACTION)
    for training in (True, False):
        data = TensorDict(latent=latent, action=action, batch_size=4)
        value = q_ensemble.train(training)(data)["state_action_value"]
        expected = q_ensemble.value(latent, action, dropout=training)
        close(value, expected.squeeze(-1).T)
        assert not torch.allclose(expected, q_ensemble.value(latent, action, dropout=not training))


@pytest.mark.parametrize("dropout", [-0.1, 1.5])
def test_dropout_that_is_no_probability_is_refused(dropout):
    with pytest.raises(ValueError, match=rf"dropout is {dropout}; it must be in \[0, 1\)"):
        QEnsemble(LATENT, ACTION, 8, dropout=dropout)


def test_drawn_pairs_are_different_and_cover_all_orders():
    q_ensemble = QEnsemble(LATENT, ACTION, 8, num_q=3)
    pairs = {tuple(seeded(q_ensemble.draw_pair, seed=seed).tolist()) for seed in range(60)}
    assert pairs == {(i, j) for i in range(3) for j in range(3) if i != j}
