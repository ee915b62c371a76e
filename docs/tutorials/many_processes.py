"""Environments in many processes
==============================

A slow simulator keeps the learner waiting. TorchRL's ``MultiSyncCollector`` runs environments in
processes of their own, each with its own planner. This tutorial collects from two processes and
learns from what they send.
"""

import functools

import matplotlib.pyplot as plt
import torch
from torchrl.collectors import MultiSyncCollector

from torchrl_tdmpc import TDMPC2Loss, TDMPC2Planner, TDMPC2Update, make_networks
from torchrl_tdmpc.data import EpisodeReplay
from torchrl_tdmpc.envs import load_task, make_env
from torchrl_tdmpc.modules import ModelSize

# %%
# The parts
# ---------
#
# Networks, planner, losses and replay buffer are those of any other run. A new process imports this
# file, so what stands here runs in each of them. Keep it short, and start nothing.

torch.manual_seed(0)
task = load_task("gym", "Pendulum-v1", episode_length=25)
size = ModelSize(enc_dim=32, mlp_dim=32, latent_dim=16, num_enc_layers=2, num_q=2)
networks = make_networks(task.observation_shape, task.action_dim, size)
planner = TDMPC2Planner(*networks, discount=0.95, iterations=3, num_samples=64, num_elites=16)

# %%
# The loop
# --------
#
# A process is sent what makes its environment, so this must be something that can be pickled. A
# ``functools.partial`` of ``make_env`` is; each process gets a seed of its own. The collector lets
# every process take 25 agent steps, returns them all, and waits until it is asked again.
#
# ``replay.extend`` needs no more: the ids that the collector writes tell it which steps belong
# together. On a CPU the processes share the weights of the planner, so they act with every update
# at once. On another device call ``collector.update_policy_weights_()`` after the updates.


def collect_and_learn():
    """The return of each process's episode, by round."""
    replay = EpisodeReplay(capacity=1000, horizon=3, batch_size=64)
    update = TDMPC2Update(TDMPC2Loss(*networks, discount=0.95))
    collector = MultiSyncCollector(
        [functools.partial(make_env, task, seed=seed) for seed in (1, 2)],
        planner,
        frames_per_batch=50,
        total_frames=200,
        auto_register_policy_transforms=True,
        cat_results="stack",
    )
    returns = []
    for data in collector:
        finished = replay.extend(data)
        for _ in range(20):
            metrics = update(replay.sample())
        returns.append(data["next", "reward"].sum((1, 2, 3)))
        print(
            f"{list(data.shape)} steps of [processes, environments, time],",
            f"{finished} episodes, loss_reward {metrics['loss_reward']:.3f}",
        )
    collector.shutdown()
    return torch.stack(returns)


# %%
# Only the first process may start others. In a file of your own this line is needed, too: without
# it every process would try to start processes.

if __name__ == "__main__":
    returns = collect_and_learn()

    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    for process, column in enumerate(returns.T):
        axes.plot(range(1, 5), column, "o-", label=f"process {process}")
    axes.set(xlabel="round", ylabel="return of the episode", xticks=range(1, 5))
    axes.legend()
    plt.show()

# %%
# 80 updates are too few to swing a pendulum up. What the plot shows is that two processes sent four
# episodes each.
#
# Other collectors
# ----------------
#
# * ``MultiAsyncCollector`` does not wait for the slowest process. It sends what one process
#   collected at a time, and ``replay.extend`` takes that too.
# * ``Actors`` are such a collector for this planner: they act while the learner updates, with
#   weights that it sends. ``RayActors`` do so on the machines of a Ray cluster. ``OnlineTrainer``
#   takes both as its ``collector``.
# * Where each machine runs a collector of its own, their ids are the same. Name them:
#   ``replay.extend(data, source="machine 1")``.
#
# Go on
# -----
#
# ``OnlineTrainer(task, num_envs=8, workers="process")`` also steps environments in processes. It
# keeps one planner, which plans for all of them together: :doc:`/docs/environments`.
