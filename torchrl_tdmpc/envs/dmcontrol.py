"""The tasks of the DeepMind Control Suite."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tensordict import NestedKey
from torchrl.envs import DMControlWrapper, EnvBase

from torchrl_tdmpc.envs.pixels import FRAME_SIZE
from torchrl_tdmpc.envs.rendering import choose_renderer
from torchrl_tdmpc.envs.standard import build_task
from torchrl_tdmpc.envs.task import Facts, Task, unknown
from torchrl_tdmpc.torchrl_series import wrapped_env

if TYPE_CHECKING:
    import numpy as np

ACTION_REPEAT = 2

# The camera from which each domain is seen, as published; the first one where none stands here.
_CAMERAS = {"quadruped": 2}
# The published names shorten two domains.
_PUBLISHED_DOMAINS = {"ball_in_cup": "cup", "point_mass": "pointmass"}


def dmcontrol_task(
    name: str,
    *,
    episode_length: int | None = None,
    action_repeat: int = ACTION_REPEAT,
    observation_keys: Sequence[NestedKey] | None = None,
    pixels: bool = False,
    extra_keys: Sequence[NestedKey] = (),
) -> Task:
    """A task of the DeepMind Control Suite; an agent step is two environment steps, as published.

    Args:
        name: domain and task joined by a dash, as published: ``"cartpole-swingup"``,
            ``"cup-catch"``, ``"finger-turn-easy"``. Dashes, underscores and case are not told
            apart, and the suite's own domain names (``ball_in_cup``, ``point_mass``) hold as well.
            The 28 tasks that the official implementation adds are among them:
            ``"walker-walk-backwards"``, ``"cup-spin"``.
        episode_length: truncates episodes earlier than the suite does; agent steps.
        action_repeat: environment steps in an agent step.
        observation_keys: the entries to concatenate, in this order; None takes all.
        pixels: observe frames from the published camera.
        extra_keys: entries of the suite's observation, one number each, that rows and replay carry
            in place of the agent's observation.

    Returns:
        The task. One environment is built and tried, after the name is known to be good.

    Raises:
        ImportError: if dm_control is not installed.
        ValueError: if the task is unknown or has unbounded actions, if ``episode_length`` does not
            fit its time limit, or if frames cannot be rendered here.

    Examples:
        >>> dmcontrol_task("cup-catch").episode_length
        500
    """
    names = _task_names()
    if _plain(name) not in names:
        raise unknown("task", name, dict.fromkeys(names.values()))
    if action_repeat < 1:
        raise ValueError(f"action_repeat is {action_repeat}; it must be at least 1.")
    name = names[_plain(name)]
    return build_task(
        functools.partial(_make_base, name, action_repeat),
        name=name,
        backend="dmcontrol",
        # the suite has no public name for its limit, and ends episodes by it alone
        facts=lambda base: Facts(time_limit=wrapped_env(base)._step_limit, episodic=False),
        episode_length=episode_length,
        observation_keys=observation_keys,
        pixels=pixels,
        extra_keys=extra_keys,
    )


def published_name(domain: str, task: str) -> str:
    """The published name of a task of the suite.

    Examples:
        >>> published_name("ball_in_cup", "catch")
        'cup-catch'
    """
    return f"{_PUBLISHED_DOMAINS.get(domain, domain)}-{task}".replace("_", "-")


def install_command(python: tuple[int, ...] = sys.version_info) -> str:
    """How to install dm_control with pip.

    Its dependency labmaze, which the suite never imports, has no wheel beyond Python 3.12. There
    the extra brings the other dependencies, and dm_control comes without its own.

    Examples:
        >>> print(install_command((3, 12)))
        pip install 'torchrl_tdmpc[dmc]'
        >>> print(install_command((3, 13)))
        pip install 'torchrl_tdmpc[dmc]' && pip install --no-deps 'dm-control>=1.0.50,<2'
    """
    command = "pip install 'torchrl_tdmpc[dmc]'"
    if python >= (3, 13):
        command += " && pip install --no-deps 'dm-control>=1.0.50,<2'"
    return command


class SuiteEnv(DMControlWrapper):
    """A task of the suite that can be rendered, and frees MuJoCo's memory when it is closed.

    Args:
        env: the environment of the suite.
        camera: which camera films it.
        frame_skip: environment steps in an agent step.
    """

    def __init__(self, env: Any, *, camera: int, frame_skip: int):
        super().__init__(env, frame_skip=frame_skip)
        self.camera = camera

    def render(self) -> np.ndarray:
        """A frame, uint8 ``[64, 64, 3]``."""
        return self._env.physics.render(FRAME_SIZE, FRAME_SIZE, camera_id=self.camera)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the environment, and free what is not Python's."""
        super().close(raise_if_closed=raise_if_closed)
        self._env.physics.free()


def _make_base(name: str, action_repeat: int, seed: int) -> EnvBase:
    """One environment. Its initial states come from a generator of its own."""
    camera = _CAMERAS.get(name.partition("-")[0], 0)
    return SuiteEnv(suite_env(name, seed), camera=camera, frame_skip=action_repeat)


def suite_env(name: str, seed: int) -> Any:
    """dm_control's own environment of a task, by its published name.

    Examples:
        >>> suite_env("cup-catch", seed=1).action_spec().shape
        (2,)
    """
    for domain, task in _suite().ALL_TASKS:
        if name == published_name(domain, task):
            return _suite().load(domain, task, task_kwargs={"random": seed})
    from torchrl_tdmpc.envs import custom

    return custom.make_environment(custom.TASKS[name], name, random=seed)


def _task_names() -> dict[str, str]:
    """The published name under every name that is understood, made plain."""
    tasks = {task: published_name(*task) for task in _suite().ALL_TASKS}
    own = {_plain("-".join(task)): name for task, name in tasks.items()}
    from torchrl_tdmpc.envs import custom

    return own | {_plain(name): name for name in (*tasks.values(), *custom.TASKS)}


def _plain(name: str) -> str:
    return name.replace("_", "-").lower()


def _suite():
    choose_renderer()
    try:
        from dm_control import suite
    except ModuleNotFoundError as error:
        raise ImportError(f"backend 'dmcontrol' needs {error.name}: {install_command()}") from error
    return suite
