"""What the agent acts in: tasks by name, and batched environments that pose them."""

from __future__ import annotations

from torchrl_tdmpc.envs.carrying import env_memory, set_env_memory
from torchrl_tdmpc.envs.contract import NonFiniteError
from torchrl_tdmpc.envs.dmcontrol import dmcontrol_task
from torchrl_tdmpc.envs.factory import BACKENDS, WORKERS, env_seeds, load_task, make_env
from torchrl_tdmpc.envs.generic import function_task, gym_task, make_task
from torchrl_tdmpc.envs.padding import place_task
from torchrl_tdmpc.envs.rendering import choose_renderer, refuse_rendering, render
from torchrl_tdmpc.envs.seeds import forked_generators, seed_generators
from torchrl_tdmpc.envs.state import (
    env_state,
    first_env,
    has_lost_processes,
    set_env_state,
    why_no_state,
)
from torchrl_tdmpc.envs.task import ModelTasks, Task, names_of, resolve_num_envs, unknown
from torchrl_tdmpc.envs.task_set import MT30, TaskSet, load_tasks
from torchrl_tdmpc.envs.workers import (
    WorkerError,
    failed_environment,
    follow_main_process,
    kill_workers,
    make_in_worker,
    shared_messages,
)

__all__ = [
    "BACKENDS",
    "MT30",
    "ModelTasks",
    "NonFiniteError",
    "Task",
    "TaskSet",
    "WORKERS",
    "WorkerError",
    "choose_renderer",
    "dmcontrol_task",
    "env_memory",
    "env_seeds",
    "env_state",
    "failed_environment",
    "first_env",
    "follow_main_process",
    "forked_generators",
    "function_task",
    "gym_task",
    "has_lost_processes",
    "kill_workers",
    "load_task",
    "load_tasks",
    "make_env",
    "make_in_worker",
    "make_task",
    "names_of",
    "place_task",
    "refuse_rendering",
    "render",
    "resolve_num_envs",
    "seed_generators",
    "set_env_memory",
    "set_env_state",
    "shared_messages",
    "unknown",
    "why_no_state",
]
