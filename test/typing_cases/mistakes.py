"""Mistakes that a type checker must notice.

Each has an ignore with the kind of error; mypy complains of an ignore that it does not need.
tensordict and torchrl have no types. So mypy takes a class that extends one of theirs for any
class, and does not notice that a policy prior stands where a Q ensemble should.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

import torchrl_tdmpc as td
from torchrl_tdmpc.envs import Task


def mistakes(task: Task, agent: td.Agent, trainer: td.OnlineTrainer) -> float:
    model, prior, critics = td.make_networks((5,), "1")  # type: ignore[arg-type]
    td.TDMPC2Loss(model, prior, [critics], discount=0.99)  # type: ignore[arg-type]
    td.TDMPC2Planner(model, prior, critics, discount="0.99")  # type: ignore[arg-type]
    td.SymlogTwoHot(bins=21)  # type: ignore[call-arg]
    td.MultiGammaConfig(head="both")  # type: ignore[arg-type]
    td.OnlineTrainer(task, step=12)  # type: ignore[call-arg]
    td.evaluate(None, task, episodes=1)  # type: ignore[call-arg]
    td.Agent(td.TDMPC2Planner, task.observation_shape)  # type: ignore[arg-type]
    agent.act([0.0])  # type: ignore[call-overload]
    agent.reset("now")  # type: ignore[arg-type]
    action: Tensor = agent.act(np.zeros(5))  # type: ignore[assignment]
    print(trainer.counters.agent_step)  # type: ignore[attr-defined]
    reward: float = model.reward(action, action)  # type: ignore[assignment]
    return reward
