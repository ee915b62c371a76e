"""Only the losses
===============

You have stored transitions and a training loop of your own. This tutorial takes the losses of
TD-MPC2 and one update of its networks, and no trainer, no environment and no planner. In the end
we look at what the model learned: it predicts rewards that it has not seen.
"""

import matplotlib.pyplot as plt
import torch
from tensordict import TensorDict

from torchrl_tdmpc import TDMPC2Loss, TDMPC2Update, make_networks
from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.modules import ModelSize

torch.manual_seed(0)

# %%
# Stored data
# -----------
#
# An episode is a TensorDict of steps ``[T]`` in TorchRL's layout: ``observation`` and ``action`` of
# a step are at the root, and what followed is under ``"next"``. The last step is ``done``. We make
# up 40 episodes of a mass on a line that is pushed at random and should stay near 0.


def make_episode(num_steps=25):
    """A random start, random pushes, and what came of them."""
    state = torch.rand(2) * 2 - 1  # position and velocity
    states, actions = [state], torch.rand(num_steps, 1) * 2 - 1
    for action in actions:
        velocity = 0.9 * state[1:] + 0.2 * action
        state = torch.cat([state[:1] + 0.2 * velocity, velocity])
        states.append(state)
    states = torch.stack(states)
    done = torch.zeros(num_steps, 1, dtype=torch.bool)
    done[-1] = True
    following = TensorDict(
        observation=states[1:],
        reward=1 - states[1:, :1].abs(),
        terminated=torch.zeros_like(done),
        done=done,
        batch_size=num_steps,
    )
    return TensorDict(observation=states[:-1], action=actions, next=following, batch_size=num_steps)


episodes = [make_episode() for _ in range(40)]
print(episodes[0])

# %%
# The losses read batches ``[B, H]``: B slices of H steps that follow one another. The replay buffer
# of this package cuts them out of the episodes. Any other source of such batches will do.

replay = EpisodeReplay(capacity=2000, horizon=3, batch_size=64)
for episode in episodes:
    replay.extend(episode)
print("a batch:", replay.sample().shape)

# %%
# Networks and losses
# -------------------
#
# ``make_networks`` builds the published networks: the world model, the policy prior and the
# Q-functions. These are tiny. ``TDMPC2Loss`` adds the target Q-functions and the losses, and
# ``TDMPC2Update`` the optimisers; it also moves the targets.

size = ModelSize(enc_dim=32, mlp_dim=32, latent_dim=16, num_enc_layers=2, num_q=2)
loss = TDMPC2Loss(*make_networks((2,), 1, size), discount=0.95)
update = TDMPC2Update(loss, lr=3e-3)

model = loss.model_loss(replay.sample())
for name, value in model.items():
    if name.startswith("loss_"):
        print(f"{name:17} {value.item():.3f}")
print("latents of the batch:", model["rollout", "latent"].shape)

# %%
# ``model_loss`` encodes the first observation of each slice and lets the dynamics imagine the rest.
# It returns the losses and this rollout. The policy's loss reads the same rollout, so nothing is
# encoded twice.

actor = loss.actor_loss(model["rollout"])
print(f"loss_actor        {actor['loss_actor'].item():.3f}")

# %%
# The update
# ----------
#
# A call of the update does all of this on one batch: a step for world model and Q-functions, then
# one for the policy prior, then the targets, which is the published order. It returns metrics.
# :doc:`/docs/composing` writes the same lines out. The published learning rate is ten times
# smaller than ours, for runs that are thousands of times longer.

history = torch.stack([update(replay.sample()) for _ in range(150)])
print(f"{len(update.metric_names)} metrics, among them {', '.join(update.metric_names[:4])}")

figure, panels = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
for panel, name in zip(panels, ["loss_consistency", "loss_reward", "loss_value"]):
    panel.plot(history[name])
    panel.set(title=name, xlabel="updates")
    panel.grid(alpha=0.3)
plt.show()

# %%
# The consistency loss compares imagined latents with encoded observations. The other two are
# cross-entropies of distributions, so they do not fall to zero.
#
# What it learned
# ---------------
#
# We make a new episode and ask the world model for the reward of each of its steps.

episode = make_episode()
with torch.no_grad():
    latent = loss.world_model.encode(episode["observation"])
    predicted = loss.world_model.reward(latent, episode["action"])
error = (predicted - episode["next", "reward"]).abs().mean()
print(f"mean error of a predicted reward: {error:.3f}")

figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.plot(episode["next", "reward"], label="true reward")
axes.plot(predicted, "--", label="predicted reward")
axes.set(xlabel="step of a new episode")
axes.grid(alpha=0.3)
axes.legend()
plt.show()

# %%
# Go on
# -----
#
# :doc:`own_encoder` puts another network in place of the encoder, and :doc:`auxiliary_losses` adds
# losses of other kinds to the update.
