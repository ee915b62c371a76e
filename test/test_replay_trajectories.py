"""Whoever sends the steps, in whatever order: a slice is a piece of one trajectory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from test_replay import (
    CountingEnv,
    action_of,
    check_slices,
    episode_length,
    finished,
    unfinished,
)
from torchrl.collectors import Collector, MultiAsyncCollector, MultiSyncCollector
from torchrl.envs import SerialEnv

from torchrl_tdmpc.data import EpisodeReplay, ReplayError

HORIZON = 2


def step_of(trajectory: int, step: int, length: int) -> dict:
    """A step of which every number tells it apart, as plain numbers."""
    return {
        "observation": [100.0 * trajectory + step],
        "action": [(trajectory + step / 16) / 1024],
        "reward": [trajectory - step / 16],
        "success": [float(step % 3 == 0)],
        "done": [step + 1 == length],
        "id": trajectory,
    }


def as_data(rows: list[list[dict]], has_ids: bool = True) -> TensorDict:
    """``[rows, T]`` of steps in TorchRL's layout."""

    def column(name, **kwargs):
        return torch.tensor([[step[name] for step in row] for row in rows], **kwargs)

    observation = column("observation")
    data = TensorDict(
        {
            "observation": observation,
            "action": column("action"),
            "next": {
                "observation": observation + 1,
                "reward": column("reward"),
                "success": column("success"),
                "done": column("done"),
                "terminated": torch.zeros_like(column("done")),
            },
        },
        [len(rows), len(rows[0])],
    )
    if has_ids:
        data["collector", "traj_ids"] = column("id")
    return data


@st.composite
def deliveries(draw):
    """Blocks ``[environments, T]`` of workers, one worker at a time, in any order.

    Each worker steps its environments together; ids are given out as trajectories begin, to all
    workers from one pool.
    """
    num_workers, num_envs = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    lengths: list[int] = []

    def begin() -> tuple[int, int]:
        lengths.append(draw(st.integers(1, 6)))
        return len(lengths) - 1, 0

    now = [[begin() for _ in range(num_envs)] for _ in range(num_workers)]
    blocks = []
    for _ in range(draw(st.integers(1, 12))):
        envs = now[draw(st.integers(0, num_workers - 1))]
        rows: list[list[dict]] = [[] for _ in envs]
        for _ in range(draw(st.integers(1, 7))):
            for env, (trajectory, step) in enumerate(envs):
                length = lengths[trajectory]
                rows[env].append(step_of(trajectory, step, length))
                envs[env] = (trajectory, step + 1) if step + 1 < length else begin()
        blocks.append(rows)
    return blocks


class Model:
    """What a replay without a limit holds: lists of finished trajectories."""

    def __init__(self):
        self.steps: dict = {}
        self.finished: list[list[dict]] = []

    def add(self, step: dict, source=0) -> None:
        key = source, step["id"]
        self.steps.setdefault(key, []).append(step)
        if step["done"][0]:
            self.finished.append(self.steps.pop(key))

    def windows(self) -> set:
        """Every slice that can be drawn: its observations, and the last one's flag."""
        return {
            tuple(step["observation"][0] for step in trajectory[first : first + HORIZON])
            for trajectory in self.finished
            for first in range(len(trajectory) - HORIZON + 1)
        }


def check(replay: EpisodeReplay, model: Model) -> None:
    """The replay draws what the model has, all of it and nothing else."""
    torch.manual_seed(0)
    windows = model.windows()
    assert replay.num_pending == sum(map(len, model.steps.values()))
    if not windows:
        return
    truth = {step["observation"][0]: step for trajectory in model.finished for step in trajectory}
    seen = set()
    for _ in range(2):
        batch = replay.sample()
        observation = batch["observation"]
        steps = [[truth[value] for value in row] for row in observation.squeeze(-1).tolist()]
        expected = as_data(steps).exclude("collector")
        assert (batch == expected).all(), (batch.to_dict(), expected.to_dict())
        assert set(batch.keys(True, True)) == set(expected.keys(True, True))
        seen |= {tuple(row) for row in observation.squeeze(-1).tolist()}
    assert seen <= windows
    if len(windows) < 12:
        assert seen == windows


