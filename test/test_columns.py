"""Every column of train.csv and eval.csv, recomputed from what happened in the run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from runs import TIMES, configure, rows
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type
from walks import EndingWalk

from torchrl_tdmpc import TDMPC2Planner
from torchrl_tdmpc.cli.parts import make_trainer
from torchrl_tdmpc.cli.settings import settle
from torchrl_tdmpc.envs import make_task
from torchrl_tdmpc.recording.rows import EVAL_COLUMNS
from torchrl_tdmpc.trainers import EVALUATION_SEED, TDMPC2Update

ACTION_REPEAT, NUM_ENVS, EPISODES, SEED = 2, 2, 3, 5
SETTINGS = [
    *("env.backend=function", "env.task='walks:EndingWalk'", "env.episode_length=3"),
    *(f"env.num_envs={NUM_ENVS}", "train.seed_steps=20", "train.steps=34", f"seed={SEED}"),
    *("eval.interval=27", f"eval.episodes={EPISODES}", "planner.horizon=1"),
    *("multi_gamma.enabled=true", "multi_gamma.gammas=[primary,0.9]"),
]
SKIPPED = (7, 9, 25)  # updates


class Record:
    """Callback that keeps what was collected, and evaluates by itself."""

    def __init__(self, task):
        self.task = task
        self.dones, self.updates_by, self.evaluations = [], [], []

    def on_collect(self, trainer, data):
        self.dones.append(data["next", "done"].flatten().tolist())
        self.updates_by.append(trainer.counters.updates)

    def on_evaluation(self, trainer, row):
        self.evaluations.append((trainer.counters.agent_steps, *alone(self.task, trainer.planner)))


def alone(task, planner):
    """Returns and lengths of evaluation episodes, each environment stepped by hand."""
    seeds = np.random.SeedSequence(SEED + EVALUATION_SEED).generate_state(EPISODES).tolist()
    envs = [task.make(seed) for seed in seeds]
    states = [env.reset() for env in envs]
    mean = torch.zeros(EPISODES, planner.horizon, planner.action_dim)
    rewards = [[] for _ in envs]
    running = set(range(EPISODES))
    with torch.random.fork_rng([]), set_exploration_type(ExplorationType.DETERMINISTIC):
        torch.manual_seed(SEED + EVALUATION_SEED)
        while running:
            observation = torch.stack([state["observation"] for state in states])
            data = TensorDict(observation=observation, _previous_mean=mean, batch_size=EPISODES)
            plan = planner(data)
            mean = plan["next", "_previous_mean"]
            for index in tuple(running):
                following = envs[index].step(states[index].set("action", plan["action"][index]))
                states[index] = following["next"].exclude("reward")
                rewards[index].append(following["next", "reward"].item())
                if following["next", "done"].any():
                    running.remove(index)
    return [sum(one) for one in rewards], [len(one) for one in rewards]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder and trainer of a run, the metrics of its updates, and its Record."""
    folder = tmp_path_factory.mktemp("run")
    config, _ = settle(configure(f"output_dir={folder}", *SETTINGS))
    task = make_task(EndingWalk, name="walk", episode_length=3, action_repeat=ACTION_REPEAT)
    trainer, record = make_trainer(config, task), Record(task)
    trainer.callbacks.append(record)
    updates, nan_values = [], [0.0]
    update, plan = TDMPC2Update.__call__, TDMPC2Planner.forward

    def recorded_update(self, batch):
        metrics = update(self, batch)
        if len(updates) + 1 in SKIPPED:
            metrics["skipped_updates"] = torch.tensor(1.0)
            metrics["loss_actor"] = torch.tensor(torch.nan)
        updates.append({**metrics.clone(), "nan_values": torch.tensor(nan_values[-1])})
        return metrics

    def counting_plan(self, data, out=None):
        out = plan(self, data, out)
        if len(data) == NUM_ENVS:  # not in an evaluation
            counts = torch.arange(NUM_ENVS) + len(nan_values)
            out["nan_values"] = counts.to(out["nan_values"].dtype)
            nan_values.append(counts.float().mean().item())
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TDMPC2Update, "__call__", recorded_update)
        patch.setattr(TDMPC2Planner, "forward", counting_plan)
        trainer.train()
    assert len(updates) == 34
    return folder, trainer, updates, record


def test_every_column_of_train_csv(run):
    folder, trainer, updates, record = run
    transitions = trainer.replay.written(0)
    ends = transitions["next", "done"].flatten().nonzero().flatten().tolist()
    begins = [0, *(end + 1 for end in ends[:-1])]
    assert len({end - begin for begin, end in zip(begins, ends)}) > 1  # episodes of unequal length
    expected, counted = [], 0
    for vector_step, (dones, done_updates) in enumerate(
        zip(record.dones, record.updates_by, strict=True), 1
    ):
        since = updates[counted:done_updates]
        for _ in range(sum(dones)):
            # The replay's first transition of an episode holds nothing but its first observation
            begin, end = begins[len(expected)] + 1, ends[len(expected)] + 1
            rewards = transitions["next", "reward"][begin:end]
            row = {"episode": len(expected) + 1, "agent_steps": NUM_ENVS * vector_step}
            row |= {"step": ACTION_REPEAT * row["agent_steps"], "length": end - begin}
            row |= {"return": rewards.sum().item(), **averages(since)}
            expected.append(row)
        counted = done_updates if any(dones) else counted
    table = rows(folder / "train.csv")
    assert len(table) == len(expected) > 8
    assert any("loss_value" in row for row in expected)
    for found, row in zip(table, expected):
        assert found.keys() == {*trainer.record.train_columns}
        assert {name for name, cell in found.items() if cell} == {*row, *TIMES}
        numbers = {name: float(found[name]) for name in row}
        assert numbers == pytest.approx(row, rel=1e-5, abs=1e-6, nan_ok=True)


def averages(metrics):
    """Of the finite values of each metric; counts are added up, the largest stay."""
    if not metrics:
        return {}
    columns = {name: torch.stack([one[name] for one in metrics]).double() for name in metrics[0]}
    means = {name: column.nanmean().item() for name, column in columns.items()}
    means |= {name: columns[name].max().item() for name in ("largest_reward", "largest_td_target")}
    return means | {"skipped_updates": columns["skipped_updates"].sum().item()}


def test_every_column_of_eval_csv(run):
    folder, _, _, record = run
    table = rows(folder / "eval.csv")
    assert len(table) == len(record.evaluations) == 2
    assert len({*record.evaluations[-1][2]}) > 1
    for found, (agent_steps, returns, lengths) in zip(table, record.evaluations):
        row = {"agent_steps": agent_steps, "step": ACTION_REPEAT * agent_steps, "seed": SEED}
        row |= {"episodes": EPISODES, "length": np.mean(lengths)}
        row |= {"reward": np.mean(returns), "reward_std": np.std(returns)}
        assert {*found} == {*row, "seconds"} == {*EVAL_COLUMNS}
        assert {name: float(found[name]) for name in row} == pytest.approx(row, rel=1e-5)
