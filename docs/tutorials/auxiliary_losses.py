"""Auxiliary losses
================

A further loss on the latent rollout shapes the encoder and the dynamics in training, and is not
there when the agent acts. This tutorial adds two to the published update: the value heads at
several discounts that come with this package, and an inverse dynamics loss that we write.
"""

import matplotlib.pyplot as plt
import torch
from tensordict import TensorDict
from torchrl.objectives import LossModule

from torchrl_tdmpc import (
    AuxiliaryValueHeads,
    MultiGammaValueLoss,
    TDMPC2Loss,
    TDMPC2Update,
    make_networks,
)
from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.modules import ModelSize

torch.manual_seed(0)

# %%
# Something to learn from
# -----------------------
#
# We make up 40 episodes of a point on a plane that is pushed at random and creeps back to the
# middle. It observes its distances to four posts. :doc:`only_the_losses` says more about the form
# of such data.

POSTS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


def make_episode(num_steps=25):
    """Random pushes, and where the point went."""
    states, actions = [torch.zeros(2)], torch.rand(num_steps, 2) * 2 - 1
    for action in actions:
        states.append(0.9 * states[-1] + 0.4 * action)
    states = torch.stack(states)
    observations = (states.unsqueeze(1) - POSTS).norm(dim=-1)
    done = torch.zeros(num_steps, 1, dtype=torch.bool)
    done[-1] = True
    following = TensorDict(
        observation=observations[1:],
        reward=2 - states[1:].norm(dim=-1, keepdim=True),
        terminated=torch.zeros_like(done),
        done=done,
        batch_size=num_steps,
    )
    return TensorDict(
        observation=observations[:-1], action=actions, next=following, batch_size=num_steps
    )


replay = EpisodeReplay(capacity=2000, horizon=3, batch_size=64)
for _ in range(40):
    replay.extend(make_episode())
print("steps:", replay.num_steps)

# %%
# Value heads at several discounts
# --------------------------------
#
# ``MultiGammaValueLoss`` has a linear head for each further discount. A head predicts from the
# latent what the value would be at its discount. The first discount of the list is the agent's own.

DISCOUNT = 0.95
size = ModelSize(enc_dim=32, mlp_dim=32, latent_dim=16, num_enc_layers=2, num_q=2)
heads = AuxiliaryValueHeads(latent_dim=16, num_heads=2, num_bins=101)
multi_gamma = MultiGammaValueLoss(heads, gammas=[DISCOUNT, 0.8, 0.99])

# %%
# A loss of your own
# ------------------
#
# An auxiliary loss is one of TorchRL's loss modules. It reads the rollout ``[B, H]`` and writes one
# ``loss_*``. This one predicts the action that led from one latent to the next. A latent from which
# that is possible must hold what the agent can influence. Neighbouring latents differ little, so
# the head normalises them over the batch first.


class InverseDynamicsLoss(LossModule):
    """Squared error of the action predicted from two neighbouring latents."""

    def __init__(self, latent_dim, action_dim, coefficient=1.0):
        super().__init__()
        self.head = torch.nn.Sequential(
            torch.nn.BatchNorm1d(2 * latent_dim),
            torch.nn.Linear(2 * latent_dim, 64),
            torch.nn.Mish(),
            torch.nn.Linear(64, action_dim),
        )
        self.coefficient = coefficient
        self.in_keys = ["latent", ("next", "target_latent"), "action"]
        self.out_keys = ["loss_inverse_dynamics", "inverse_dynamics"]

    def forward(self, rollout):
        """The loss, multiplied by its coefficient, and the error as it is."""
        latents = torch.cat([rollout["latent"], rollout["next", "target_latent"]], -1)
        predicted = self.head(latents.flatten(0, 1))  # of all B * H steps
        error = (predicted - rollout["action"].flatten(0, 1)).square().mean()
        return TensorDict(
            loss_inverse_dynamics=self.coefficient * error, inverse_dynamics=error.detach()
        )


# %%
# Its entries come from the rollout: ``latent`` is imagined and carries the gradient to dynamics and
# encoder, and ``("next", "target_latent")`` is the encoded next observation, without a gradient.
# The imagined next latent, ``("next", "latent")``, would not do: it was made from the action.
#
# Both in the update
# ------------------
#
# ``TDMPC2Update`` adds each loss to the model's, trains its parameters with the model's optimiser,
# and reports what it writes. The policy prior and the Q-functions get no gradient from it.

loss = TDMPC2Loss(*make_networks((4,), 2, size), discount=DISCOUNT)
inverse_dynamics = InverseDynamicsLoss(latent_dim=16, action_dim=2)
update = TDMPC2Update(loss, auxiliary=[multi_gamma, inverse_dynamics], lr=3e-3)
print("losses:", ", ".join(name for name in update.metric_names if name.startswith("loss_")))

history = torch.stack([update(replay.sample()) for _ in range(150)])

# %%
# A random action has a variance of 1/3: that is the error of always predicting 0. The
# cross-entropy of a head that knows nothing is log(101) = 4.6.

print(f"error of the predicted action: {history['inverse_dynamics'][-20:].mean():.3f}")
for gamma in multi_gamma.gammas[1:]:
    print(f"cross-entropy of the head at {gamma}: {history[f'aux_value_ce/g{gamma}'][-1]:.2f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot(history["inverse_dynamics"])
left.axhline(1 / 3, linestyle="--", color="0.35", label="always 0")
left.set(title="inverse dynamics: error", xlabel="updates", ylim=(0, None))
left.legend()
for gamma in multi_gamma.gammas[1:]:
    right.plot(history[f"aux_value_ce/g{gamma}"], label=f"discount {gamma}")
right.set(title="value heads: cross-entropy", xlabel="updates", ylim=(0, None))
right.legend()
plt.show()

# %%
# Go on
# -----
#
# ``OnlineTrainer(task, auxiliary=[...])`` takes the same list. The losses are then columns of
# ``train.csv``, and checkpoints hold their weights. Whether such a loss helps an agent is a
# question for several seeds: :doc:`/docs/multi_gamma` has ablations and controls for the value
# heads.
