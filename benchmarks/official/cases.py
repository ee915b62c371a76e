"""The configurations of the reference numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CASES", "CONFIG", "CONFIG_OF_TASKS", "Case"]

#: the official keys that are recorded
CONFIG = [
    "horizon",
    "batch_size",
    "action_dim",
    "num_q",
    "num_bins",
    "vmin",
    "vmax",
    "rho",
    "tau",
    "num_samples",
    "num_elites",
    "num_pi_trajs",
    "iterations",
    "min_std",
    "max_std",
    "temperature",
    "latent_dim",
    "mlp_dim",
    "enc_dim",
    "num_enc_layers",
    "simnorm_dim",
    "log_std_min",
    "log_std_max",
    "entropy_coef",
    "consistency_coef",
    "reward_coef",
    "value_coef",
    "termination_coef",
    "lr",
    "enc_lr_scale",
    "grad_clip_norm",
    "num_channels",
    "episodic",
]
#: those that are recorded of several tasks
CONFIG_OF_TASKS = [
    "task_dim",
    "action_dims",
    "episode_lengths",
    "discount_denom",
    "discount_min",
    "discount_max",
]


@dataclass(frozen=True)
class Case:
    """One configuration, small enough for a file of its numbers.

    A case of several tasks names the sizes of each, a case of one task names them once.
    """

    obs_dims: tuple[int, ...] = (7,)  #: size of each task's observation; empty for frames
    action_dims: tuple[int, ...] = (3,)  #: size of each task's action
    episode_lengths: tuple[int, ...] = (500,)  #: agent steps of each task's episode
    channels: int = 0  #: channels of frames
    shift: bool = False  #: whether frames are shifted at random
    settings: Mapping[str, Any] = field(default_factory=dict)  #: under the official keys

    @property
    def multitask(self) -> bool:
        """Whether one model serves several tasks."""
        return len(self.action_dims) > 1

    @property
    def obs_shape(self) -> tuple[int, ...]:
        """Shape of an observation, padded to the widest task."""
        return (self.channels, 64, 64) if self.channels else (max(self.obs_dims),)

    def config(self) -> dict[str, Any]:
        """The configuration under the official keys."""
        config = {
            "batch_size": 6,
            "num_samples": 40,
            "num_elites": 8,
            "num_pi_trajs": 4,
            "iterations": 3,
            "latent_dim": 32,
            "mlp_dim": 24,
            "enc_dim": 16,
            "dropout": 0.0,
            "obs": "rgb" if self.channels else "state",
            "obs_shape": {"rgb" if self.channels else "state": self.obs_shape},
            "action_dim": max(self.action_dims),
            "episode_length": max(self.episode_lengths),
        }
        if self.multitask:
            config |= {
                "multitask": True,
                "tasks": [f"task-{i}" for i in range(len(self.action_dims))],
                "action_dims": list(self.action_dims),
                "episode_lengths": list(self.episode_lengths),
            }
        return config | dict(self.settings)


#: fewer Q-functions and bins, deeper encoder, longer horizon, and clipping of gradients that bites
OTHER = {
    "num_enc_layers": 3,
    "num_q": 2,
    "num_bins": 51,
    "vmin": -5,
    "vmax": 5,
    "horizon": 4,
    "grad_clip_norm": 0.1,
}

CASES = {
    "state": Case(),
    "state_deep_encoder": Case(obs_dims=(5,), action_dims=(21,), settings=OTHER),
    "state_episodic": Case(settings={"episodic": True}),
    "pixels": Case(
        obs_dims=(),
        action_dims=(2,),
        channels=9,
        settings={"batch_size": 3, "latent_dim": 64, "num_channels": 4},
    ),
    "pixels_shift_dropout": Case(
        obs_dims=(),
        action_dims=(2,),
        channels=3,
        shift=True,
        settings={
            "batch_size": 3,
            "latent_dim": 64,
            "num_channels": 4,
            "horizon": 2,
            "num_q": 3,
            "num_bins": 51,
            "dropout": 0.3,
        },
    ),
    "multitask": Case(
        obs_dims=(4, 9, 6, 3),
        action_dims=(3, 1, 6, 2),
        episode_lengths=(250, 60, 1500, 400),
        settings={"batch_size": 10, "task_dim": 12},
    ),
    "multitask_two": Case(
        obs_dims=(3, 7),
        action_dims=(2, 22),
        episode_lengths=(125, 1000),
        settings={**OTHER, "batch_size": 8, "task_dim": 7},
    ),
}
