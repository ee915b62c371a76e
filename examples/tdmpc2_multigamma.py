"""Train TD-MPC2 on a task: ``python examples/tdmpc2_multigamma.py env.task=walker-stand seed=2``.

Every setting, with its meaning, stands in ``config/tdmpc2_multigamma.yaml``.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any, NamedTuple, NoReturn

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from parts import Agent, count_parameters, make_agent, make_collector, make_log
from settings import settle
from tensordict import TensorDictBase
from torchrl.checkpoint import CheckpointError
from torchrl.collectors import Collector
from tqdm import tqdm, trange

from torchrl_tdmpc.checkpoints import CollectorState, ReplayLog, resume_run, save_run
from torchrl_tdmpc.data import EpisodeReplay, ReplayError
from torchrl_tdmpc.envs import Task, has_lost_processes
from torchrl_tdmpc.recording import (
    RunLog,
    append_snapshot,
    plot_returns,
    take_snapshot,
    write_config,
)
from torchrl_tdmpc.trainers import Counters, GracefulInterrupt, SkippedUpdates, evaluate

EVALUATION_SEED = 1_000_000  # added to the run's: evaluation never meets training's initial states


class Run(NamedTuple):
    """How far it is: what a checkpoint holds beside the agent."""

    counters: Counters
    collector: CollectorState
    replay_log: ReplayLog
    skipped_updates: SkippedUpdates
    log: RunLog


def train(config: DictConfig, task: Task, agent: Agent, log: RunLog) -> None:
    """Collect an agent step per environment, learn once for each; evaluate and save."""
    planner, replay, update = agent
    config = OmegaConf.merge(config, {"planner": {"iterations": planner.iterations}})
    collector = make_collector(config, task, planner)
    run = begin_or_resume(config, agent, collector, log)
    counters = run.counters
    with (
        log,
        GracefulInterrupt() as interrupt,
        tqdm(
            total=config.train.steps,
            initial=counters.agent_steps,
            unit=" agent steps",
            dynamic_ncols=True,
        ) as progress,
    ):
        data = iter(collector)
        while True:
            # As many updates as agent steps; those of the random warm-up are made up for at its end
            in_seed_phase = counters.agent_steps < config.train.seed_steps
            num_updates = 0 if in_seed_phase else counters.agent_steps - counters.updates
            is_pretraining = num_updates > config.env.num_envs
            for _ in trange(num_updates, desc="pretraining", disable=not is_pretraining):
                if interrupt.requested:
                    break
                metrics = update(replay.sample()).set("nan_values", counters.nan_values)
                run.skipped_updates.add(bool(metrics["skipped_updates"]))
                log.update(metrics)
                counters.updates += 1

            is_last = counters.agent_steps >= config.train.steps
            if not interrupt.requested and is_evaluation_due(config, counters, is_last):
                log_evaluation(log, config, task, agent, counters, interrupt)
            if is_last or interrupt.requested:
                break
            if is_due(config.checkpoint.interval, counters.saved, counters.agent_steps):
                save(config, agent, run)

            try:
                step = next(data)
            except Exception as error:
                end_after_crash(config, agent, run, error)
            replay.extend(step)
            counters.agent_steps += step.numel()
            counters.nan_values = step["nan_values"].float().mean()
            progress.update(step.numel())
            log_episodes(log, progress, step, counters.agent_steps, task)
        is_saved = save(config, agent, run)
    collector.shutdown()
    report(config, task, replay, counters.agent_steps)
    if not is_saved:
        raise SystemExit("error: the run ended without its last checkpoint.")


def is_due(interval: int, before: int, now: int) -> bool:
    """Whether a multiple of ``interval`` was reached after ``before`` and by ``now``."""
    return now // interval > before // interval


def is_evaluation_due(config: DictConfig, counters: Counters, is_last: bool) -> bool:
    """Whether to evaluate now: at each interval and at the end, once."""
    evaluated, agent_steps = counters.evaluated, counters.agent_steps
    due = is_due(config.eval.interval, evaluated, agent_steps) or (
        is_last and evaluated < agent_steps
    )
    return due and config.eval.episodes > 0


def log_episodes(
    log: RunLog, progress: tqdm, data: TensorDictBase, agent_steps: int, task: Task
) -> None:
    """Write a row for each episode that ended, and show the last one."""
    ended = data["next"][data["next", "done"].squeeze(-1)]
    rows = log.episodes(
        step=agent_steps * task.action_repeat,
        agent_steps=agent_steps,
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
    counters: Counters,
    interrupt: GracefulInterrupt,
) -> None:
    """Evaluate and write a row, unless the run is asked to end meanwhile."""
    agent_steps = counters.agent_steps
    step, seed = agent_steps * task.action_repeat, config.seed + EVALUATION_SEED
    with log.pause(), tqdm(total=task.episode_length, desc="evaluation", leave=False) as progress:

        def on_step() -> None:
            interrupt.raise_if_requested()
            progress.update()

        try:
            returns, lengths = evaluate(
                agent.planner,
                task,
                episodes=config.eval.episodes,
                seed=seed,
                device=config.device,
                on_step=on_step,
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
    counters.evaluated = agent_steps
    row = log.evaluation(step=step, agent_steps=agent_steps, returns=returns, lengths=lengths)
    tqdm.write(f"step {step}: evaluation return {row['reward']:.1f} +- {row['reward_std']:.1f}")


def save(config: DictConfig, agent: Agent, run: Run) -> bool:
    """Write a checkpoint; if that fails, say so, and the run goes on with the earlier ones."""
    run.counters.saved = run.counters.agent_steps
    metadata = {"agent_steps": run.counters.agent_steps, "config": OmegaConf.to_container(config)}
    if agent.update.multi_gamma_loss is not None:
        metadata["multi_gamma"] = list(agent.update.multi_gamma_loss.gammas)
    try:
        with run.log.pause():
            save_run(
                config.output_dir + "/checkpoints",
                run.counters.agent_steps,
                components(agent, run),
                run.replay_log,
                metadata=metadata,
                keep_last=config.checkpoint.keep,
            )
    except OSError as error:
        tqdm.write(f"the checkpoint could not be saved, the earlier ones are kept: {error}")
        return False
    return True


def end_after_crash(config: DictConfig, agent: Agent, run: Run, error: Exception) -> NoReturn:
    """Save what is left when an environment's process died, and say so."""
    if not has_lost_processes(run.collector.collector.env):
        raise error
    run.collector.failed = True
    save(config, agent, run)
    failure = str(error).partition(". ")[0]
    raise SystemExit(
        f"error: the processes of the environments ended ({failure}); resume={config.output_dir} "
        "goes on with the run."
    ) from None