def make(**kwargs) -> EpisodeReplay:
    arguments = {"capacity": 2000, "horizon": HORIZON, "batch_size": 256}
    return EpisodeReplay(**arguments | {"extra_keys": [("next", "success")]} | kwargs)


@settings(deadline=None, max_examples=40)
@given(deliveries())
def test_workers_in_any_order(blocks):
    replay, model = make(), Model()
    for rows in blocks:
        for row in rows:  # the order of writing does not matter to the model
            for step in row:
                model.add(step)
        replay.extend(as_data(rows))
        check(replay, model)
    assert replay.num_steps == sum(len(rows) * len(rows[0]) for rows in blocks)


@settings(deadline=None, max_examples=40)
@given(deliveries(), st.randoms(use_true_random=False), st.integers(1, 5))
def test_steps_of_several_trajectories_in_one_row(blocks, random, size):
    """The steps of all trajectories shuffled together, each trajectory's in its order."""
    by_trajectory: dict[int, list[dict]] = {}
    for step in (step for rows in blocks for row in rows for step in row):
        by_trajectory.setdefault(step["id"], []).append(step)
    turns = [trajectory for trajectory, steps in by_trajectory.items() for _ in steps]
    random.shuffle(turns)
    flat = [by_trajectory[trajectory].pop(0) for trajectory in turns]
    replay, model = make(), Model()
    for begin in range(0, len(flat), size):
        piece = flat[begin : begin + size]
        for step in piece:
            model.add(step)
        replay.extend(as_data([piece])[0])
        check(replay, model)


@settings(deadline=None, max_examples=40)
@given(deliveries(), deliveries(), st.randoms(use_true_random=False))
def test_two_sources_with_the_same_ids(first, second, random):
    replay, model = make(), Model()
    queues = {"here": list(first), "there": list(second)}
    for rows in queues["there"]:
        for row in rows:
            for step in row:
                step["observation"][0] += 50_000
    turns = [source for source, blocks in queues.items() for _ in blocks]
    random.shuffle(turns)
    for source in turns:
        rows = queues[source].pop(0)
        for row in rows:
            for step in row:
                model.add(step, source)
        replay.extend(as_data(rows), source=source)
        check(replay, model)


@settings(deadline=None, max_examples=40)
@given(deliveries(), st.data())
def test_a_missing_step_is_refused_and_nothing_is_kept(blocks, data):
    """A block that continues a trajectory, without the step that comes next in it."""
    replay, model = make(), Model()
    for rows in blocks[:-1]:
        replay.extend(as_data(rows))
        for step in (step for row in rows for step in row):
            model.add(step)
    columns = list(zip(*blocks[-1], strict=True))
    missing = data.draw(st.integers(0, len(columns) - 1))
    kept = columns[:missing] + columns[missing + 1 :]
    if not kept:
        return
    rows = [list(row) for row in zip(*kept, strict=True)]
    known = {trajectory for _, trajectory in model.steps}
    known |= {step["id"] for column in columns[:missing] for step in column}
    gap = any(
        step["id"] in known
        and not step["done"][0]
        and any(other["id"] == step["id"] for column in columns[missing + 1 :] for other in column)
        for step in columns[missing]
    )
    before = contents(replay)
    if gap:
        with pytest.raises(ReplayError, match="'observation' is not what its last step led to"):
            replay.extend(as_data(rows))
        assert contents(replay) == before
        check(replay, model)
        for step in (step for row in blocks[-1] for step in row):
            model.add(step)
        replay.extend(as_data(blocks[-1]))
        check(replay, model)


def contents(replay: EpisodeReplay) -> str:
    state = replay.state_dict()
    return str(state | {"open": sorted(state["open"], key=lambda entry: entry[1])})


def steps_of(*, trajectory: int, steps: range, length: int = 9) -> list[dict]:
    return [step_of(trajectory, step, length) for step in steps]


