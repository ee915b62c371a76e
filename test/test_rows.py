"""The rows of a run: columns, averages, times."""

from __future__ import annotations

import math
import time
import warnings

import pytest
import torch
from tensordict import TensorDict

from torchrl_tdmpc import SymlogTwoHot
from torchrl_tdmpc.recording import RunRecord
from torchrl_tdmpc.recording.rows import EVAL_COLUMNS


def metrics(**values: float) -> TensorDict:
    return TensorDict({name: torch.tensor(value) for name, value in values.items()})


def test_train_rows_hold_averages_since_the_last_row():
    record = RunRecord(metrics=["loss_value", "entropy"])
    first = record.episodes(step=1000, agent_steps=500, returns=[1 / 3], lengths=[500])  # warm-up
    record.update(metrics(loss_value=1.0, entropy=-2.0))
    record.update(metrics(loss_value=2.0))
    assert record.episodes(step=1500, agent_steps=750, returns=[], lengths=[]) == []
    record.update(metrics(loss_value=6.0, entropy=-3.0))
    returns = torch.tensor([5.0, 7.0])
    both = record.episodes(step=2000, agent_steps=1000, returns=returns, lengths=[250, 240])
    last = record.episodes(step=3000, agent_steps=1500, returns=[9.0], lengths=[500])

    rows = [*first, *both, *last]
    assert record.train_columns == (
        *("step", "agent_steps", "episode", "return", "length"),
        *("loss_value", "entropy"),
        *("ms_per_step", "peak_memory_mib", "seconds"),
    )
    assert [row["episode"] for row in rows] == [1, 2, 3, 4]
    assert [row["step"] for row in rows] == [1000, 2000, 2000, 3000]
    assert [row["agent_steps"] for row in rows] == [500, 1000, 1000, 1500]
    assert [row["return"] for row in rows] == [1 / 3, 5.0, 7.0, 9.0]
    assert [row["length"] for row in rows] == [500, 250, 240, 500]
    assert [row.get("loss_value") for row in rows] == [None, 3.0, 3.0, None]
    assert [row.get("entropy") for row in rows] == [None, -2.5, -2.5, None]
    assert all(row["peak_memory_mib"] > 50 for row in rows)
    assert all(set(row) <= set(record.train_columns) for row in rows)


def test_metrics_are_not_aliased_and_keep_nan():
    record = RunRecord(metrics=["loss_value", "grad_norm_model"])
    buffer = metrics(loss_value=1.0, grad_norm_model=math.nan)  # a graph reuses its output
    record.update(buffer)
    buffer["loss_value"].fill_(3.0)
    record.update(buffer)
    (row,) = record.episodes(step=2, agent_steps=1, returns=[0.0], lengths=[1])
    assert row["loss_value"] == 2.0 and math.isnan(row["grad_norm_model"])


def test_metrics_in_half_precision_are_averaged_in_full():
    record = RunRecord(metrics=["loss_value"])
    for _ in range(1000):  # a bfloat16 sum of ones stops at 256
        record.update(TensorDict(loss_value=torch.ones((), dtype=torch.bfloat16)))
    assert (
        record.episodes(step=2, agent_steps=1, returns=[0.0], lengths=[1])[0]["loss_value"] == 1.0
    )


def test_metrics_must_be_declared_scalars():
    record = RunRecord(metrics=["loss_value"])
    with pytest.raises(ValueError, match=r"'loss_extra' has no column; .* out_keys of its loss"):
        record.update(metrics(loss_extra=1.0))
    with pytest.raises(ValueError, match=r"'loss_value' has shape \[2\]"):
        record.update(TensorDict(loss_value=torch.zeros(2)))
    with pytest.raises(ValueError, match=r"\['return'\] are named like other columns"):
        RunRecord(metrics=["loss_value", "return"])


