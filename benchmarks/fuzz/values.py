"""Values of settings: nonsense that must be refused, and numbers of any size."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict

from benchmarks.fuzz.outcome import Trial
from torchrl_tdmpc.cli.modes import settle_run
from torchrl_tdmpc.cli.parts import make_loss, make_planner, make_replay, make_update
from torchrl_tdmpc.cli.settings import DEFAULTS, default_settings, leaves
from torchrl_tdmpc.envs import Task
from torchrl_tdmpc.modules import memory

TINY = {
    "device": "cpu",
    "threads": 1,
    "env.task": "cartpole-swingup",
    "env.episode_length": 10,
    "train.seed_steps": 20,
    "train.steps": 40,
    "train.batch_size": 8,
    "model.enc_dim": 16,
    "model.mlp_dim": 16,
    "model.latent_dim": 16,
    "planner.num_samples": 16,
    "planner.num_elites": 4,
    "planner.num_pi_trajs": 2,
    "planner.iterations": 2,
}
NONSENSE = (
    *(math.nan, math.inf, -math.inf, 1e300, -1e300, 10**30, -(10**30), 2**63, 1e16, -1e16),
    *("", " ", "nonsense", "ünsinn\u0000", "1e3", "-1", "${seed}x", "a" * 5000),
    *([], [1, 2], ["x"], {}, {"a": 1}, None, True, False, -1, -(10**6), 0.5, -0.5),
)
MOST_RUN = 10**5  # samples or slices: more are built, but not computed with


def makes_sense(key: str, value: Any, default: Any) -> bool:
    """Whether a value of ``NONSENSE`` is a right one for a setting, so that it may be accepted."""
    if value is None:
        return default is None or key in ("resume", "env.timeout")
    if isinstance(value, bool):
        return isinstance(default, bool) or key == "env.episodic"
    if isinstance(value, str):
        return key == "output_dir" or (key.startswith("logger.") and key != "logger.backend")
    if isinstance(value, dict):
        return key == "env.kwargs" and not value
    if isinstance(value, list):
        may_be_empty = key in ("multi_gamma.gammas", "env.extra_keys")
        return key == "logger.tags" or (may_be_empty and not value)
    if value == 0.5:
        return isinstance(default, float) or key in ("loss.rho", "loss.discount", "env.timeout")
    return key in ("model.log_std_min", "model.log_std_max", "model.vmin", "model.vmax")


def try_nonsense(trial: Trial) -> None:
    """Give each setting each nonsense value, in random order."""
    base, defaults = base_config(), dict(leaves(default_settings()))
    cases = [(key, value) for key in defaults for value in NONSENSE]
    trial.generator.shuffle(cases)
    for key, value in cases:
        if not trial.goes_on:
            return
        if makes_sense(key, value, defaults[key]):
            continue
        trial.attempt(
            f"{key}={value!r}", lambda key=key, value=value: builds(base, key, value) and False
        )


def try_numbers(trial: Trial) -> None:
    """Give settings numbers of any size: refused, or an update and a plan are finite with them."""
    base, defaults = base_config(), dict(leaves(default_settings()))
    keys = [k for k, v in defaults.items() if type(v) in (int, float) or v in (None, "auto")]
    keys = [k for k in keys if k not in ("device", "replay.device", "resume")]
    while trial.goes_on:
        key = trial.generator.choice(keys)
        value = number(trial.generator)
        trial.attempt(f"{key}={value!r}", lambda key=key, value=value: builds(base, key, value))


def number(generator: random.Random) -> int | float:
    """A number whose magnitude may be any."""
    magnitude = generator.choice((2, 2, 6, 20, 300))
    value = generator.choice((1, 1, 1, -1)) * 10 ** generator.uniform(-magnitude, magnitude)
    return int(value) if generator.random() < 0.5 else value


def base_config() -> DictConfig:
    """The configuration of a tiny run."""
    with initialize_config_dir(str(DEFAULTS.parent), version_base="1.3"):
        config = compose(DEFAULTS.stem, ["output_dir=outputs/of-no-run"])
    for key, value in TINY.items():
        OmegaConf.update(config, key, value)
    return config


def builds(base: DictConfig, key: str, value: Any) -> bool:
    """Make the parts of a run with one other setting, and compute with them.

    Returns:
        Whether an update and a plan gave finite numbers.
    """
    config = base.copy()
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    config, task = settle_run(config)
    loss = make_loss(config, task)
    update = make_update(config, loss)
    planner = make_planner(config, task, loss)
    make_replay(config, task)
    if max(config.planner.num_samples, config.train.batch_size) > MOST_RUN:
        return True
    with torch.random.fork_rng([]):
        metrics = update(batch(config, task))
        plan = planner(observations(config, task))
    metrics = metrics.exclude("termination_f1")
    return all(v.isfinite().all() for v in (*metrics.values(), plan["action"]))


def batch(config: DictConfig, task: Task) -> TensorDict:
    """Slices with random numbers."""
    size = config.train.batch_size, config.planner.horizon
    flags = torch.zeros(*size, 1, dtype=torch.bool)
    observation = torch.randn(*size, *task.observation_shape)
    return TensorDict(
        observation=observation,
        action=torch.rand(*size, task.action_dim) * 2 - 1,
        next=TensorDict(observation=observation, reward=torch.randn(*size, 1), terminated=flags),
    ).auto_batch_size_(2)


def observations(config: DictConfig, task: Task) -> TensorDict:
    """What a planner reads."""
    mean = torch.zeros(2, config.planner.horizon, task.action_dim)
    observation = torch.randn(2, *task.observation_shape)
    return TensorDict(observation=observation, _previous_mean=mean, batch_size=2)


def pretend_small_machine() -> None:
    """Refuse sizes that would only take long here."""
    memory.machine_memory = lambda: 2.5e8
