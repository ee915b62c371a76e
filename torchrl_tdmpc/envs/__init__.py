"""What the agent acts in: tasks by name, and batched environments that pose them."""

from __future__ import annotations

from torchrl_tdmpc.envs.dmcontrol import dmcontrol_task
from torchrl_tdmpc.envs.factory import BACKENDS, WORKERS, env_seeds, load_task, make_env
from torchrl_tdmpc.envs.generic import function_task, gym_task, make_task
from torchrl_tdmpc.envs.rendering import choose_renderer, refuse_rendering, render
from torchrl_tdmpc.envs.state import env_state, first_env, has_lost_processes, set_env_state
from torchrl_tdmpc.envs.task import Task, names_of
from torchrl_tdmpc.envs.workers import WorkerError, failed_environment, kill_workers

__all__ = [
    "BACKENDS",
    "Task",
    "WORKERS",
    "WorkerError",
    "choose_renderer",
    "dmcontrol_task",
    "env_seeds",
    "env_state",
    "failed_environment",
    "first_env",
    "function_task",
    "gym_task",
    "has_lost_processes",
    "kill_workers",
    "load_task",
    "make_env",
    "make_task",
    "names_of",
    "refuse_rendering",
    "render",
    "set_env_state",
]
