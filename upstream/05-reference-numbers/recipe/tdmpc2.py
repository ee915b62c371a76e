"""Train TD-MPC2 and evaluate it as published. See README.md."""

from __future__ import annotations

import hydra
import torch

from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.trainers.algorithms.configs import *  # noqa: F403


@torch.no_grad()
def evaluate(env, planner, episodes, steps):
    """The mean return of episodes in which the planner adds no noise to its action."""
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        rollouts = [env.rollout(steps, planner) for _ in range(episodes)]
    returns = [rollout["next", "reward"].sum() for rollout in rollouts]
    return torch.stack(returns).mean().item()


@hydra.main(config_path="", config_name="config", version_base="1.3")
def main(cfg):
    trainer = hydra.utils.instantiate(cfg.trainer)
    env = hydra.utils.instantiate(cfg.training_env)
    env.append_transform(trainer.planner.make_tensordict_primer())
    schedule = cfg.evaluation
    evaluated = 0

    def evaluate_now_and_then(batch):
        nonlocal evaluated
        due = trainer.collected_frames // schedule.every
        if due > evaluated:
            evaluated = due
            args = (env, trainer.planner, schedule.episodes, cfg.episode_length)
            return {"r_evaluation": evaluate(*args), "log_pbar": True}

    trainer.register_op("post_steps_log", evaluate_now_and_then)
    trainer.train()


if __name__ == "__main__":
    main()
