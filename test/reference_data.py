"""The reference numbers: where they lie, and our networks filled with their weights.

The arrays are described in ``test/reference/README.md``.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_tdmpc import (
    SymlogTwoHot,
    TaskContext,
    TDMPC2Loss,
    TDMPC2Planner,
    make_networks,
)
from torchrl_tdmpc.checkpoints import official_weights
from torchrl_tdmpc.checkpoints.official_entries import reorder_latent
from torchrl_tdmpc.modules import Execution, ModelSize, PixelEncoder, SimNorm, official_order
from torchrl_tdmpc.trainers import TDMPC2Update

FOLDER = Path(os.environ.get("TORCHRL_TDMPC_REFERENCE", Path(__file__).parent / "reference"))


class Reference:
    """One file of reference numbers.

    ``reference["batch/action"]`` is an array as a tensor, ``reference.config["rho"]`` a scalar,
    and ``reference.group("update_0")`` all arrays below a name.
    """

    def __init__(self, path: Path):
        with np.load(path) as arrays:
            self.arrays = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        self.config = {name: value.tolist() for name, value in self.group("config").items()}
        config = self.config
        self.two_hot = SymlogTwoHot(config["num_bins"], config["vmin"], config["vmax"])

    @property
    def multitask(self) -> bool:
        """Whether one model serves several tasks."""
        return "batch/task" in self.arrays

    @property
    def shifts_or_drops(self) -> bool:
        """Whether frames were shifted at random or outputs dropped."""
        return "forward/shift" in self.arrays or "dropout" in self.config

    @property
    def order(self) -> Tensor:
        """Where each feature of our latent stands in the published one."""
        return official_order(self.config["latent_dim"], self.config["simnorm_dim"])

    @property
    def is_multitask(self) -> bool:
        """Whether one model has several tasks."""
        return "tasks" in self.config

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def group(self, name: str) -> dict[str, Tensor]:
        prefix = name + "/"
        return {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}

    def make_loss(self) -> TDMPC2Loss:
        """Our loss on networks with the weights before the first update, targets included."""
        config = self.config
        size = ModelSize(**{field.name: config[field.name] for field in fields(ModelSize)})
        shape = tuple(self["batch/observation"].shape[2:])
        networks = make_networks(
            shape,
            config["action_dim"],
            size,
            encoder=self._encoder(shape),
            task_context=self._task_context(),
            episodic=config["episodic"],
            two_hot=self.two_hot,
            simnorm_dim=config["simnorm_dim"],
            dropout=config.get("dropout", 0.0),
            log_std_min=config["log_std_min"],
            log_std_max=config["log_std_max"],
        )
        coefficients = ("consistency_coef", "reward_coef", "value_coef", "termination_coef")
        loss = TDMPC2Loss(
            *networks,
            discount=config.get("discount"),
            rho=config["rho"],
            entropy_coef=config["entropy_coef"],
            value_scale_tau=config["tau"],
            **{name: config[name] for name in coefficients},
        )
        weights = {
            n: w for n, w in self.group("params_before").items() if not n.startswith("log_std")
        }
        published = reorder_latent(weights, self.order)
        with torch.no_grad():
            for name, weight in official_weights(loss).items():
                weight.copy_(published[name])
        return loss

    def _task_context(self) -> TaskContext | None:
        """The tables of several tasks, the embedding of any weights."""
        if not self.is_multitask:
            return None
        names = ("action_dims", "discounts", "task_dim")
        return TaskContext(*(self.config[name] for name in names))

    def _encoder(self, shape: tuple[int, ...]) -> PixelEncoder | None:
        """One that shifts frames where the reference did: elsewhere it left them as they are."""
        if len(shape) == 1:
            return None
        pad = 3 if "forward/shift" in self.arrays else 0
        simnorm = SimNorm(self.config["simnorm_dim"])
        return PixelEncoder(shape[0], self.config["num_channels"], simnorm, pad=pad)

    @contextmanager
    def shifts_and_drops(self, group: str) -> Iterator[None]:
        """Networks shift frames and drop outputs as the reference did in a group of its numbers.

        All that was recorded must be used; without such records nothing is replaced.
        """
        numbers = self.group(group)
        shifts = [numbers[name] for name in ("next_shift", "shift") if name in numbers]
        # Ours are (row, column), batch before time
        shifts = deque(s.flip(-1).transpose(0, -2).reshape(-1, 2) for s in shifts)
        keeps = deque()
        if "q_keep" in numbers:
            keeps += numbers["q_keep"], numbers["policy_q_keep"][numbers["policy_q_pair"]]
        keeps = deque(k.transpose(1, 2).flatten(1, 2) for k in keeps)

        def randint(high, size, device):
            shift = shifts.popleft()
            assert (high, tuple(size)) == (7, tuple(shift.shape))
            return shift

        def dropout(x, p, training, inplace):
            if not training:
                return x
            keep = keeps.popleft()
            assert (p, x.shape) == (self.config["dropout"], keep.shape)
            return x * keep / (1 - p)

        if not self.shifts_or_drops:
            yield
            return
        with patch("torch.randint", randint), patch("torch.nn.functional.dropout", dropout):
            yield
        assert not shifts
        assert not keeps

    def make_update(self, execution: Execution = Execution()) -> TDMPC2Update:
        """Our update on that loss."""
        config = self.config
        return TDMPC2Update(
            self.make_loss(),
            lr=config["lr"],
            enc_lr_scale=config["enc_lr_scale"],
            grad_clip_norm=config["grad_clip_norm"],
            tau=config["tau"],
            execution=execution,
        )

    def make_planner(self, execution: Execution = Execution()) -> TDMPC2Planner:
        """Our planner on the networks of that loss."""
        config, loss = self.config, self.make_loss()
        names = ("horizon", "iterations", "num_samples", "num_elites")
        names += ("min_std", "max_std", "temperature")
        return TDMPC2Planner(
            loss.world_model,
            loss.policy_prior,
            loss.q_ensemble,
            num_pi_trajs=config["num_pi_trajs"],
            execution=execution,
            discount=config.get("discount"),
            **{name: config[name] for name in names},
        )

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
        batch = TensorDict(
            observation=observation[:, :-1],
            action=action,
            next=TensorDict(following, batch_size=shape),
            batch_size=shape,
        )
        if self.is_multitask:
            batch["task"] = self["batch/task"].unsqueeze(1).expand(shape)
        return batch


def references(*, multitask: bool = False) -> dict[str, Reference]:
    """Every file of networks' numbers of a single task, or of several, by its name.

    Other numbers may lie beside them.
    """
    found = {}
    for path in sorted(FOLDER.glob("*.npz")):
        with np.load(path) as arrays:
            is_of_networks = "batch/observation" in arrays.files
            is_multitask = "batch/task" in arrays.files
        if is_of_networks and is_multitask == multitask:
            found[path.stem] = Reference(path)
    return found
