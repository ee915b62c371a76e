"""From the configuration to the parts of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torchrl.collectors import BaseCollector
from torchrl.record.loggers import Logger

from torchrl_tdmpc.checkpoints import read_metadata
from torchrl_tdmpc.cli.fine_tuning import begins_with, not_official
from torchrl_tdmpc.cli.settings import naming
from torchrl_tdmpc.data import EpisodeFiles, EpisodeReplay
from torchrl_tdmpc.envs import Task, TaskSet, seed_generators
from torchrl_tdmpc.modules import AuxiliaryValueHeads, Execution, SymlogTwoHot
from torchrl_tdmpc.objectives import MultiGammaConfig, MultiGammaValueLoss, TDMPC2Loss
from torchrl_tdmpc.planners import TDMPC2Planner
from torchrl_tdmpc.recording import LoggerRows, ValueHeadSnapshots, Videos, make_logger
from torchrl_tdmpc.trainers import (
    EVALUATION_SEED,
    Actors,
    OnlineTrainer,
    TDMPC2Update,
    build_networks,
    build_replay,
    load_pretrained,
)

__all__ = [
    "make_callbacks",
    "make_collector",
    "make_loss",
    "make_planner",
    "make_replay",
    "make_trainer",
    "make_update",
    "set_up_torch",
    "trainer_settings",
]


def set_up_torch(config: DictConfig) -> None:
    """What holds for the whole process: threads, and how CUDA multiplies and convolves."""
    torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision(config.matmul_precision)
    # Frames are of one size, so the search for the fastest convolution pays
    torch.backends.cudnn.benchmark = config.env.pixels


@naming("train", "env")
def make_trainer(config: DictConfig, task: Task) -> OnlineTrainer:
    """The trainer of a settled configuration, with every part made."""
    seed_generators(config.seed)
    loss = make_loss(config, task)
    update = make_update(config, loss)
    planner = make_planner(config, task, loss)
    return OnlineTrainer(
        task,
        update=update,
        planner=planner,
        replay=make_replay(config, task),
        collector=make_collector(config, task, planner),
        callbacks=make_callbacks(config, update),
        **trainer_settings(config),
    )


def trainer_settings(config: DictConfig) -> dict[str, Any]:
    """How long a run goes, in which environments, and what it evaluates, saves and logs."""
    return {
        "output_dir": config.output_dir,
        "steps": config.train.steps,
        "seed_steps": config.train.seed_steps,
        "utd": config.train.utd,
        "num_envs": config.env.num_envs,
        "workers": config.env.workers,
        "env_timeout": config.env.timeout,
        "model": OmegaConf.to_container(config.model),
        "eval_interval": config.eval.interval,
        "eval_episodes": config.eval.episodes,
        "eval_num_envs": config.eval.num_envs,
        "eval_mode": config.eval.mode,
        "checkpoint_interval": config.checkpoint.interval,
        "checkpoint_keep": config.checkpoint.keep,
        "max_skipped_updates": config.train.max_skipped_updates,
        "seed": config.seed,
        "device": config.device,
        "resume": resumed(config),
        "config": OmegaConf.to_container(config),
    }


def resumed(config: DictConfig) -> str | None:
    """The checkpoint of a run that goes on; None for one that begins."""
    return None if begins_with(config) is not None else config.resume


@naming("collector", "env")
def make_collector(config: DictConfig, task: Task, planner: TDMPC2Planner) -> BaseCollector | None:
    """What steps the environments beside the learner; None where the learner does so itself."""
    if config.collector.mode == "sync":
        return None
    settings = {
        "num_envs": config.env.num_envs,
        "num_actors": config.collector.actors,
        "sync_interval": config.collector.sync_interval,
        "random_steps": config.train.seed_steps if task.model_tasks is None else 0,
        "seed": config.seed,
        "device": config.device,
    }
    if config.collector.mode == "ray":
        from torchrl_tdmpc.trainers.ray_actors import RayActors

        return RayActors(task, planner, **settings)
    return Actors(task, planner, env_timeout=config.env.timeout, **settings)


@naming("replay", "train", "planner")
def make_replay(config: DictConfig, task: Task) -> EpisodeReplay:
    """What a run remembers."""
    return build_replay(
        task,
        horizon=config.planner.horizon,
        steps=config.train.steps,
        num_envs=config.env.num_envs,
        capacity=config.replay.capacity,
        batch_size=config.train.batch_size,
        device=config.replay.device,
        episodes=None if config.replay.load is None else EpisodeFiles(config.replay.load),
        fill=resumed(config) is None,
        networks_device=config.device,
    )


@naming("model", "loss")
def make_loss(config: DictConfig, task: Task | TaskSet) -> TDMPC2Loss:
    """The loss of world model, policy prior and Q-functions of the sizes asked for.

    Its weights are random, or those of the model of several tasks that the run begins with.
    """
    networks = build_networks(task, OmegaConf.to_container(config.model))
    networks = (network.to(config.device) for network in networks)
    loss = TDMPC2Loss(*networks, **config.loss).to(config.device)
    if (path := begins_with(config)) is not None:
        load_pretrained(path, loss, task.model_tasks, not_official(config))
    return loss


@naming("train", "multi_gamma")
def make_update(config: DictConfig, loss: TDMPC2Loss) -> TDMPC2Update:
    """The update of a loss, and of the auxiliary value heads if they are on."""
    heads = make_multi_gamma_loss(config, loss.world_model.latent_dim, loss.world_model.two_hot)
    return TDMPC2Update(
        loss,
        [] if heads is None else [heads],
        lr=config.train.lr,
        enc_lr_scale=config.train.enc_lr_scale,
        grad_clip_norm=config.train.grad_clip_norm,
        tau=config.train.tau,
        execution=Execution(config.compile, config.precision),
    )


@naming("planner")
def make_planner(config: DictConfig, task: Task | TaskSet, loss: TDMPC2Loss) -> TDMPC2Planner:
    """What acts with the networks of a loss."""
    return TDMPC2Planner(
        loss.world_model,
        loss.policy_prior,
        loss.q_ensemble,
        discount=config.loss.discount,
        execution=Execution(config.compile, config.precision),
        **config.planner,
    )


def make_multi_gamma_loss(
    config: DictConfig, latent_dim: int, two_hot: SymlogTwoHot
) -> MultiGammaValueLoss | None:
    """The loss of the auxiliary value heads; None when they are off."""
    settings = MultiGammaConfig(**OmegaConf.to_container(config.multi_gamma))
    gammas = settings.discounts(config.loss.discount)
    if not gammas:
        return None
    heads = AuxiliaryValueHeads(latent_dim, len(gammas) - 1, two_hot.num_bins, settings.head)
    return MultiGammaValueLoss(
        heads,
        gammas,
        two_hot=two_hot,
        rho=config.loss.rho,
        loss_weight=settings.loss_weight,
        bootstrap=settings.bootstrap,
        detach_latent=settings.detach_latent,
    ).to(config.device)


def make_callbacks(config: DictConfig, update: TDMPC2Update) -> Iterator[Any]:
    """What a run records beside its files: rows in a logger, videos, snapshots of value heads."""
    if (logger := _make_logger(config)) is not None:
        yield LoggerRows(logger, artifact=config.logger.artifact)
    if config.eval.video:
        yield Videos(config.output_dir)
    for heads in update.auxiliary:
        settings = config.multi_gamma
        yield ValueHeadSnapshots(
            config.output_dir,
            heads,
            seed=config.seed + EVALUATION_SEED,
            num_examples=settings.log_num_examples if settings.debug_logging else None,
        )


def _make_logger(config: DictConfig) -> Logger | None:
    settings = OmegaConf.to_container(config.logger)
    backend, _ = settings.pop("backend"), settings.pop("artifact")
    resumed_step = None
    if (checkpoint := resumed(config)) is not None:
        metadata = read_metadata(checkpoint)
        resumed_step = metadata.get("updates", metadata.get("environment_steps"))
    return make_logger(backend, config.output_dir, resumed_step=resumed_step, **settings)