def test_evaluation_rows():
    record = RunRecord(seed=7)
    first, last = (
        record.evaluation(step=2 * n, agent_steps=n, returns=returns, lengths=lengths)
        for n, returns, lengths in (
            (1000, [10.0, 20.0, 40.0], [500, 500, 200]),
            (2000, [3.0], [500]),
        )
    )
    assert tuple(first) == tuple(last) == EVAL_COLUMNS
    assert EVAL_COLUMNS[:3] == ("step", "reward", "seed")
    assert (first["step"], first["agent_steps"], first["seed"]) == (2000, 1000, 7)
    assert first["reward"] == pytest.approx(70 / 3, rel=1e-12)
    assert first["reward_std"] == pytest.approx(math.sqrt(1400 / 9), rel=1e-12)
    assert (first["episodes"], first["length"]) == (3, 400.0)
    assert (last["reward"], last["reward_std"]) == (3.0, 0.0)


def test_milliseconds_per_step_leave_pauses_out(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    record = RunRecord()
    now += 2.0
    first = record.episodes(step=1000, agent_steps=500, returns=[0.0], lengths=[500])[0]
    now += 3.0
    with record.pause():
        now += 50.0
    last = record.episodes(step=1500, agent_steps=750, returns=[0.0], lengths=[250])[0]
    assert (first["ms_per_step"], first["seconds"]) == (2.0, 2.0)
    assert (last["ms_per_step"], last["seconds"]) == (6.0, 55.0)


def test_the_clock_of_a_resumed_run_goes_on_where_it_stood(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    record = RunRecord()
    now += 2.0
    with record.pause():
        now += 50.0
    record.episodes(step=1000, agent_steps=500, returns=[0.0], lengths=[500])
    state = record.state_dict()
    now = 900.0
    record = RunRecord()
    record.load_state_dict(state)
    now += 3.0
    row = record.episodes(step=1500, agent_steps=750, returns=[0.0], lengths=[250])[0]
    assert (row["ms_per_step"], row["seconds"]) == (6.0, 55.0)


def test_averages_and_episodes_go_on_in_another_record():
    record, other = (RunRecord(["loss_value"]) for _ in range(2))
    record.episodes(step=2, agent_steps=1, returns=[0.0], lengths=[1])
    record.update(metrics(loss_value=1.0))
    other.load_state_dict(record.state_dict())
    other.update(metrics(loss_value=4.0))
    (row,) = other.episodes(step=4, agent_steps=2, returns=[0.0], lengths=[1])
    assert (row["episode"], row["loss_value"]) == (2, 2.5)


def clipped(share: float, largest: float) -> TensorDict:
    return metrics(
        clipped_reward=share,
        largest_reward=largest,
        clipped_td_target=0.0,
        largest_td_target=largest,
    )


def test_a_row_has_the_largest_magnitude_and_warns_once_of_clipping():
    bins = {"reward": SymlogTwoHot(101, -5, 10), "td_target": SymlogTwoHot()}
    record = RunRecord(clipped(0.0, 0.0).keys(), bins=bins)
    row = {"step": 10, "agent_steps": 5, "returns": [1.0], "lengths": [5]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record.episodes(**row)  # warm-up
        record.update(clipped(0.0, 20.0))
        assert record.episodes(**row)[0]["largest_reward"] == 20.0
    record.update(clipped(0.5, 1.6e6))
    record.update(clipped(0.0, 3.0))
    message = (
        r"rewards reach 1\.6e\+06 in magnitude, but the bins end at -147\.4 and 2\.203e\+04 and "
        r"code what lies beyond as their end: set vmin to -15 and vmax to 15, or scale the rewards"
    )
    with pytest.warns(UserWarning, match=message) as warned:
        first = record.episodes(**row)[0]
        record.update(clipped(0.25, 7.0))
        second = record.episodes(**row)[0]
    assert len(warned) == 1
    assert (first["clipped_reward"], first["largest_reward"]) == (0.25, pytest.approx(1.6e6))
    assert (second["clipped_reward"], second["largest_reward"]) == (0.25, 7.0)
    assert math.log1p(1.6e6) < 15 and bins["reward"].share_beyond(torch.tensor([1.6e6, 1.0])) == 0.5
