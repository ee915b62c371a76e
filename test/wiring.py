"""Where each setting of the configuration must arrive: the table of test_wiring.py."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import runs
import torch
from torchrl.checkpoint import CheckpointRotation
from torchrl.collectors import MultiAsyncCollector
from torchrl.envs import SerialEnv, TransformedEnv
from torchrl.record import TensorboardLogger

from torchrl_tdmpc.envs import make_env
from torchrl_tdmpc.modules import MODEL_SIZES, ModelSize, PixelEncoder
from torchrl_tdmpc.trainers import EVALUATION_SEED, build_networks

FOLDER = "the run's folder"  # stands for a path that only a run knows


# ------------------------------------------------------------------ what is looked at in a run


def encoder_widths(run):
    """Outputs of each layer of the encoder."""
    return [layer.out_features for layer in linear(run.trainer.update.loss.world_model.encoder)]


def linear(network):
    return [module for module in network.modules() if hasattr(module, "out_features")]


def callback(run, name):
    return next(one for one in run.trainer.callbacks._callbacks if type(one).__name__ == name)


def base_env(run):
    env = run.trainer._collector_state.env
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return env


def walk(run):
    """An environment of the task itself, below everything around it."""
    env = run.trainer.task.make(0)
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return env


def observed_keys(run):
    _, standard = run.trainer.task.make.args
    return standard.keywords["observation_keys"]


def first(file, column):
    return lambda run: float(runs.rows(run.folder / file)[0][column])


def seed_of_weights(run):
    torch.manual_seed(EXPECTED["seed"])
    networks = build_networks(run.trainer.task, run.trainer.metadata["agent"]["model"])
    wanted = networks[0].encoder.state_dict()
    return EXPECTED["seed"] if all((wanted[n] == w).all() for n, w in run.encoder.items()) else None


def seed_of_states(run):
    num_envs = EXPECTED["env.num_envs"]
    env = make_env(run.trainer.task, num_envs=num_envs, seed=EXPECTED["seed"])
    return EXPECTED["seed"] if (env.reset()["observation"] == run.first_states).all() else None


def checkpoint_steps(run):
    paths = CheckpointRotation(run.folder / "checkpoints", keep_last=99).checkpoints()
    return [int(path.stem.split("-")[1]) for path in paths]


def snapshot(run):
    return json.loads((run.folder / "multi_gamma.jsonl").read_text().splitlines()[-1])


def loss(name):
    return lambda run: getattr(run.trainer.update.loss, name)


def heads(name):
    return lambda run: getattr(run.trainer.update.auxiliary[0], name)


def planner(name):
    return lambda run: getattr(run.trainer.planner, name)


def policy(name):
    return lambda run: getattr(run.trainer.update.loss.policy_prior, name)


def supports(name):
    """The support of the reward head, of the Q-functions and of the auxiliary heads."""
    parts = {
        "world_model": lambda run: run.trainer.update.loss.world_model,
        "q_ensemble": lambda run: run.trainer.update.loss.q_ensemble,
        "heads": lambda run: run.trainer.update.auxiliary[0],
    }
    return [lambda run, part=part: getattr(part(run).two_hot, name) for part in parts.values()]


def optimizers(run):
    return run.trainer.update.model_optimizer, run.trainer.update.actor_optimizer


def size_of(update):
    world_model, q_ensemble = update.loss.world_model, update.loss.q_ensemble
    encoder = linear(world_model.encoder)
    return ModelSize(
        enc_dim=encoder[0].out_features,
        mlp_dim=linear(world_model.dynamics)[0].out_features,
        latent_dim=encoder[-1].out_features,
        num_enc_layers=len(encoder),
        num_q=q_ensemble.num_q,
    )


class Wandb:
    """In place of TorchRL's logger, which starts a process."""

    def __init__(self, name, **settings):
        self.settings = {"name": name, **settings}


def wandb(run):
    return callback(run, "LoggerRows").logger


class InProcesses(SerialEnv):
    """In place of environments whose processes take seconds to start."""

    def __init__(self, makes, seeds, device):
        makers = [functools.partial(make, seed) for make, seed in zip(makes, seeds)]
        super().__init__(len(seeds), makers, device=device)


