"""Train TD-MPC2 on a task: ``python examples/tdmpc2_multigamma.py env.task=walker-stand seed=2``.

Every setting, with its meaning, stands in ``config/tdmpc2_multigamma.yaml``.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import fields
from typing import NamedTuple

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from settings import settle
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import Compose, RewardSum, StepCounter, TransformedEnv
from tqdm import tqdm, trange

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
from torchrl_tdmpc.data import EpisodeReplay, ReplayError
from torchrl_tdmpc.envs import Task, make_env
from torchrl_tdmpc.modules import ModelSize, model_size
from torchrl_tdmpc.training import (
    GracefulInterrupt,
    RunLog,
    TDMPC2Update,
    accelerate,
    append_snapshot,
    evaluate,
    plot_returns,
    save_checkpoint,
    take_snapshot,
    write_config,
)

EVALUATION_SEED = 1_000_000  # added to the run's: evaluation never meets training's initial states


class Agent(NamedTuple):
    """What learns: acting, remembering, and the update with its losses and networks."""

    planner: TDMPC2Planner
    replay: EpisodeReplay
    update: TDMPC2Update


def train(config: DictConfig, task: Task, agent: Agent, log: RunLog) -> None:
    """Collect one decision per environment, learn once for each; evaluate and save now and then."""
    planner, replay, update = agent
    config = OmegaConf.merge(config, {"planner": {"iterations": planner.iterations}})
    settings = {"seed": config.seed, "device": config.device, "workers": config.env.workers}
    env = make_env(task, num_envs=config.env.num_envs, **settings)
    collector = Collector(
        TransformedEnv(env, Compose(RewardSum(), StepCounter())),
        planner,
        frames_per_batch=config.env.num_envs,
        init_random_frames=config.train.seed_decisions,
        auto_register_policy_transforms=True,
    )
    parameters = count_parameters(update)
    print(", ".join(f"{part} {count:,}" for part, count in parameters.items()), "parameters")
    record = {**OmegaConf.to_container(config), "parameters": parameters}
    write_config(config.output_dir, record)
    decisions = 0
    with (
        log,
        GracefulInterrupt() as interrupt,
        tqdm(total=config.train.decisions, unit=" decisions", dynamic_ncols=True) as progress,
    ):
        for data in collector:
            before, decisions = decisions, decisions + data.numel()
            progress.update(data.numel())
            replay.extend(data)
            log_episodes(log, progress, data, decisions, task)

            # As many updates as decisions; those of the seed phase are made up for at its end
            if decisions >= config.train.seed_decisions:
                in_seed_phase = before < config.train.seed_decisions
                num_updates = decisions if in_seed_phase else data.numel()
                nan_values = data["nan_values"].float().mean()
                for _ in trange(num_updates, desc="pretraining", disable=not in_seed_phase):
                    if interrupt.requested:
                        break
                    log.update(update(replay.sample()).set("nan_values", nan_values))

            is_last = decisions >= config.train.decisions
            eval_is_due = is_last or is_due(config.eval.interval, before, decisions)
            if config.eval.episodes and eval_is_due:
                log_evaluation(log, config, task, agent, decisions, interrupt)
            if is_last or interrupt.requested:
                break
            if is_due(config.checkpoint.interval, before, decisions):
                save(config, agent, decisions, log)
        save(config, agent, decisions, log)
    collector.shutdown()
    report(config, task, replay, decisions)


def is_due(interval: int, before: int, now: int) -> bool:
    """Whether a multiple of ``interval`` was reached after ``before`` and by ``now``."""
    return now // interval > before // interval


def log_episodes(
    log: RunLog, progress: tqdm, data: TensorDictBase, decisions: int, task: Task
) -> None:
    """Write a row for each episode that ended, and show the last one."""
    ended = data["next"][data["next", "done"].squeeze(-1)]
    rows = log.episodes(
        step=decisions * task.action_repeat,
        decisions=decisions,
        returns=ended["episode_reward"].flatten().tolist(),
        lengths=ended["step_count"].flatten().tolist(),
    )
    if rows:
        losses = {k: f"{v:.3g}" for k, v in rows[-1].items() if k.startswith("loss_")}
        progress.set_postfix({"return": f"{rows[-1]['return']:.1f}", **losses})


def log_evaluation(
    log: RunLog,
    config: DictConfig,
    task: Task,
    agent: Agent,
    decisions: int,
    interrupt: GracefulInterrupt,
) -> None:
    """Evaluate and write a row, unless the run is asked to end meanwhile."""
    step, seed = decisions * task.action_repeat, config.seed + EVALUATION_SEED
    with log.pause(), tqdm(total=task.episode_length, desc="evaluation", leave=False) as progress:

        def on_decision() -> None:
            interrupt.raise_if_requested()
            progress.update()

        try:
            returns, lengths = evaluate(
                agent.planner,
                task,
                episodes=config.eval.episodes,
                seed=seed,
                device=config.device,
                on_decision=on_decision,
                video=f"{config.output_dir}/videos/{step:012d}.mp4" if config.eval.video else None,
            )
        except KeyboardInterrupt:
            return
        if agent.update.multi_gamma_loss is not None and agent.replay.num_transitions:
            debug = config.multi_gamma.debug_logging
            snapshot = take_snapshot(
                agent.update.loss,
                agent.update.multi_gamma_loss,
                agent.planner,
                agent.replay,
                seed=seed,
                num_examples=config.multi_gamma.log_num_examples if debug else None,
            )
            append_snapshot(config.output_dir, step, snapshot)
    row = log.evaluation(step=step, decisions=decisions, returns=returns, lengths=lengths)
    tqdm.write(f"step {step}: evaluation return {row['reward']:.1f} +- {row['reward_std']:.1f}")


def save(config: DictConfig, agent: Agent, decisions: int, log: RunLog) -> None:
    """Write a checkpoint: networks, targets, value scale, optimisers, counters, configuration."""
    components = {
        "loss": agent.update.loss,
        "model_optimizer": agent.update.model_optimizer,
        "actor_optimizer": agent.update.actor_optimizer,
    }
    metadata = {"decisions": decisions, "config": OmegaConf.to_container(config)}
    if agent.update.multi_gamma_loss is not None:
        components["multi_gamma"] = agent.update.multi_gamma_loss
        metadata["multi_gamma"] = list(agent.update.multi_gamma_loss.gammas)
    with log.pause():
        save_checkpoint(
            config.output_dir + "/checkpoints",
            decisions,
            components,
            metadata=metadata,
            keep_last=config.checkpoint.keep,
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


def report(config: DictConfig, task: Task, replay: EpisodeReplay, decisions: int) -> None:
    """Draw the returns and say what lies where."""
    title = f"{task.name}, {config.model.size}M parameters, seed {config.seed}"
    plot_returns(config.output_dir, title=title)
    print(
        f"{decisions} decisions ({decisions * task.action_repeat} environment steps). "
        f"In {config.output_dir}: eval.csv, train.csv, returns.png, config.yaml, checkpoints/"
        + (", videos/" if config.eval.video else "")
    )
    if replay.num_short_episodes:
        print(
            f"{replay.num_short_episodes} episodes were shorter than planner.horizon "
            f"({replay.horizon} decisions) and not learned from."
        )


def make_agent(config: DictConfig, task: Task, loss: TDMPC2Loss | None = None) -> Agent:
    """Put the parts together, around a loss that is there already or a new one."""
    torch.manual_seed(config.seed)
    loss = make_loss(config, task) if loss is None else loss
    world_model = loss.world_model
    multi_gamma_loss = make_multi_gamma_loss(config, world_model.latent_dim, world_model.two_hot)
    optimisation = ("lr", "encoder_lr_scale", "grad_clip_norm", "tau")
    settings = {name: config.train[name] for name in optimisation}
    update = TDMPC2Update(loss, multi_gamma_loss, **settings)
    planner = TDMPC2Planner(
        LatentEnv(world_model, task.action_dim),
        loss.policy_prior,
        loss.q_ensemble,
        discount=config.loss.discount,
        **config.planner,
    )
    accelerate(planner, loss, multi_gamma_loss, compile=config.compile, precision=config.precision)
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


def make_log(config: DictConfig, agent: Agent) -> RunLog:
    """Open the files of the run."""
    return RunLog(
        config.output_dir,
        metrics=[*agent.update.metric_names, "nan_values"],
        seed=config.seed,
        backend=config.logger.backend,
        project=config.logger.project,
        device=config.device,
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


@hydra.main(version_base="1.3", config_path="config", config_name="tdmpc2_multigamma")
def main(config: DictConfig) -> None:
    """Refuse what is wrong in one sentence, then train."""
    warnings.filterwarnings("ignore", message=".*DISPLAY environment variable is missing")
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    try:
        config, task = settle(config)
        agent = make_agent(config, task)
        log = make_log(config, agent)
    except (FileExistsError, ImportError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    try:
        train(config, task, agent, log)
    except (FloatingPointError, ReplayError) as error:
        raise SystemExit(f"error: {error} The last checkpoint is kept.") from None


if __name__ == "__main__":
    main()
