"""Your first run
==============

Train a small agent from Python, look at what it wrote, and act with it. The task is Gymnasium's
``InvertedPendulum-v5``: a cart moves on a rail and has to keep a pole upright. An episode
terminates when the pole falls. It needs ``pip install 'torchrl_tdmpc[cli,gym]'``.
"""

import csv
import tempfile

import matplotlib.pyplot as plt

from torchrl_tdmpc import OnlineTrainer, load_agent
from torchrl_tdmpc.envs import load_task, make_env

# %%
# The task
# --------
#
# A task knows its shapes and makes environments. Actions are scaled to [-1, 1]. We cut episodes
# after 50 agent steps, so the best possible return is 50: one for each step that the pole stands.

task = load_task("gym", "InvertedPendulum-v5", episode_length=50)
print(task.name, task.observation_shape, task.action_dim)

# %%
# Training
# --------
#
# The trainer makes the world model, the policy prior, the Q-functions, the planner and the replay
# buffer. The numbers here are tiny, so that this page takes seconds. For a real run, leave out
# ``model``, ``steps``, ``seed_steps`` and the line that changes the planner.
#
# The first 120 agent steps are random. The trainer then makes 120 updates at once, and from there
# on one for each agent step. Every 60 agent steps it evaluates the agent without exploration.

output_dir = tempfile.mkdtemp()
trainer = OnlineTrainer(
    task,
    output_dir=output_dir,
    model={"enc_dim": 32, "mlp_dim": 32, "latent_dim": 16},
    steps=240,
    seed_steps=120,
    eval_interval=60,
    eval_episodes=3,
)
trainer.planner.num_samples, trainer.planner.num_elites = 64, 16
trainer.train()

# %%
# What the run wrote
# ------------------
#
# ``eval.csv`` has a row for each evaluation, and ``train.csv`` one for each episode. ``step``
# counts environment steps, and ``reward`` is the mean return. :doc:`/docs/files` explains every
# column.


def read(name, *columns):
    """Some columns of a table, as numbers."""
    with open(f"{output_dir}/{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [[float(row[column]) for row in rows] for column in columns]


steps, returns = read("eval", "step", "reward")
print("step  ", steps)
print("return", [round(value, 1) for value in returns])

figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
axes.plot(*read("train", "step", "return"), ".", alpha=0.4, label="episodes (exploring)")
axes.plot(steps, returns, "o-", label="evaluation (mean of 3)")
axes.axvline(120, linestyle="--", color="0.35", label="first updates")
axes.set(xlabel="environment steps", ylabel="return", ylim=(0, 52))
axes.grid(alpha=0.3)
axes.legend()
plt.show()

# %%
# The run drew a similar plot itself: ``returns.png`` in the same folder.
#
# Act
# ---
#
# ``load_agent`` reads the newest checkpoint in the folder. ``act`` takes an observation and gives
# an action, as a NumPy array or a tensor, whichever it was given. The agent remembers its last
# plan, so call ``reset`` where an episode begins. Any loop will do; this one steps an environment
# of the task.

agent = load_agent(output_dir)
env = make_env(task, seed=7)
data, angles = env.reset(), []
agent.reset()
for _ in range(50):
    angles.append(data["observation"][0, 1].item())
    data["action"] = agent.act(data["observation"])
    data = env.step(data)["next"]
    if data["done"].any():
        break
print(f"the pole stood for {len(angles)} agent steps")

figure, axes = plt.subplots(figsize=(7, 2.5), layout="constrained")
axes.plot(angles)
axes.axhline(0, color="0.35", linestyle="--")
axes.set(xlabel="agent step", ylabel="angle of the pole (rad)", ylim=(-0.25, 0.25))
plt.show()

# %%
# Go on
# -----
#
# From the command line the same run is
# ``tdmpc2-train env.backend=gym env.task=InvertedPendulum-v5``, and ``resume="auto"`` goes on with
# the run in a folder. :doc:`own_environment` does the same with an environment that you write, and
# :doc:`/docs/trainer` shows callbacks and parts of your own.
