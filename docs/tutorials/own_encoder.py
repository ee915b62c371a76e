"""An encoder of your own
======================

A robot seldom observes one vector. Here it has a line camera of 16 pixels and a speed sensor. This
tutorial keeps both as a dictionary, writes an encoder that reads them, and trains a world model
with it. Then the planner acts from what the camera sees.
"""

import matplotlib.pyplot as plt
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase, StepCounter, TransformedEnv

from torchrl_tdmpc import SimNorm, TDMPC2Loss, TDMPC2Planner, TDMPC2Update, make_networks
from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.modules import ModelSize

torch.manual_seed(0)
PIXELS = torch.linspace(-1, 1, 16)

# %%
# An environment that observes a dictionary
# -----------------------------------------
#
# A lamp glides on a rail below the camera. The agent pushes it, and gets the more reward the nearer
# it is to the middle. Everything that is observed lies below one key, ``observation``: that is what
# the encoder gets. In environments of other people, TorchRL's ``RenameTransform`` moves entries
# there.


class Rail(EnvBase):
    """A lamp on a rail, seen by a camera of 16 pixels."""

    def __init__(self):
        super().__init__()
        senses = Composite(camera=Unbounded((16,)), speed=Unbounded((1,)))
        self.observation_spec = Composite(observation=senses)
        self.action_spec = Bounded(-1.0, 1.0, (1,))
        self.reward_spec = Unbounded((1,))

    def _set_seed(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def _senses(self):
        camera = torch.exp(-20.0 * (PIXELS - self.position).square())
        return TensorDict(camera=camera, speed=self.speed)

    def _reset(self, tensordict=None):
        self.position = torch.rand(1, generator=self.generator) * 1.6 - 0.8
        self.speed = torch.zeros(1)
        return TensorDict(observation=self._senses())

    def _step(self, tensordict):
        self.speed = 0.8 * self.speed + 0.1 * tensordict["action"]
        self.position = (self.position + self.speed).clamp(-1, 1)
        reward = 1 - self.position.abs()
        return TensorDict(observation=self._senses(), reward=reward, done=torch.tensor([False]))


env = TransformedEnv(Rail(), StepCounter(20))
env.set_seed(1)
print(env.reset()["observation"])

# %%
# The encoder
# -----------
#
# An encoder is any module from observations to latents ``[..., L]``. The losses call it on
# ``[B, ...]`` and on ``[B, H, ...]``, the planner on ``[E, ...]``. So it must accept any leading
# dimensions; the convolution below wants exactly one, which is why we flatten and unflatten.
# ``SimNorm`` gives the latent the published form. The layer norm in front of it matters: without it
# the latents of this new encoder are nearly the same for all observations, and it learns slowly.


class CameraAndSpeed(nn.Module):
    """Convolution for the camera, and the speed beside its features."""

    def __init__(self, latent_dim):
        super().__init__()
        self.camera = nn.Sequential(nn.Conv1d(1, 4, 5, stride=2), nn.ReLU(), nn.Flatten())
        self.join = nn.Sequential(
            *(nn.Linear(4 * 6 + 1, 32), nn.LayerNorm(32), nn.Mish()),
            *(nn.Linear(32, latent_dim), nn.LayerNorm(latent_dim), SimNorm(8)),
        )

    def forward(self, observation):
        """Latents ``[..., L]`` of a TensorDict ``[...]``."""
        camera = observation["camera"]
        features = self.camera(camera.reshape(-1, 1, 16)).reshape(*camera.shape[:-1], -1)
        return self.join(torch.cat([features, observation["speed"]], -1))


size = ModelSize(enc_dim=32, mlp_dim=32, latent_dim=16, num_enc_layers=2, num_q=2)
# The observation's shape, (), is for the published encoders; ours replaces them
networks = make_networks((), action_dim=1, size=size, encoder=CameraAndSpeed(size.latent_dim))
loss = TDMPC2Loss(*networks, discount=0.9)
update = TDMPC2Update(loss, lr=3e-3)

# %%
# Data and updates
# ----------------
#
# The replay buffer stores entries, so it wants the name of each. We fill it with 40 random
# episodes. Loss and update need no change.

replay = EpisodeReplay(
    capacity=2000,
    horizon=3,
    batch_size=64,
    observation_keys=[("observation", "camera"), ("observation", "speed")],
)
for _ in range(40):
    random_episode = env.rollout(20)
    replay.extend(random_episode)
print(replay.sample()["observation"])

history = torch.stack([update(replay.sample()) for _ in range(250)])
for name in ("loss_consistency", "loss_reward"):
    print(f"{name}: {history[name][0]:.3f} at first, {history[name][-10:].mean():.3f} at last")

# %%
# The planner
# -----------
#
# It reads the dictionary too, from the same key. The primer carries its last plan from one step to
# the next.

planner = TDMPC2Planner(
    *networks, discount=0.9, iterations=4, num_samples=64, num_elites=16, num_pi_trajs=4
)
env.append_transform(planner.make_tensordict_primer())
episode = env.rollout(20, planner)
for name, some in (("random", random_episode), ("planned", episode)):
    print(f"return, {name}: {some['next', 'reward'].sum():.1f} of 20")

# %%
# What the camera saw: time goes down, and the bright spot is the lamp. The planner brings it
# near the middle and keeps it there.

figure, panels = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained", sharey=True)
for panel, some, title in zip(panels, [random_episode, episode], ["random", "planned"]):
    panel.imshow(some["observation", "camera"], aspect="auto", cmap="gray")
    panel.axvline(7.5, color="C1", linewidth=0.8)
    panel.set(title=title, xlabel="pixel")
panels[0].set_ylabel("agent step")
plt.show()

# %%
# Go on
# -----
#
# For one vector or for stacked frames the published encoders are there already:
# ``make_networks((D,), ...)`` and ``make_networks((9, 64, 64), ...)``. ``make_task`` makes one
# vector of an environment's dictionary. :doc:`/docs/composing` replaces the other networks, too.
