"""What the agent acts in: tasks by name, and batched environments that pose them."""

from __future__ import annotations

from torchrl_tdmpc.envs.dmcontrol import dmcontrol_task
from torchrl_tdmpc.envs.factory import BACKENDS, WORKERS, load_task, make_env
from torchrl_tdmpc.envs.generic import function_task, gym_task, make_task
from torchrl_tdmpc.envs.rendering import choose_renderer, refuse_rendering, render
from torchrl_tdmpc.envs.state import dead_workers, env_state, set_env_state
from torchrl_tdmpc.envs.task import Task

__all__ = [
    "BACKENDS",
    "Task",
    "WORKERS",
    "choose_renderer",
    "dead_workers",
    "dmcontrol_task",
    "env_state",
    "function_task",
    "gym_task",
    "load_task",
    "make_env",
    "make_task",
    "refuse_rendering",
    "render",
    "set_env_state",
]
