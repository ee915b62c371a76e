"""What the agent acts in: tasks by name, and batched environments that pose them."""

from __future__ import annotations

from torchrl_tdmpc.envs.dmcontrol import dmcontrol_task
from torchrl_tdmpc.envs.factory import BACKENDS, load_task, make_env
from torchrl_tdmpc.envs.rendering import choose_renderer, render
from torchrl_tdmpc.envs.task import Task

__all__ = [
    "BACKENDS",
    "Task",
    "choose_renderer",
    "dmcontrol_task",
    "load_task",
    "make_env",
    "render",
]
