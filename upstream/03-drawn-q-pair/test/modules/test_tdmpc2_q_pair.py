from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchrl.modules import TdMpc2QEnsemble
from torchrl.modules.models.tdmpc2 import symlog_two_hot_decode

NUM_Q, NUM_BINS, VMIN, VMAX = 5, 11, -10.0, 10.0


def _make_q_network():
    return nn.Sequential(nn.Linear(6, 16), nn.Mish(), nn.Linear(16, NUM_BINS))


def _make_ensemble(**kwargs):
    torch.manual_seed(0)
    ensemble = TdMpc2QEnsemble(
        [_make_q_network() for _ in range(NUM_Q)],
        num_bins=NUM_BINS,
        vmin=VMIN,
        vmax=VMAX,
        **kwargs,
    ).double()
    with torch.no_grad():
        for target in ensemble.target_q_params.data.values(True, True):
            target.add_(0.1)
    return ensemble


def _make_td(latent_key="latent", action_key="action"):
    torch.manual_seed(1)
    td = TensorDict(batch_size=[7])
    td.set(latent_key, torch.randn(7, 4, dtype=torch.double))
    td.set(action_key, torch.randn(7, 2, dtype=torch.double))
    return td


def _reduce(ensemble, td, reduction, source):
    td = ensemble.reduce(td.copy(), reduction=reduction, source=source)
    return td.get(ensemble.q_value_key)


def _reduce_all(ensemble, td, reduction, source):
    """Evaluate every Q-function, then reduce the two that the seed draws."""
    pair = torch.randperm(NUM_Q)[:2]
    logits = ensemble(td.copy(), source=source).get(ensemble.out_keys[0])[:, pair]
    values = symlog_two_hot_decode(logits, VMIN, VMAX, NUM_BINS)
    if reduction == "min":
        return values.min(-2).values
    return values.mean(-2)


class _CountHidden(TorchDispatchMode):
    """Count the hidden activations that are computed."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.mish.default:
            self.count += output.numel()
        return output


def _count(function, *args, **kwargs):
    """Return how many Q-functions are evaluated on the 7 inputs, and the output."""
    with _CountHidden() as hidden:
        output = function(*args, **kwargs)
    return hidden.count / (7 * 16), output


class TestTdMpc2QPair:
    @pytest.mark.parametrize("source", ["online", "detached", "target"])
    @pytest.mark.parametrize("reduction", ["min", "avg"])
    def test_values(self, source, reduction):
        ensemble, td = _make_ensemble(), _make_td()
        for seed in range(5):
            torch.manual_seed(seed)
            expected = _reduce_all(ensemble, td, reduction, source)
            torch.manual_seed(seed)
            count, value = _count(_reduce, ensemble, td, reduction, source)
            torch.testing.assert_close(value, expected)
            assert count == 2

    @pytest.mark.parametrize("reduction", ["min", "avg"])
    def test_parameter_gradients(self, reduction):
        steps = 4
        states, grads, counts = [], [], []
        for reduce in (_reduce_all, _reduce):
            ensemble, td = _make_ensemble(), _make_td()
            optimizer = torch.optim.Adam(ensemble.q_params.parameters(), lr=1e-2)
            torch.manual_seed(2)
            for _ in range(steps):
                optimizer.zero_grad()
                count, value = _count(reduce, ensemble, td, reduction, "online")
                value.sum().backward()
                grads.append([p.grad.clone() for p in ensemble.q_params.parameters()])
                counts.append(count)
                optimizer.step()
            states.append(ensemble.state_dict())
        for before, now in zip(grads[:steps], grads[steps:]):
            torch.testing.assert_close(now, before)
        # Functions that were not drawn have a gradient of zero, not None, so that an
        # optimizer with moments treats them as before.
        for grad in grads[steps]:
            assert (grad.flatten(1) == 0).all(1).sum() == NUM_Q - 2
        torch.testing.assert_close(states[1], states[0])
        assert counts == [NUM_Q] * steps + [2] * steps

    @pytest.mark.parametrize("source", ["online", "detached", "target"])
    def test_input_gradients(self, source):
        ensemble = _make_ensemble()
        grads, counts = [], []
        for reduce in (_reduce_all, _reduce):
            td = _make_td()
            action = td["action"].requires_grad_()
            torch.manual_seed(3)
            count, value = _count(reduce, ensemble, td, "avg", source)
            grads.append(torch.autograd.grad(value.sum(), action)[0])
            counts.append(count)
        torch.testing.assert_close(grads[1], grads[0])
        assert counts == [NUM_Q, 2]

    def test_nested_keys(self):
        ensemble = _make_ensemble(
            in_keys=[("inputs", "latent"), ("inputs", "action")],
            out_keys=[("outputs", "q_logits")],
            q_value_key=("outputs", "q_value"),
        )
        td = _make_td(("inputs", "latent"), ("inputs", "action"))
        torch.manual_seed(4)
        expected = _reduce_all(ensemble, td, "min", "target")
        torch.manual_seed(4)
        count, value = _count(_reduce, ensemble, td, "min", "target")
        torch.testing.assert_close(value, expected)
        assert count == 2


if __name__ == "__main__":
    pytest.main()