def test_a_second_collector_is_refused_without_a_source():
    replay = make()
    replay.extend(as_data([steps_of(trajectory=0, steps=range(3))]))
    second = as_data([steps_of(trajectory=0, steps=range(2))])
    message = "Trajectory 0 of source 0 does not go on where it was"
    with pytest.raises(ReplayError, match=message):
        replay.extend(second)
    assert (replay.num_steps, replay.num_pending) == (3, 3)
    replay.extend(second, source="second")
    assert (replay.num_steps, replay.num_pending) == (5, 5)


def test_a_new_collector_after_truncate_continues_nothing():
    replay = make()
    replay.extend(as_data([steps_of(trajectory=0, steps=range(3))]))
    assert replay.truncate() == 1
    # What would have been the next step of it
    replay.extend(as_data([steps_of(trajectory=0, steps=range(3, 9))]))
    assert replay.num_transitions == (3 + 1) + (6 + 1)
    observations = {tuple(row) for row in replay.sample()["observation"].squeeze(-1).tolist()}
    assert (2, 3) not in observations
    assert observations == {(n, n + 1) for n in (0, 1, 3, 4, 5, 6, 7)}


def test_an_id_that_comes_again_after_its_end_is_another_trajectory():
    replay = make()
    replay.extend(as_data([steps_of(trajectory=0, steps=range(3), length=3)]))
    replay.extend(as_data([steps_of(trajectory=0, steps=range(3), length=3)]))
    assert replay.num_transitions == 2 * (3 + 1) and replay.num_pending == 0


@pytest.mark.parametrize("batch", [(6,), (1, 6), (2, 3, 6), (1, 2, 1, 6)])
@pytest.mark.parametrize("has_ids", [True, False])
def test_data_of_any_batch_shape(batch, has_ids):
    num_rows = torch.Size(batch[:-1]).numel()
    rows = [steps_of(trajectory=n, steps=range(6), length=6) for n in range(num_rows)]
    replay = make()
    data = as_data(rows, has_ids).reshape(batch)
    for piece in data.split(4, -1):
        replay.extend(piece)
    assert replay.num_transitions == num_rows * 7
    model = Model()
    for step in (step for row in rows for step in row):
        model.add(step)
    check(replay, model)


def test_several_episodes_in_a_row_without_ids():
    rows = [
        [
            *steps_of(trajectory=n, steps=range(4), length=4),
            *steps_of(trajectory=n + 2, steps=range(6)),
        ]
        for n in range(2)
    ]
    replay, model = make(), Model()
    for piece in as_data(rows, has_ids=False).split(3, 1):
        replay.extend(piece)
    for step in (step for row in rows for step in row):
        model.add(step)
    assert replay.num_pending == 12
    check(replay, model)


def test_padding_is_left_out():
    steps = steps_of(trajectory=0, steps=range(5), length=5)
    data = as_data([steps, steps])
    data["collector", "traj_ids"][0, 3:] = -1  # a worker that was stopped early
    data["collector", "traj_ids"][1] = 1
    data["observation"][0, 3:] = torch.nan
    data["collector", "mask"] = torch.ones(2, 5, dtype=torch.bool)
    data["collector", "mask"][1, 2:] = False
    replay = make()
    assert replay.extend(data) == 0
    assert (replay.num_steps, replay.num_pending) == (5, 5)
    assert replay.extend(data[:1, 3:].apply(lambda value: value)) == 0
    assert replay.num_steps == 5


def test_extra_entries_are_stored_at_the_root_and_under_next():
    replay = make(extra_keys=["plan", ("next", "info", "success")])
    data = finished(6)
    data["plan"] = torch.arange(6).reshape(1, 6)
    data["next", "info", "success"] = torch.arange(6.0).reshape(1, 6, 1) / 7
    data["next", "info", "success"][0, 4] = torch.nan  # said by none of the losses to be a number
    replay.extend(data[:, :2])
    replay.extend(data[:, 2:])
    batch = replay.sample()
    assert batch["plan"].dtype == torch.int64
    assert set(batch["plan"].flatten().tolist()) == set(range(6))
    expected = data["next", "info", "success"][0][batch["plan"]]
    torch.testing.assert_close(
        batch["next", "info", "success"], expected, rtol=0, atol=0, equal_nan=True
    )


