"""Measure what the change saves: the code before and after it, by turns in one process.

Run it with the patched TorchRL on PYTHONPATH. Arguments: the folder of the unpatched one, and a
published size, 1 or 5, or 0 for small networks. It prints how many operators one call dispatches,
views aside (on an accelerator: about the kernels that it launches), the CPU time of one thread for
one call, best of several, and how far apart the plans are.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import torch
from hydra.utils import instantiate
from tensordict import TensorDict
from torch.utils._python_dispatch import TorchDispatchMode
from torchrl.modules import TdMpc2Planner, TdMpc2QEnsemble
from torchrl.trainers.algorithms.configs import (
    TdMpc2PolicyPriorConfig,
    TdMpc2QEnsembleConfig,
    TdMpc2WorldModelConfig,
)

OBSERVATION_DIM, ACTION_DIM = 24, 6
# latent_dim, mlp_dim, num_q; the first is none of the published ones
SIZES = {0: (16, 16, 5), 1: (128, 384, 2), 5: (512, 512, 5)}


def load(root: Path, name: str):
    """The module of the unpatched TorchRL, beside the patched one."""
    path = root / Path(*name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(name + "_before", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def make_planner(planner_class: type, q_class: type, size: int) -> TdMpc2Planner:
    """The planner at a published size, with equal weights at every call."""
    latent_dim, mlp_dim, num_q = SIZES[size]
    sizes = {"latent_dim": latent_dim, "action_dim": ACTION_DIM, "mlp_dim": mlp_dim}
    torch.manual_seed(0)
    world_model = instantiate(
        TdMpc2WorldModelConfig(
            **sizes, observation_dim=OBSERVATION_DIM, encoder_depth=2
        )
    )
    policy_prior = instantiate(TdMpc2PolicyPriorConfig(**sizes))
    q_ensemble = instantiate(TdMpc2QEnsembleConfig(**sizes, num_q=num_q))
    with (
        torch.no_grad()
    ):  # the last layers start at zero, where all candidates are worth the same
        for parameter in [
            *q_ensemble.q_params.parameters(),
            *world_model.reward_head.parameters(),
        ]:
            parameter.add_(torch.randn_like(parameter) / 50)
    q_ensemble.__class__ = q_class
    return planner_class(world_model, policy_prior, q_ensemble)


def plan(planner: TdMpc2Planner, num_envs: int) -> TensorDict:
    """One call, from the same observations and seed every time."""
    torch.manual_seed(1)
    td = TensorDict(
        observation=torch.randn(num_envs, OBSERVATION_DIM), batch_size=[num_envs]
    )
    return planner(td).select(*planner.out_keys)


class Operators(TorchDispatchMode):
    """Count the operators that are dispatched, without those that only make views."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def operators(planner: TdMpc2Planner, num_envs: int) -> int:
    """How many operators one call dispatches; it does not depend on the size."""
    with Operators() as counted:
        plan(planner, num_envs)
    return counted.count


def main(root: Path, size: int) -> None:
    """Print a line for each number of environments."""
    torch.set_num_threads(1)
    q_before = load(root, "torchrl.modules.models.tdmpc2").TdMpc2QEnsemble
    planner_before = load(root, "torchrl.modules.planners.tdmpc2").TdMpc2Planner
    versions = {
        "nightly": (planner_before, q_before),
        "batched": (TdMpc2Planner, TdMpc2QEnsemble),
    }
    small = [make_planner(*classes, 0) for classes in versions.values()]
    for num_envs in (1, 4, 16):
        before, after = (operators(planner, num_envs) for planner in small)
        print(f"{num_envs:2} environments: {before} operators -> {after}", flush=True)
    planners = {
        name: make_planner(*classes, size) for name, classes in versions.items()
    }
    for num_envs in (1, 4, 16):
        best, plans = {}, {}
        for _ in range({1: 4, 4: 3, 16: 2}[num_envs]):
            for name, planner in planners.items():
                start = time.process_time()
                plans[name] = plan(planner, num_envs)
                taken = time.process_time() - start
                best[name] = min(best.get(name, taken), taken)
        far = max(
            (plans["nightly"] - plans["batched"]).abs().values(True, True),
            key=torch.max,
        )
        times = ", ".join(
            f"{name} {1000 * seconds:.0f} ms" for name, seconds in best.items()
        )
        print(
            f"{size}M, {num_envs:2} environments: {times};"
            f" ratio {best['nightly'] / best['batched']:.2f};"
            f" largest difference {far.max():.0e}",
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
