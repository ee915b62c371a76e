"""From the configuration to the parts of a run."""

from __future__ import annotations

from dataclasses import fields
from typing import NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torchrl.collectors import Collector
from torchrl.envs import Compose, RewardSum, StepCounter, TransformedEnv

from torchrl_tdmpc import (
    AuxiliaryValueHeads,
    LatentEnv,
    MultiGammaConfig,
    MultiGammaValueLoss,
    SymlogTwoHot,
    TDMPC2Loss,
    TDMPC2Planner,
    make_networks,
)
from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.envs import Task, make_env
from torchrl_tdmpc.modules import Execution, ModelSize, model_size
from torchrl_tdmpc.recording import RunLog
from torchrl_tdmpc.trainers import TDMPC2Update


class Agent(NamedTuple):
    """What learns: acting, remembering, and the update with its losses and networks."""

    planner: TDMPC2Planner
    replay: EpisodeReplay
    update: TDMPC2Update


def make_agent(config: DictConfig, task: Task, loss: TDMPC2Loss | None = None) -> Agent:
    """Put the parts together, around a loss that is there already or a new one."""
    torch.manual_seed(config.seed)
    loss = make_loss(config, task) if loss is None else loss
    world_model = loss.world_model
    multi_gamma_loss = make_multi_gamma_loss(config, world_model.latent_dim, world_model.two_hot)
    optimisation = ("lr", "enc_lr_scale", "grad_clip_norm", "tau")
    settings = {name: config.train[name] for name in optimisation}
    execution = Execution(config.compile, config.precision)
    update = TDMPC2Update(loss, multi_gamma_loss, execution=execution, **settings)
    planner = TDMPC2Planner(
        LatentEnv(world_model, task.action_dim),
        loss.policy_prior,
        loss.q_ensemble,
        discount=config.loss.discount,
        execution=execution,
        **config.planner,
    )
    replay = EpisodeReplay(
        capacity=config.replay.capacity,
        horizon=config.planner.horizon,
        batch_size=config.train.batch_size,
        device=config.device,
        frame_channels=task.frame_channels,
        episodic=config.env.episodic,
    )
    return Agent(planner, replay, update)


def make_loss(config: DictConfig, task: Task) -> TDMPC2Loss:
    """The loss of world model, policy prior and Q-functions of the sizes asked for."""
    model = dict(config.model)
    size = model_size(model.pop("size"), **{f.name: model.pop(f.name) for f in fields(ModelSize)})
    two_hot = SymlogTwoHot(**{f.name: model.pop(f.name) for f in fields(SymlogTwoHot)})
    networks = make_networks(
        task.observation_shape,
        task.action_dim,
        size,
        episodic=config.env.episodic,
        two_hot=two_hot,
        **model,
    )
    networks = (network.to(config.device) for network in networks)
    return TDMPC2Loss(*networks, **config.loss).to(config.device)


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


def make_collector(config: DictConfig, task: Task, planner: TDMPC2Planner) -> Collector:
    """What acts in the environments, an agent step in each at a time."""
    settings = {"seed": config.seed, "device": config.device, "workers": config.env.workers}
    env = make_env(task, num_envs=config.env.num_envs, **settings)
    return Collector(
        TransformedEnv(env, Compose(RewardSum(), StepCounter())),
        planner,
        frames_per_batch=config.env.num_envs,
        init_random_frames=config.train.seed_steps,
        auto_register_policy_transforms=True,
    )


def make_log(config: DictConfig, agent: Agent) -> RunLog:
    """Open the files of the run."""
    return RunLog(
        config.output_dir,
        metrics=[*agent.update.metric_names, "nan_values"],
        seed=config.seed,
        backend=config.logger.backend,
        project=config.logger.project,
        device=config.device,
        resume=config.resume is not None,
    )


def count_parameters(update: TDMPC2Update) -> dict[str, int]:
    """The number of weights of each part, targets not counted."""
    world_model, heads = update.loss.world_model, update.multi_gamma_loss
    parts = {
        "encoder": world_model.encoder,
        "dynamics": world_model.dynamics,
        "reward": world_model.reward_head,
        "termination": world_model.termination_head,
        "policy prior": update.loss.policy_prior,
        "Q ensemble": update.loss.q_ensemble,
        "auxiliary heads": None if heads is None else heads.heads,
    }
    counts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in parts.items()
        if part is not None
    }
    return {**counts, "total": sum(counts.values())}
