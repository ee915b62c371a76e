"""One reset and a few steps of an environment, before anything depends on it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torchrl.envs import EnvBase
from torchrl.envs.utils import step_mdp

from torchrl_tdmpc.envs.border import num_steps
from torchrl_tdmpc.envs.contract import NonFiniteError, first_line
from torchrl_tdmpc.envs.layers import layers

STEPS = 3
# How others count the steps of an episode and limit them: Gymnasium's TimeLimit, dm_control
METERS = (("_elapsed_steps", "_max_episode_steps"), ("_step_count", "_step_limit"))


class Units(NamedTuple):
    """What an agent step is, seen in a few of them."""

    action_repeat: int | None  #: steps of the innermost environment; None if they differ
    limit: int | None  #: agent steps after which the environment truncates; None if it does not say


def try_out(env: EnvBase, name: str) -> Units:
    """Reset an environment and take a few steps in the middle of its action space.

    Whatever stands between an agent and a simulator may skip frames, above or below a time limit.
    So both are read from what a step does, not from what is declared.

    Args:
        env: made standard, for this alone.
        name: the task's name, for the messages.

    Returns:
        The units of its steps.

    Raises:
        ValueError: if it breaks a rule or fails.
    """
    try:
        return _units(env)
    except NonFiniteError as error:
        raise ValueError(str(error)) from error
    except ValueError as error:
        if str(error).startswith(f"task {name!r}"):
            raise
        raise _failure(error, name) from error
    except Exception as error:  # of someone else's code
        raise _failure(error, name) from error


def _failure(error: Exception, name: str) -> ValueError:
    return ValueError(
        f"task {name!r} failed when it was tried for {STEPS} agent steps ({first_line(error)})."
    )


def _units(env: EnvBase) -> Units:
    action = torch.zeros(env.action_spec.shape, device=env.device)
    repeats: set[int] = set()
    units: dict[tuple[int, float], set[int]] = {}
    now = env.reset()
    for _ in range(STEPS):
        steps, counted = num_steps(env), dict(_meters(env))
        following = env.step(now.set("action", action))
        if following["next", "done"].any():  # a repeat that was cut short
            now = env.reset()
            continue
        repeats.add(num_steps(env) - steps)
        for meter, count in _meters(env):
            units.setdefault(meter, set()).add(count - counted.get(meter, 0))
        now = step_mdp(following)
    limits = [
        math.ceil(limit / unit.pop())
        for (_, limit), unit in units.items()
        if len(unit) == 1 and min(unit) > 0
    ]
    return Units(repeats.pop() if len(repeats) == 1 else None, min(limits, default=None))


def _meters(env: EnvBase) -> Iterator[tuple[tuple[int, float], int]]:
    """The place and the limit of what limits episodes, and how many steps it counted so far."""
    for place, layer in enumerate(layers(env)):
        for count, limit in METERS:
            steps, most = vars(layer).get(count), vars(layer).get(limit)
            if steps is not None and most is not None and most < math.inf:
                yield (place, most), steps
