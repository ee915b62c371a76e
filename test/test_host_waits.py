"""Plans, updates and what is recorded of them: the host waits for the device where it is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from device_modes import HostWaits
from tiny import (
    OBSERVATION,
    tiny_batch,
    tiny_loss,
    tiny_multitask_batch,
    tiny_multitask_loss,
    tiny_multitask_networks,
    tiny_networks,
    tiny_planner,
    tiny_planner_input,
)
from tiny_heads import tiny_heads_loss
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_tdmpc import Agent
from torchrl_tdmpc.recording import RunRecord
from torchrl_tdmpc.trainers import SkippedUpdates, TDMPC2Update


def several_tasks():
    return TDMPC2Update(tiny_multitask_loss()), tiny_multitask_batch()


def one_task(bootstrap):
    return TDMPC2Update(tiny_loss(), [tiny_heads_loss(bootstrap=bootstrap)]), tiny_batch()


UPDATES = {
    "several tasks": several_tasks,
    "primary": lambda: one_task("primary"),
    "self": lambda: one_task("self"),
}


@pytest.mark.parametrize("explore", [True, False])
@pytest.mark.parametrize("mpc", [True, False])
@pytest.mark.parametrize("tasks", [None, torch.tensor([0, 2, 1, 1, 0])])
def test_a_plan_never_waits(explore, mpc, tasks):
    networks = tiny_networks(episodic=True) if tasks is None else tiny_multitask_networks()
    settings = {"mpc": mpc} if tasks is None else {"mpc": mpc, "discount": None}
    planner, data = tiny_planner(networks=networks, **settings), tiny_planner_input(5)
    if tasks is not None:
        data["task"] = tasks
    mode = ExplorationType.RANDOM if explore else ExplorationType.DETERMINISTIC
    with set_exploration_type(mode), HostWaits() as waits:
        planner(data)
    assert waits.names == []


def test_an_agent_step_waits_for_its_action_alone():
    agent = Agent(tiny_planner(), (OBSERVATION,))
    with HostWaits() as waits:
        agent.act(np.zeros((4, OBSERVATION)), explore=True)
    assert waits.names == ["cpu", "numpy"]  # of which the first waits, and the second has it


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("is_finite", [True, False])
def test_an_update_and_its_count_never_wait(name, is_finite):
    update, batch = UPDATES[name]()
    if not is_finite:
        batch["next", "reward"][0, 0] = torch.nan
    record, skipped = RunRecord([*update.metric_names, "nan_values"]), SkippedUpdates(limit=1)
    with HostWaits() as waits:
        for _ in range(2):
            metrics = update(batch).set("nan_values", torch.zeros(()))
            record.update(metrics)
            skipped.add(metrics["skipped_updates"])
    assert waits.names == []
    assert metrics["skipped_updates"] == 1 - is_finite


@pytest.mark.parametrize("num_episodes", [1, 3])
def test_the_rows_of_an_agent_step_wait_once(num_episodes):
    update, batch = several_tasks()
    record = RunRecord(update.metric_names)
    record.update(update(batch))
    with HostWaits() as waits:
        rows = record.episodes(
            step=2, agent_steps=1, returns=num_episodes * [1.0], lengths=num_episodes * [1]
        )
    assert len(rows) == num_episodes and rows[0]["loss_value"] > 0
    assert waits.names == ["tolist"]