# ------------------------------------------------------------------ the table

# By composition and setting: its value, and where that must arrive
ROWS = {
    "trained": {
        "seed": (
            7,
            seed_of_weights,
            seed_of_states,
            lambda run: run.evaluations[0]["seed"] - EVALUATION_SEED,
            lambda run: callback(run, "ValueHeadSnapshots").seed - EVALUATION_SEED,
            first("eval.csv", "seed"),
        ),
        "device": (
            "cpu",
            lambda run: str(run.trainer.device),
            lambda run: str(run.trainer.record.device),
            lambda run: str(run.trainer.replay.sample_device),
            lambda run: str(base_env(run).device),
            lambda run: str(run.evaluations[0]["device"]),
            lambda run: str(next(run.trainer.update.loss.parameters()).device),
            lambda run: str(next(run.trainer.update.auxiliary[0].parameters()).device),
        ),
        "threads": (2, lambda run: run.threads),
        "matmul_precision": ("high", lambda run: run.matmul_precision),
        "output_dir": (
            FOLDER,
            lambda run: str(run.trainer.output_dir),
            lambda run: str(callback(run, "CsvFiles")._train.path.parent),
            lambda run: str(callback(run, "ReturnsPlot").output_dir),
            lambda run: str(callback(run, "ValueHeadSnapshots").path.parent),
            lambda run: str(Path(callback(run, "LoggerRows").logger.log_dir).parent),
            lambda run: str(run.trainer.replay_log.directory.parents[1]),
        ),
        "env.backend": ("function", lambda run: run.trainer.task.backend),
        "env.task": (
            "walks:MarkedWalk",
            lambda run: run.trainer.task.name,
            lambda run: run.evaluations[0]["task"].name,
        ),
        "env.episodic": (
            False,  # where auto is true
            lambda run: run.trainer.task.episodic,
            lambda run: run.trainer.replay.episodic,
            lambda run: run.trainer.update.loss.world_model.episodic,
        ),
        "env.timeout": (600, lambda run: run.trainer.patience.seconds),
        "env.num_envs": (
            2,
            lambda run: run.trainer.num_envs,
            lambda run: base_env(run).batch_size[0],
            lambda run: run.trainer.collector.requested_frames_per_batch,
        ),
        "env.action_repeat": (3, lambda run: run.trainer.task.action_repeat),
        "env.observation_keys": (["observation"], observed_keys),
        "env.extra_keys": (
            ["is_near"],
            lambda run: [*run.trainer.task.extra_keys],
            lambda run: [key for key in runs.rows(run.folder / "train.csv")[0] if key == "is_near"],
        ),
        "env.kwargs": ({"size": 0.2}, lambda run: {"size": walk(run).size}),
        "env.episode_length": (
            11,
            lambda run: run.trainer.task.episode_length,
            first("train.csv", "length"),
            first("eval.csv", "length"),
        ),
        "train.steps": (
            34,
            lambda run: run.trainer.steps,
            lambda run: run.trainer.counters.agent_steps,
        ),
        "train.seed_steps": (
            24,
            lambda run: run.trainer.seed_steps,
            lambda run: run.trainer.collector.init_random_frames,
            lambda run: min(run.updates_at),
        ),
        "train.utd": (
            0.5,
            lambda run: run.trainer.counters.utd,
            lambda run: len(run.updates_at) / EXPECTED["train.steps"],
        ),
        "train.batch_size": (6, lambda run: run.trainer.replay.sample().shape[0]),
        "train.lr": (
            0.002,
            lambda run: optimizers(run)[0].param_groups[1]["lr"],
            lambda run: optimizers(run)[0].param_groups[2]["lr"],  # of the auxiliary heads
            lambda run: optimizers(run)[1].param_groups[0]["lr"],
        ),
        "train.enc_lr_scale": (
            0.25,
            lambda run: optimizers(run)[0].param_groups[0]["lr"] / EXPECTED["train.lr"],
        ),
        "train.grad_clip_norm": (13.0, lambda run: run.trainer.update.grad_clip_norm),
        "train.tau": (0.0625, lambda run: run.trainer.update.tau),
        "train.max_skipped_updates": (9, lambda run: run.trainer.skipped_updates.limit),
        "model.enc_dim": (20, lambda run: encoder_widths(run)[0]),
        "model.mlp_dim": (
            18,
            lambda run: linear(run.trainer.update.loss.world_model.dynamics)[0].out_features,
            lambda run: linear(run.trainer.update.loss.world_model.reward_head)[0].out_features,
            lambda run: linear(run.trainer.update.loss.policy_prior)[0].out_features,
            lambda run: run.trainer.update.loss.q_ensemble.params["1", "bias"].shape[-1],
        ),
        "model.latent_dim": (
            12,
            lambda run: encoder_widths(run)[-1],
            lambda run: run.trainer.update.loss.world_model.latent_dim,
            lambda run: linear(run.trainer.update.loss.world_model.dynamics)[-1].out_features,
        ),
        "model.num_enc_layers": (4, lambda run: len(encoder_widths(run))),
        "model.num_q": (
            3,
            lambda run: run.trainer.update.loss.q_ensemble.num_q,
            lambda run: run.trainer.planner.q_ensemble.num_q,
        ),
        "model.simnorm_dim": (
            4,
            lambda run: run.trainer.update.loss.world_model.encoder[-1].activation.dim,
            lambda run: run.trainer.update.loss.world_model.dynamics[-1].activation.dim,
        ),
        "model.dropout": (0.125, lambda run: run.trainer.update.loss.q_ensemble.dropout),
        "model.log_std_min": (-7.0, policy("log_std_min")),
        "model.log_std_max": (1.5, policy("log_std_max")),
        "model.num_bins": (31, *supports("num_bins")),
        "model.vmin": (-8.0, *supports("vmin")),
        "model.vmax": (9.0, *supports("vmax")),
        "loss.discount": (
            0.875,
            loss("discount"),
            planner("discount"),
            lambda run: run.trainer.update.auxiliary[0].gammas[0],
        ),
        "loss.rho": (0.75, loss("rho"), heads("rho")),
        "loss.consistency_coef": (19.0, loss("consistency_coef")),
        "loss.reward_coef": (0.2, loss("reward_coef")),
        "loss.value_coef": (0.3, loss("value_coef")),
        "loss.termination_coef": (1.25, loss("termination_coef")),
        "loss.entropy_coef": (2e-4, loss("entropy_coef")),
        "loss.value_scale_tau": (0.02, lambda run: run.trainer.update.loss.value_scale.tau),
        "planner.horizon": (
            2,
            planner("horizon"),
            lambda run: run.trainer.replay.horizon,
            lambda run: run.trainer.replay.sample().shape[1],
        ),
        "planner.iterations": (3, planner("iterations")),
        "planner.num_samples": (14, planner("num_samples")),
        "planner.num_elites": (5, planner("num_elites")),
        "planner.num_pi_trajs": (4, planner("num_pi_trajs")),
        "planner.min_std": (0.1, planner("min_std")),
        "planner.max_std": (1.75, planner("max_std")),
        "planner.temperature": (0.625, planner("temperature")),
        "multi_gamma.enabled": (True, lambda run: bool(run.trainer.update.auxiliary)),
        "multi_gamma.gammas": (
            ["primary", 0.8],
            lambda run: ["primary", *run.trainer.update.auxiliary[0].gammas[1:]],
            lambda run: ["primary", *snapshot(run)["gammas"]],
        ),
        "multi_gamma.head": ("separate", lambda run: run.trainer.update.auxiliary[0].heads.layout),
        "multi_gamma.loss_weight": (0.25, heads("loss_weight")),
        "multi_gamma.bootstrap": ("self", heads("bootstrap")),
        "multi_gamma.detach_latent": (True, heads("detach_latent")),
        "multi_gamma.debug_logging": (
            True,
            lambda run: "elite_value_mean" in snapshot(run)["examples"][0],
        ),
        "multi_gamma.log_num_examples": (5, lambda run: len(snapshot(run)["examples"])),
        "replay.capacity": (30, lambda run: run.trainer.replay.capacity),
        "replay.device": ("cpu", lambda run: str(run.trainer.replay.device)),
        "eval.interval": (28, first("eval.csv", "agent_steps")),
        "eval.num_envs": (
            1,
            lambda run: run.trainer.eval_num_envs,
            lambda run: run.evaluations[0]["num_envs"],
        ),
        "eval.episodes": (
            2,
            lambda run: run.evaluations[0]["episodes"],
            first("eval.csv", "episodes"),
        ),
        "checkpoint.interval": (16, lambda run: checkpoint_steps(run)[0]),
        "checkpoint.keep": (3, lambda run: len(checkpoint_steps(run))),
        "logger.backend": (
            "tensorboard",
            lambda run: (
                "tensorboard"
                if isinstance(callback(run, "LoggerRows").logger, TensorboardLogger)
                else None
            ),
        ),
    },
    "composed": {
        "compile": (
            "default",
            lambda run: run.trainer.planner.execution.compile,
            lambda run: run.trainer.update._model_losses.execution.compile,
            lambda run: run.trainer.update._actor_loss.execution.compile,
        ),
        "precision": (
            "bfloat16",
            lambda run: run.trainer.planner.execution.precision,
            lambda run: run.trainer.update._model_losses.execution.precision,
            lambda run: run.trainer.update._actor_loss.execution.precision,
        ),
        "env.workers": (
            "process",
            lambda run: "process" if isinstance(base_env(run), InProcesses) else None,
        ),
        "planner.mpc": (False, planner("mpc")),
    },
    "large": {
        "model.size": (
            5,
            lambda run: next(
                name for name, size in MODEL_SIZES.items() if size == size_of(run.trainer.update)
            ),
        )
    },
    "seen": {
        "env.pixels": (
            True,
            lambda run: run.trainer.task.observation_shape == (9, 64, 64),
            lambda run: run.trainer.replay.sample()["observation"].shape[2:] == (9, 64, 64),
            lambda run: isinstance(run.trainer.update.loss.world_model.encoder, PixelEncoder),
        ),
        "eval.video": (True, lambda run: callback(run, "Videos").folder == run.folder / "videos"),
    },
    "logged": {
        **{
            f"logger.{name}": (value, lambda run, name=name: wandb(run).settings[name])
            for name, value in {
                "project": "walks",
                "entity": "walkers",
                "group": "points",
                "name": "the first walk",
                "tags": ["plane"],
                "id": "walk1",
            }.items()
        },
        "logger.artifact": (True, lambda run: callback(run, "LoggerRows").artifact),
    },
    "acting": {
        "eval.mode": ("background", lambda run: run.trainer.evaluator and "background"),
        "collector.mode": (
            "async",
            lambda run: "async" if isinstance(run.trainer.collector, MultiAsyncCollector) else None,
        ),
        "collector.actors": (2, lambda run: len(run.trainer.collector.procs)),
        "collector.sync_interval": (7, lambda run: run.trainer.collector.sync_interval),
    },
    "stored": {
        "replay.load": (
            FOLDER,
            lambda run: str(run.folder) if run.trainer.replay.num_transitions == 6 else None,
        )
    },
    "offline": {
        "mode": ("offline", lambda run: type(run.trainer).__name__[:-7].lower()),
        "data": (FOLDER, lambda run: str(Path(run.trainer.data.folder).parent)),
        "env.tasks": (["walks:car", "walks:pendulum"], lambda run: run.trainer.task.names),
        "env.success_key": ("is_near", lambda run: run.trainer.task.tasks[0].success_key),
        "model.task_dim": (
            5,
            lambda run: run.trainer.update.loss.world_model.task_context.embedding_dim,
        ),
    },
    "resumed": {"resume": (FOLDER, lambda run: str(run.trainer.resume.parents[1]))},
}
EXPECTED = {key: row[0] for rows in ROWS.values() for key, row in rows.items()}
