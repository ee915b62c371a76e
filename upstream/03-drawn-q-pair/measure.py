"""Measure what the change saves: the code before and after it, by turns in one process.

Run it with the patched TorchRL on PYTHONPATH, and the folder of the unpatched one as the argument.
It prints the CPU time of one thread, best of several calls, at the 5M size of TD-MPC2.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import torch
from hydra.utils import instantiate
from tensordict import TensorDict
from torchrl.modules import TdMpc2QEnsemble
from torchrl.objectives import TdMpc2Loss
from torchrl.trainers.algorithms.configs import (
    TdMpc2PolicyPriorConfig,
    TdMpc2QEnsembleConfig,
    TdMpc2WorldModelConfig,
)

SIZES = {"latent_dim": 512, "action_dim": 6, "mlp_dim": 512}
CALLS = 12


def load(root: Path, name: str):
    """The module of the unpatched TorchRL, beside the patched one."""
    path = root / Path(*name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(name + "_before", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def make_loss(q_class: type, loss_class: type, dropout: float) -> TdMpc2Loss:
    """The loss with equal weights at every call, whatever the classes."""
    torch.manual_seed(0)
    world_model = TdMpc2WorldModelConfig(**SIZES, observation_dim=24, encoder_depth=2)
    q_ensemble = instantiate(TdMpc2QEnsembleConfig(**SIZES, dropout=dropout))
    with torch.no_grad():
        for parameter in q_ensemble.q_params.parameters():
            parameter.add_(torch.randn_like(parameter) / 50)
    q_ensemble.soft_update_target(1.0)
    q_ensemble.__class__ = q_class
    policy_prior = instantiate(TdMpc2PolicyPriorConfig(**SIZES))
    loss = TdMpc2Loss(instantiate(world_model), policy_prior, q_ensemble)
    loss.__class__ = loss_class
    return loss


def work(loss: TdMpc2Loss) -> dict:
    """What is measured: a value and, where there is a backward pass, gradients."""
    torch.manual_seed(1)
    shape, latents = (256, 3), torch.rand(256, 4, 512).softmax(-1)
    following = TensorDict(
        observation=torch.randn(*shape, 24),
        reward=torch.randn(*shape, 1),
        terminated=torch.zeros(*shape, 1, dtype=torch.bool),
        batch_size=shape,
    )
    batch = TensorDict(
        observation=torch.randn(*shape, 24),
        action=torch.rand(*shape, 6) * 2 - 1,
        next=following,
        batch_size=shape,
    )

    def reduce(source: str, rows: int):
        td = TensorDict(latent=latents.flatten(0, 1)[:rows], batch_size=[rows])
        td["action"] = torch.linspace(-1, 1, 6 * rows).view(rows, 6)
        with torch.no_grad():
            loss.q_ensemble.reduce(td, reduction="avg", source=source)
        return [td["q_value"]]

    def backward(value, parameters):
        value.backward()
        grads = [p.grad for p in parameters if p.grad is not None]
        for p in parameters:
            p.grad = None
        return [value.detach(), *grads]

    return {
        "reduce, online, 512 rows": lambda: reduce("online", 512),
        "reduce, detached, 1024 rows": lambda: reduce("detached", 1024),
        "reduce, target, 768 rows": lambda: reduce("target", 768),
        "model loss and backward": lambda: backward(
            loss.model_loss(batch)[0],
            [*loss.world_model.parameters(), *loss.q_ensemble.parameters()],
        ),
        "actor loss and backward": lambda: backward(
            loss.actor_loss_from_latents(latents)[0], [*loss.policy_prior.parameters()]
        ),
    }


def main(root: Path) -> None:
    """Print a line for each piece of work."""
    torch.set_num_threads(1)
    before = (
        load(root, "torchrl.modules.models.tdmpc2"),
        load(root, "torchrl.objectives.tdmpc2"),
    )
    classes = [
        (before[0].TdMpc2QEnsemble, before[1].TdMpc2Loss),
        (TdMpc2QEnsemble, TdMpc2Loss),
    ]
    timed = [work(make_loss(*pair, dropout=0.01)) for pair in classes]
    compared = [work(make_loss(*pair, dropout=0.0)) for pair in classes]
    for name in timed[0]:
        best = [float("inf")] * 2
        for _ in range(CALLS):
            for version in range(2):
                start = time.process_time()
                timed[version][name]()
                best[version] = min(best[version], time.process_time() - start)
        results = []
        for version in range(2):
            torch.manual_seed(2)
            results.append(compared[version][name]())
        far = max(
            ((a - b).abs().max() / a.abs().max().clamp_min(1e-12)).item()
            for a, b in zip(*results)
        )
        print(
            f"{name:28} {1000 * best[0]:7.1f} ms -> {1000 * best[1]:7.1f} ms,"
            f" ratio {best[0] / best[1]:.2f}, difference {far:.0e}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