def test_an_extra_entry_that_is_kept_anyway_is_refused():
    with pytest.raises(ValueError, match=r"extra_keys \[.*\] name \('next', 'reward'\) again"):
        make(extra_keys=[("next", "reward")])


def test_a_changed_number_of_rows_is_taken_when_no_episode_is_open():
    replay = make(extra_keys=[])
    replay.extend(finished(3))
    replay.extend(unfinished(2, 3))
    replay.truncate()
    replay.extend(unfinished(3, 3))
    assert replay.num_pending == 9


class Worker:
    """Makes environments that know their number, in a worker's process too."""

    def __init__(self, *env_ids: int):
        self.env_ids = env_ids

    def __call__(self) -> SerialEnv:
        return SerialEnv(
            len(self.env_ids),
            CountingEnv,
            create_env_kwargs=[{"env_id": env_id} for env_id in self.env_ids],
        )


class Act(torch.nn.Module):
    def forward(self, tensordict):
        return tensordict.set("action", action_of(tensordict["observation"]))


@pytest.mark.parametrize("kind", [MultiAsyncCollector, MultiSyncCollector])
def test_collectors_in_several_processes(kind):
    torch.manual_seed(0)
    frames = 14 if kind is MultiAsyncCollector else 28
    stacked = {} if kind is MultiAsyncCollector else {"cat_results": "stack"}
    collector = kind(
        [Worker(0, 1), Worker(2, 3)], Act(), frames_per_batch=frames, total_frames=420, **stacked
    )
    replay = EpisodeReplay(capacity=1000, horizon=3, batch_size=256)
    finished, last = 0, {}
    try:
        for data in collector:
            finished += replay.extend(data)
            for env, episode, step in data["next", "observation"].flatten(0, -2).int().tolist():
                last[env] = (episode, step)
    finally:
        collector.shutdown()
    # Nothing is lost or doubled: what ended is counted, what did not is pending
    lengths = {env: [episode_length(env, k) for k in range(e)] for env, (e, _) in last.items()}
    open_steps = {env: s for env, (e, s) in last.items() if s < episode_length(env, e)}
    ended = {env: 1 for env in last if env not in open_steps}
    assert set(last) == {0, 1, 2, 3}
    assert finished == sum(map(len, lengths.values())) + len(ended)
    assert replay.num_pending == sum(open_steps.values())
    starts = set().union(*(check_slices(replay.sample(), 3) for _ in range(20)))
    assert {env for env, *_ in starts} == {0, 1, 2, 3}


def two_collectors():
    """Two of them, of different environments, whose ids both begin at 0; one batch each in turn."""
    collectors = [
        Collector(
            Worker(*ids),
            Act(),
            frames_per_batch=10,
            total_frames=200,
            auto_register_policy_transforms=False,
        )
        for ids in ((0, 1), (2, 3))
    ]
    for pair in zip(*collectors, strict=True):
        yield from enumerate(pair)
    for collector in collectors:
        collector.shutdown()


def test_two_collectors_fill_one_replay():
    torch.manual_seed(0)
    replay = EpisodeReplay(capacity=1000, horizon=3, batch_size=256)
    for source, data in two_collectors():
        replay.extend(data, source=source)
    assert replay.num_steps == 400
    starts = set().union(*(check_slices(replay.sample(), 3) for _ in range(20)))
    assert {env for env, *_ in starts} == {0, 1, 2, 3}


def test_two_collectors_without_sources_are_refused():
    replay = EpisodeReplay(capacity=1000, horizon=3, batch_size=256)
    with pytest.raises(ReplayError, match="give each collector a source of its own"):
        for _, data in two_collectors():
            replay.extend(data)
