"""Only the planner
================

:class:`~torchrl_tdmpc.TDMPC2Planner` plans with any world model that is built from four parts: an
encoder, the dynamics, the reward and, where episodes terminate, the termination. The parts need
not be learned. In this tutorial we know the physics: a point mass moves over a table and should
reach a goal behind an obstacle. Nothing is trained, so you see what the planner does by itself.
"""

import matplotlib.pyplot as plt
import torch
from tensordict import TensorDict
from torch import nn

from torchrl_tdmpc import PolicyPrior, QEnsemble, SymlogTwoHot, TDMPC2Planner, TDMPC2WorldModel

torch.manual_seed(0)
START = torch.tensor([-0.9, -0.1, 0.0, 0.0])  # position (2) and velocity (2)
GOAL, OBSTACLE, RADIUS = torch.tensor([0.9, 0.0]), torch.tensor([0.0, 0.0]), 0.35

# %%
# The world model
# ---------------
#
# The planner calls ``encode`` once for an observation. It calls ``next`` and ``reward`` for each
# imagined step, with latents ``[E, 1, L]`` or ``[E, N, L]`` and actions ``[E, N, A]``: E
# environments, N trajectories. So the parts must let leading dimensions broadcast.
#
# Our latent is the state itself, and the encoder leaves it as it is. The action is a push.


class PointMass(nn.Module):
    """A mass of which each push changes the velocity; 0.1 seconds pass in a step."""

    def forward(self, latent, action):
        """The state ``[..., 4]`` after an action ``[..., 2]``."""
        velocity = 0.9 * latent[..., 2:] + 0.3 * action
        return torch.cat([latent[..., :2] + 0.1 * velocity, velocity], -1)


# %%
# The planner reads rewards as the published networks give them: as logits over bins. For a reward
# that we can compute, the logarithm of its two-hot code is exact. The reward is minus the distance
# to the goal, and less inside the obstacle.


class Reward(nn.Module):
    """Logits of the reward for arriving somewhere."""

    def __init__(self, physics, two_hot):
        super().__init__()
        self.physics, self.two_hot = physics, two_hot
        self.goal = nn.Parameter(GOAL, requires_grad=False)

    def forward(self, latent, action):
        """Logits ``[..., num_bins]``."""
        position = self.physics(latent, action)[..., :2]
        distance = (position - self.goal).norm(dim=-1, keepdim=True)
        inside = (position - OBSTACLE).norm(dim=-1, keepdim=True) < RADIUS
        return self.two_hot.encode(-distance - 5.0 * inside).log()


two_hot = SymlogTwoHot(num_bins=101, vmin=-3, vmax=3)
physics = PointMass()
world_model = TDMPC2WorldModel(
    encoder=nn.Identity(),
    dynamics=physics,
    reward_head=Reward(physics, two_hot),
    latent_dim=4,
    two_hot=two_hot,
)
push = torch.tensor([1.0, 0.0])
print("state after a push:", world_model.next(START, push))
print("reward of that push:", world_model.reward(START, push))

# %%
# The planner
# -----------
#
# The planner also wants a policy prior and Q-functions. The prior proposes trajectories; here it
# knows nothing, so it proposes none (``num_pi_trajs=0``). The Q-functions say what the state at the
# end of the plan is worth. New ones say 0 everywhere. So the plan itself must be long enough to see
# the way around the obstacle: 15 steps, where the default with learned Q-functions is 3.

planner = TDMPC2Planner(
    world_model,
    PolicyPrior(nn.Linear(4, 4)),
    QEnsemble(latent_dim=4, action_dim=2, mlp_dim=8, num_q=2, two_hot=two_hot),
    discount=0.99,
    horizon=15,
    num_samples=256,
    num_elites=32,
    num_pi_trajs=0,
)

# %%
# ``plan`` is one planning call. It gives the distribution of actions that the planner arrived at
# and the values of its best trajectories, the elites. ``unroll`` follows the mean of the actions
# in the world model: that is the way that the planner has in mind.

no_plan_yet = torch.zeros(1, planner.horizon, 2)
with torch.no_grad():
    plan = planner.plan(world_model.encode(START.unsqueeze(0)), no_plan_yet, explore=False)
print("first action:", plan.action)
print("best values: ", plan.elite_value[0, :3])

# %%
# To act, call the planner as a TensorDict module. It reads the mean of the last plan, from which
# the new plan starts, and writes the new one. Whoever calls it carries the mean to the next step.
# In a TorchRL environment ``planner.make_tensordict_primer()`` does so.
#
# The true mass meets a wind that the model does not know of. The planner makes a new plan at each
# step, so it corrects for the wind.

WIND = torch.tensor([0.0, -0.05])
state, mean = START.unsqueeze(0), no_plan_yet
states, imagined = [state], []
for _ in range(30):
    data = TensorDict(observation=state, _previous_mean=mean, batch_size=1)
    data = planner(data)
    mean = data["next", "_previous_mean"]
    imagined.append(world_model.unroll(state, mean)[0])
    state = physics(state, data["action"])
    state[:, 2:] += WIND
    states.append(state)
path = torch.cat(states)
print(f"distance to the goal at the end: {(path[-1, :2] - GOAL).norm():.2f}")

# %%
# The blue line is the way that the mass went. Each thin line is what the planner had in mind at one
# of the steps, 15 steps ahead. The first leads around the obstacle, and later ones to the goal.

figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
axes.add_patch(plt.Circle(OBSTACLE.tolist(), RADIUS, color="0.8", label="obstacle"))
for step in range(0, 30, 4):
    axes.plot(*imagined[step][:, :2].T, color="C1", linewidth=0.8)
axes.plot([], [], color="C1", linewidth=0.8, label="plans (every fourth)")
axes.plot(*path[:, :2].T, "o-", color="C0", markersize=3, label="the mass")
axes.plot(*GOAL, "*", color="C2", markersize=14, label="goal")
axes.set(xlabel="x", ylabel="y", aspect="equal")
axes.legend(loc="upper left")
plt.show()

# %%
# Go on
# -----
#
# A learned model takes the same place: :doc:`first_run` trains one. A subclass of the planner may
# change any of its steps: :doc:`/docs/composing` has one whose actions cost something, and
# :doc:`/docs/trainer` one with coloured noise.
