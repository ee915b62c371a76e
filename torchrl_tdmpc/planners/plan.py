"""What goes into one planning call and what comes out."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Elites", "Plan", "PlanDraws"]


class PlanDraws(NamedTuple):
    """Every random number of one planning call.

    E environments, H horizon, A action, N samples, P policy trajectories, I iterations, K elites.
    Only ``q_pair`` is shared by the environments.
    """

    policy_trajectories: Tensor  #: [E, H, P, A], standard normal
    samples: Tensor  #: [I, E, H, N - P, A], standard normal
    terminal_policy: Tensor  #: [I, E, N, A], standard normal
    q_pair: Tensor  #: [I, 2], the two Q-functions that value an iteration's trajectories
    elite: Tensor  #: [E, K], exponential with rate 1: picks the elite that is followed
    action: Tensor  #: [E, A], standard normal: exploration

    def of(self, envs: slice) -> PlanDraws:
        """The draws of some of the environments."""
        return PlanDraws(
            policy_trajectories=self.policy_trajectories[envs],
            samples=self.samples[:, envs],
            terminal_policy=self.terminal_policy[:, envs],
            q_pair=self.q_pair,
            elite=self.elite[envs],
            action=self.action[envs],
        )


class Plan(NamedTuple):
    """What one planning call found."""

    action: Tensor  #: [E, A]
    mean: Tensor  #: [E, H, A], the action distribution's mean, which warm-starts the next call
    std: Tensor  #: [E, H, A]
    elite_value: Tensor  #: [E, K], values of the last iteration's elites, best first
    nan_values: Tensor  #: [E], how many trajectory values were NaN and counted as 0


class Elites(NamedTuple):
    """The best trajectories of one iteration, best first."""

    value: Tensor  #: [E, K]
    score: Tensor  #: [E, K], softmax of temperature times value
    first_action: Tensor  #: [E, K, A]
