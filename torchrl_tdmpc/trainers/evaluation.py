"""How well an agent does when it does not explore."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules.utils import get_primers_from_module

from torchrl_tdmpc.envs import Task, forked_generators, make_env

__all__ = ["evaluate"]


def evaluate(
    policy: TensorDictModuleBase | None,
    task: Task,
    *,
    episodes: int,
    seed: int,
    device: torch.device | str = "cpu",
    on_begin: Callable[[TransformedEnv], None] = lambda env: None,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[list[float], list[int]]:
    """Run evaluation episodes side by side, each in an environment of its own.

    The result is a function of the policy's weights and of ``seed``: environments are made afresh,
    and torch's generators are forked, so that whatever surrounds a call is left as it was.

    Args:
        policy: acts without exploring; None acts at random.
        task: what to pose.
        episodes: number of episodes.
        seed: of the environments and of every draw.
        device: where the policy is.
        on_begin: given the environments before they are reset; it may append transforms, such as
            :func:`~torchrl_tdmpc.recording.record_first_episode`.
        on_step: called after every agent step (of all environments together); an exception it
            raises ends the evaluation.

    Returns:
        The undiscounted return of each episode, and its length in agent steps.

    Raises:
        ValueError: no episode.

    Examples:
        >>> from torchrl_tdmpc.envs import load_task
        >>> task = load_task("dmcontrol", "cartpole-swingup", episode_length=10)
        >>> returns, lengths = evaluate(None, task, episodes=2, seed=0)
        >>> lengths
        [10, 10]
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; an evaluation needs at least 1.")
    device = torch.device(device)
    env = TransformedEnv(make_env(task, num_envs=episodes, seed=seed, device=device))
    if policy is not None and (primers := get_primers_from_module(policy, warn=False)) is not None:
        env.append_transform(primers)
    cuda_devices = [device] if device.type == "cuda" else []
    try:
        on_begin(env)
        with (
            forked_generators(seed, cuda_devices),
            set_exploration_type(ExplorationType.DETERMINISTIC),
        ):
            steps = env.rollout(
                task.episode_length,
                policy,
                break_when_any_done=False,
                break_when_all_done=True,
                callback=lambda env, tensordict: on_step(),
            )
    finally:
        env.close(raise_if_closed=False)  # as it is where on_begin failed
    # An environment that ended early is reset and goes on: count up to the first end only
    done, reward = steps["next", "done"].squeeze(-1), steps["next", "reward"].squeeze(-1)
    counts = done.cumsum(1) - done.long() == 0
    return (reward * counts).sum(1).tolist(), counts.sum(1).tolist()
