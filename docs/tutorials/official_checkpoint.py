"""A checkpoint of the official implementation
===========================================

The authors of TD-MPC2 publish more than 300 trained agents. This tutorial loads a file in their
format, evaluates the agent, trains it further, and takes its encoder for another agent. It runs
without a network, so it first writes such a file itself.

A real one is downloaded from https://www.tdmpc2.com/models in the browser: choose a task of
DMControl and save the ``.pt`` file, such as ``walker-walk-1.pt``. Then leave out the first step
below, and use the file's path and ``load_task("dmcontrol", "walker-walk")``.
"""

import tempfile
import warnings

import torch

from torchrl_tdmpc import (
    OnlineTrainer,
    TDMPC2Loss,
    TDMPC2Planner,
    TDMPC2Update,
    evaluate,
    make_networks,
)
from torchrl_tdmpc.checkpoints import load_official, save_official
from torchrl_tdmpc.envs import load_task
from torchrl_tdmpc.modules import ModelSize
from torchrl_tdmpc.trainers import discount_heuristic

warnings.filterwarnings("ignore", "No target network updater")  # TDMPC2Update moves the targets
torch.manual_seed(0)
task = load_task("dmcontrol", "cartpole-swingup", episode_length=25)

# %%
# A file to begin with
# --------------------
#
# ``save_official`` writes a file that the official implementation reads. The agent here is new, so
# it knows nothing yet. Its size is tiny; published agents of one task have 5M parameters.

size = ModelSize(enc_dim=32, mlp_dim=32, latent_dim=16, num_enc_layers=2, num_q=2)
networks = make_networks(task.observation_shape, task.action_dim, size)
path = f"{tempfile.mkdtemp()}/cartpole-swingup-1.pt"
save_official(path, TDMPC2Loss(*networks, discount=0.95))

for name, value in list(torch.load(path, weights_only=True)["model"].items())[:5]:
    print(name, tuple(value.shape))

# %%
# Load it
# -------
#
# The sizes of the networks come from the weights. The file does not say which task it is of, nor
# the discount, so we give it: the official implementation computes it from the length of an
# episode, and ``discount_heuristic`` does the same.

discount = discount_heuristic(task.episode_length)
loss, observation_shape, action_dim = load_official(path, discount=discount)
print("observes", observation_shape, "and acts in", action_dim, "dimension, discount", discount)

# %%
# The weights are those that we saved, the same to the bit. The features of our latents stand in
# another order than in the file, and loading translates.

saved, loaded = networks[1].network[0].weight, loss.policy_prior.network[0].weight
print("same weights:", torch.equal(saved, loaded))

# %%
# Evaluate it
# -----------
#
# A planner on the loaded networks acts. ``evaluate`` gives a row for each episode. From the command
# line: ``tdmpc2-evaluate checkpoint=walker-walk-1.pt env.task=walker-walk``.

planner = TDMPC2Planner(
    loss.world_model,
    loss.policy_prior,
    loss.q_ensemble,
    discount=discount,
    iterations=3,
    num_samples=64,
    num_elites=16,
)
for row in evaluate(planner, task, episodes=3, seed=0):
    print(f"return {row['return']:.3f}, {row['length']} agent steps")

# %%
# Train it further
# ----------------
#
# The trainer takes the loss with its networks in place of making its own. The file holds neither
# optimisers nor data, so the run begins with random episodes, as any run does.

before = loss.world_model.dynamics[0].weight.clone()
trainer = OnlineTrainer(task, loss=loss, planner=planner, steps=60, seed_steps=50, eval_episodes=0)
trainer.train()
change = (loss.world_model.dynamics[0].weight - before).abs().mean()
print(f"{trainer.counters.updates} updates; mean change of a weight of the dynamics: {change:.4f}")

# %%
# ``save_official(path, loss)`` would now write the fine-tuned agent for the official
# implementation.
#
# Take its encoder
# ----------------
#
# New networks may begin with a trained encoder. Here it is frozen: no update moves it.

encoder = loss.world_model.encoder.requires_grad_(False)
fresh = make_networks(task.observation_shape, task.action_dim, size, encoder=encoder)
before = encoder[0].weight.clone()
update = TDMPC2Update(TDMPC2Loss(*fresh, discount=discount))
for _ in range(5):
    update(trainer.replay.sample())
print("encoder as it was:", torch.equal(encoder[0].weight, before))

# %%
# Go on
# -----
#
# :doc:`/docs/evaluating` has the command line and videos, and :doc:`/docs/multitask` the agents of
# 30 and 80 tasks.
