"""The reference numbers: where they lie, and our networks filled with their weights.

The arrays are described in ``test/reference/README.md``.
"""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from torchrl_tdmpc import LatentEnv, SymlogTwoHot, TDMPC2Loss, TDMPC2Planner, make_networks
from torchrl_tdmpc.modules import ModelSize, PixelEncoder, SimNorm
from torchrl_tdmpc.training import TDMPC2Update

FOLDER = Path(os.environ.get("TORCHRL_TDMPC_REFERENCE", Path(__file__).parent / "reference"))


class Reference:
    """One file of reference numbers.

    ``reference["batch/action"]`` is an array as a tensor, ``reference.config["rho"]`` a scalar,
    and ``reference.group("update_0")`` all arrays below a name.
    """

    def __init__(self, path: Path):
        with np.load(path) as arrays:
            self.arrays = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        self.config = {name: value.item() for name, value in self.group("config").items()}
        config = self.config
        self.two_hot = SymlogTwoHot(config["num_bins"], config["vmin"], config["vmax"])

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def group(self, name: str) -> dict[str, Tensor]:
        prefix = name + "/"
        return {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}

    def make_networks(self):
        """Our networks with the weights before the first update."""
        config = self.config
        size = ModelSize(**{field.name: config[field.name] for field in fields(ModelSize)})
        shape = tuple(self["batch/observation"].shape[2:])
        networks = make_networks(
            shape,
            config["action_dim"],
            size,
            encoder=self._encoder_without_shift(shape),
            episodic=config["episodic"],
            two_hot=self.two_hot,
            simnorm_dim=config["simnorm_dim"],
            dropout=0.0,
            log_std_min=config["log_std_min"],
            log_std_max=config["log_std_max"],
        )
        world_model, policy_prior, q_ensemble = networks
        weights = self.group("params_before")
        for part, module in published_parts(world_model, policy_prior).items():
            module.load_state_dict(our_names(module, below(weights, part)))
        q_ensemble.load_state_dict(below(weights, "_Qs"))
        return networks

    def _encoder_without_shift(self, shape: tuple[int, ...]) -> PixelEncoder | None:
        """The reference replaced the random shift of frames by the identity."""
        if len(shape) == 1:
            return None
        simnorm = SimNorm(self.config["simnorm_dim"])
        return PixelEncoder(shape[0], self.config["num_channels"], simnorm, pad=0)

    def make_loss(self) -> TDMPC2Loss:
        """Our loss on those networks, target Q-functions not yet set."""
        config = self.config
        coefficients = ("consistency_coef", "reward_coef", "value_coef", "termination_coef")
        return TDMPC2Loss(
            *self.make_networks(),
            discount=config["discount"],
            rho=config["rho"],
            entropy_coef=config["entropy_coef"],
            value_scale_tau=config["tau"],
            **{name: config[name] for name in coefficients},
        )

    def make_update(self) -> TDMPC2Update:
        """Our update on that loss, with the reference's target Q-functions."""
        config = self.config
        loss = self.make_loss()
        update = TDMPC2Update(
            loss,
            lr=config["lr"],
            encoder_lr_scale=config["enc_lr_scale"],
            grad_clip_norm=config["grad_clip_norm"],
            tau=config["tau"],
        )
        loss.target_q_ensemble_params.data.update_(self.target_params("params_before"))
        return update

    def make_planner(self) -> TDMPC2Planner:
        """Our planner on those networks."""
        config = self.config
        world_model, policy_prior, q_ensemble = self.make_networks()
        names = ("discount", "horizon", "iterations", "num_samples", "num_elites")
        names += ("min_std", "max_std", "temperature")
        return TDMPC2Planner(
            LatentEnv(world_model, config["action_dim"]),
            policy_prior,
            q_ensemble,
            num_policy_trajs=config["num_pi_trajs"],
            **{name: config[name] for name in names},
        )

    def target_params(self, group: str) -> TensorDict:
        """Weights of the target Q-functions, laid out as ``TensorDict.from_module`` does."""
        weights = below(self.group(group), "_target_Qs_params")
        return TensorDict({("params", *name.split(".")): w for name, w in weights.items()})

    def batch(self) -> TensorDict:
        """The batch ``[B, H]``; the file has time first."""
        observation, action, reward, terminated = (
            self[f"batch/{name}"].transpose(0, 1).contiguous()
            for name in ("observation", "action", "reward", "terminated")
        )
        shape = action.shape[:2]
        terminated = terminated.bool()
        following = {
            "observation": observation[:, 1:],
            "reward": reward,
            "terminated": terminated,
            "done": terminated,
        }
        return TensorDict(
            observation=observation[:, :-1],
            action=action,
            next=TensorDict(following, batch_size=shape),
            batch_size=shape,
        )


def below(weights: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The weights of one published part, under their names inside it."""
    prefix = part + "."
    return {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}


def our_names(module: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published names inside a part, as ours: an encoder's begin with its observation's name, and
    the pixel encoder's layers are counted from its two steps of preprocessing on."""
    if isinstance(module, PixelEncoder):
        layers = (name.removeprefix("rgb.").split(".") for name in weights)
        return {f"{int(i) - 2}.{leaf}": w for (i, leaf), w in zip(layers, weights.values())}
    return {name.removeprefix("state."): weight for name, weight in weights.items()}


def published_parts(world_model, policy_prior) -> dict[str, nn.Module]:
    """Our modules by the published checkpoint's names (Q-functions excepted)."""
    parts = {
        "_encoder": world_model.encoder,
        "_dynamics": world_model.dynamics,
        "_reward": world_model.reward_head,
        "_pi": policy_prior.network,
    }
    if world_model.episodic:
        parts["_termination"] = world_model.termination_head
    return parts


def references() -> dict[str, Reference]:
    """Every file of reference numbers by its name."""
    return {path.stem: Reference(path) for path in sorted(FOLDER.glob("*.npz"))}
