"""Train our auxiliary value heads on the latents of TorchRL's own TD-MPC2.

TorchRL's nightly ships a TD-MPC2 that shares no code with ours. Here its world model unrolls the
latents, its Q-functions and policy make the bootstrap, and :class:`MultiGammaValueLoss` adds the
heads: a latent rollout is all it asks for. The nightly has an environment of its own, which
``make test-nightly`` and ``make bench`` fill::

    make .venv-nightly/.nightly
    PYTHONPATH=. .venv-nightly/bin/python benchmarks/multi_gamma_on_torchrl_nightly.py

It prints each discount's cross-entropy on held-out slices, which falls, and says whether the heads'
gradients reached TorchRL's encoder and dynamics and nothing else of its model.
"""

from __future__ import annotations

import argparse
import importlib.metadata

import torch
from hydra.utils import instantiate
from tensordict import TensorDict
from torch import nn
from torchrl.objectives import SoftUpdate, TdMpc2Loss
from torchrl.trainers.algorithms.configs import (
    TdMpc2PolicyPriorConfig,
    TdMpc2QEnsembleConfig,
    TdMpc2WorldModelConfig,
)

from torchrl_tdmpc import AuxiliaryValueHeads, MultiGammaValueLoss

OBSERVATION, ACTION, LATENT, WIDTH, HORIZON = 4, 2, 64, 128, 3
GAMMAS = [0.99, 0.9, 0.97, 0.995]
TAU = 0.05


def make_slices(count: int, generator: torch.Generator) -> TensorDict:
    """Slices ``[count, HORIZON]`` of a damped point that is pushed about and likes the origin."""
    state = torch.randn(count, OBSERVATION, generator=generator)
    steps = []
    for _ in range(HORIZON):
        action = torch.rand(count, ACTION, generator=generator) * 2 - 1
        following = 0.9 * state + 0.3 * torch.cat([action, action], -1)
        reward = 5 - following.square().sum(-1, keepdim=True)
        after = TensorDict(
            observation=following,
            reward=reward,
            terminated=reward < -5,
            batch_size=count,
        )
        steps.append(TensorDict(observation=state, action=action, next=after, batch_size=count))
        state = following
    return torch.stack(steps, 1)


def make_their_loss() -> TdMpc2Loss:
    """TorchRL's TD-MPC2, built from its own configuration classes."""
    sizes = {"latent_dim": LATENT, "action_dim": ACTION, "mlp_dim": WIDTH}
    world_model = TdMpc2WorldModelConfig(observation_dim=OBSERVATION, encoder_dim=WIDTH, **sizes)
    parts = (world_model, TdMpc2PolicyPriorConfig(**sizes), TdMpc2QEnsembleConfig(**sizes))
    return TdMpc2Loss(*map(instantiate, parts), horizon=HORIZON, discount=GAMMAS[0])


def unroll(theirs: TdMpc2Loss, batch: TensorDict) -> TensorDict:
    """A latent rollout ``[B, H]``, every number of it from TorchRL's modules, under their names."""
    model = theirs.world_model

    def encode(observation):
        return model.encode(TensorDict(observation=observation, batch_size=observation.shape[:-1]))

    # z_0 = h(s_0), z_{t+1} = d(z_t, a_t), with gradient
    latents = [encode(batch["observation"][:, 0])["latent"]]
    for action in batch["action"][:, :-1].unbind(1):
        step = TensorDict(latent=latents[-1], action=action, batch_size=len(batch))
        latents.append(model.step(step)["next", "latent"])

    # V(s'): the smaller of two target Q-functions at the policy's action, without
    with torch.no_grad():
        following = theirs.policy_prior(encode(batch["next", "observation"]))
        following = theirs.q_ensemble.reduce(following, reduction="min", source="target")
    following = following.select("latent", "q_value")
    following.update(batch["next"].select("reward", "terminated"))
    return TensorDict(latent=torch.stack(latents, 1), next=following, batch_size=batch.batch_size)


def make_our_loss(bootstrap: str) -> MultiGammaValueLoss:
    """The heads, reading TorchRL's names."""
    heads = AuxiliaryValueHeads(LATENT, num_heads=len(GAMMAS) - 1, num_bins=101)
    ours = MultiGammaValueLoss(heads, GAMMAS, bootstrap=bootstrap)
    ours.set_keys(state_value="q_value", target_latent="latent")
    return ours


def reached(module: nn.Module) -> bool:
    """Whether any parameter has a gradient that is not zero."""
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


def reached_parts(theirs: TdMpc2Loss, ours: MultiGammaValueLoss, batch: TensorDict) -> list[str]:
    """What the gradient of the heads' loss reaches."""
    theirs.zero_grad()
    ours.zero_grad()
    ours(unroll(theirs, batch))["loss_multi_gamma"].backward()
    parts = {
        "encoder": theirs.world_model.encoder,
        "dynamics": theirs.world_model.dynamics,
        "reward": theirs.world_model.reward_head,
        "policy prior": theirs.policy_prior,
        "Q-functions": theirs.q_ensemble,
        "heads": ours.heads,
    }
    return [name for name, part in parts.items() if reached(part)]


def main() -> None:
    """Train, and print what the heads know now and then."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--bootstrap", choices=("primary", "self"), default="primary")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    held_out = make_slices(1024, generator)

    theirs, ours = make_their_loss(), make_our_loss(arguments.bootstrap)
    model = nn.ModuleList([theirs.world_model, theirs.q_ensemble, ours.heads])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    target_heads = [SoftUpdate(ours, tau=TAU)] if arguments.bootstrap == "self" else []

    versions = {name: importlib.metadata.version(name) for name in ("torchrl-nightly", "torch")}
    print(*(f"{name} {version}" for name, version in versions.items()), sep=", ")
    print("cross-entropy " + "".join(f"{label:>9}" for label in ours.labels))
    history = []
    for update in range(arguments.updates + 1):
        if update % max(arguments.updates // 6, 1) == 0:
            with torch.no_grad():
                output = ours(unroll(theirs, held_out))
            history.append([output[f"aux_value_ce/{label}"].item() for label in ours.labels])
            print(f"update {update:6d} " + "".join(f"{value:9.4f}" for value in history[-1]))
        batch = make_slices(arguments.batch_size, generator)
        model_loss, _ = theirs.model_loss(batch)
        loss = model_loss + ours(unroll(theirs, batch))["loss_multi_gamma"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs.q_ensemble.soft_update_target(TAU)
        for target_update in target_heads:
            target_update.step()

    print("gradient of the heads' loss in: " + ", ".join(reached_parts(theirs, ours, held_out)))
    if not all(last < first for first, last in zip(history[0], history[-1])):
        raise SystemExit("the cross-entropy did not fall for every discount")


if __name__ == "__main__":
    main()
