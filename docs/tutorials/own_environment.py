"""An environment of your own
==========================

A ball lies on a ridge. It rolls off by itself unless the agent pushes against it, and an episode
terminates where the ball falls. This tutorial writes that environment as a Gymnasium class, has it
checked, and trains on it for a few steps. It needs ``pip install 'torchrl_tdmpc[cli,gym]'``.
"""

import gymnasium
import matplotlib.pyplot as plt
import numpy as np

from torchrl_tdmpc import OnlineTrainer, evaluate
from torchrl_tdmpc.envs import make_env, make_task

# %%
# The class
# ---------
#
# An environment needs the two spaces, ``reset`` with a seed, and ``step``. ``step`` tells two ends
# apart. ``terminated`` says that the episode has no future: the ball has fallen. ``truncated`` says
# that a time limit ended it. The limit is not ours to write: ``make_task`` adds it.


class Ridge(gymnasium.Env):
    """Keep a ball on top of a ridge."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-3.0, 3.0, (1,), np.float32)  # push, in newtons

    def reset(self, *, seed=None, options=None):
        """Begin near the top, at rest."""
        super().reset(seed=seed)  # makes self.np_random
        self.state = np.array([self.np_random.uniform(-0.3, 0.3), 0.0], np.float32)
        return self.state.copy(), {}

    def step(self, action):
        """Push for 0.1 seconds."""
        position, velocity = self.state
        velocity += 0.1 * (2.0 * position + action[0])
        position += 0.1 * velocity
        self.state = np.array([position, velocity], np.float32)
        terminated = bool(abs(position) > 1.0)
        reward = 1.0 - abs(float(position))
        return self.state.copy(), reward, terminated, False, {}


# %%
# The task
# --------
#
# ``make_task`` makes one environment, steps it a few times and looks at what comes. It scales
# actions: the agent acts in [-1, 1], and the environment gets newtons.

task = make_task(Ridge, episode_length=60)
print("observation:", task.observation_shape, "action:", task.action_dim)
print("may terminate:", task.episodic)

# %%
# A mistake is refused in a sentence that says what to change. Here ``reset`` forgets the second
# thing that it must return.


class Forgetful(Ridge):
    """Returns no info."""

    def reset(self, *, seed=None, options=None):
        """Only the observation."""
        return super().reset(seed=seed)[0]


try:
    make_task(Forgetful, episode_length=60)
except ValueError as error:
    print(error)

# %%
# Random episodes show what there is to learn: the ball falls long before the limit.

random_rows = evaluate(None, task, episodes=4, seed=0)
print("lengths of random episodes:", [row["length"] for row in random_rows])

# %%
# Train
# -----
#
# The trainer is the same as for any task. Because the task may terminate, the world model has a
# further head, which predicts the termination. The planner counts no reward behind a predicted end.

model = {"enc_dim": 32, "mlp_dim": 32, "latent_dim": 16}
trainer = OnlineTrainer(task, model=model, steps=250, seed_steps=150, eval_episodes=0)
trainer.planner.iterations = 3  # quick, for this page
trainer.planner.num_samples, trainer.planner.num_elites = 64, 16
trainer.train()
print("termination head:", trainer.update.loss.world_model.episodic)

# %%
# The trained agent, without exploration, from the same initial states as the random episodes:

rows = evaluate(trainer.planner, task, episodes=4, seed=0)
print("lengths after training:", [row["length"] for row in rows])
for name, some in (("random", random_rows), ("trained", rows)):
    print(f"mean return, {name}: {np.mean([row['return'] for row in some]):.1f}")

# %%
# We look at one episode. ``rollout`` steps the environment with the planner. The planner's primer
# carries the last plan from step to step.

env = make_env(task, seed=3).append_transform(trainer.planner.make_tensordict_primer())
episode = env.rollout(60, trainer.planner)[0]
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.plot(episode["observation"][:, 0], label="position")
axes.step(range(len(episode)), episode["action"], alpha=0.5, label="action (scaled)")
axes.axhspan(1.0, 1.2, color="0.85")
axes.axhspan(-1.2, -1.0, color="0.85", label="the ball falls")
axes.set(xlabel="agent step", ylim=(-1.2, 1.2))
axes.legend(ncols=3)
plt.show()

# %%
# Go on
# -----
#
# To train for longer from the command line, put the class in a module and name it:
# ``tdmpc2-train env.backend=function env.task=my_envs:Ridge env.episode_length=60``.
# :doc:`/docs/environments` lists every rule, and shows batches, pixels and extra entries such as a
# success.