def components(agent: Agent, run: Run) -> dict[str, Any]:
    """What a checkpoint holds: networks, targets, value scale, optimisers, environments, counts."""
    parts = {
        "loss": agent.update.loss,
        "model_optimizer": agent.update.model_optimizer,
        "actor_optimizer": agent.update.actor_optimizer,
        "collector": run.collector,
        "counters": run.counters,
        "skipped_updates": run.skipped_updates,
        "log": run.log,
    }
    if agent.update.multi_gamma_loss is not None:
        parts["multi_gamma"] = agent.update.multi_gamma_loss
    return parts


def begin_or_resume(config: DictConfig, agent: Agent, collector: Collector, log: RunLog) -> Run:
    """A new run, or the one in the checkpoint ``config.resume``."""
    parameters = count_parameters(agent.update)
    print(", ".join(f"{part} {count:,}" for part, count in parameters.items()), "parameters")
    if config.compile != "off":
        print("compiling: the first updates and agent steps take up to a few minutes")
    write_config(config.output_dir, {**OmegaConf.to_container(config), "parameters": parameters})
    run = Run(
        Counters(),
        CollectorState(collector),
        ReplayLog(agent.replay, config.output_dir + "/checkpoints/replay"),
        SkippedUpdates(config.train.max_skipped_updates),
        log,
    )
    if config.resume is not None:
        resume_run(config.resume, components(agent, run), run.replay_log)
        print(f"resumed {config.resume}")
        if run.collector.restarted and (num_open := agent.replay.truncate()):
            print(f"{num_open} unfinished episodes are truncated: the environments begin new ones")
    return run


def report(config: DictConfig, task: Task, replay: EpisodeReplay, agent_steps: int) -> None:
    """Draw the returns and say what lies where."""
    title = f"{task.name}, {config.model.size}M parameters, seed {config.seed}"
    plot_returns(config.output_dir, title=title)
    print(
        f"{agent_steps} agent steps ({agent_steps * task.action_repeat} environment steps). "
        f"In {config.output_dir}: eval.csv, train.csv, returns.png, config.yaml, checkpoints/"
        + (", videos/" if config.eval.video else "")
    )
    if replay.num_short_episodes:
        print(
            f"{replay.num_short_episodes} episodes were shorter than planner.horizon "
            f"({replay.horizon} agent steps) and not learned from."
        )


@hydra.main(version_base="1.3", config_path="config", config_name="tdmpc2_multigamma")
def main(config: DictConfig) -> None:
    """Refuse what is wrong in one sentence, then train."""
    warnings.filterwarnings("ignore", message=".*DISPLAY environment variable is missing")
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    try:
        config, task = settle(config)
        torch.set_num_threads(config.threads)
        agent = make_agent(config, task)
        log = make_log(config, agent)
    except (CheckpointError, ImportError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    try:
        train(config, task, agent, log)
    except (CheckpointError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except (FloatingPointError, ReplayError) as error:
        raise SystemExit(f"error: {error} The last checkpoint is kept.") from None


if __name__ == "__main__":
    main()
