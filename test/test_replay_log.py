"""The replay on disk: the same ring, wherever the process died."""

from __future__ import annotations

import pytest
import torch
from test_replay import finished, unfinished
from test_replay_properties import stacks_of
from tiny import seeded
from torchrl.checkpoint import CheckpointError

from torchrl_tdmpc.checkpoints import ReplayLog
from torchrl_tdmpc.data import EpisodeReplay


def make(capacity=17, **kwargs):
    return EpisodeReplay(capacity=capacity, horizon=3, batch_size=32, **kwargs)


def numbered(length: int, number: int):
    """An episode of which every number tells it apart."""
    return finished(length, observation=torch.arange(length * 3.0).reshape(1, -1, 3) + 100 * number)


def restored(log, state, **kwargs):
    replay = make(**kwargs)
    ReplayLog(replay, log.directory).load_state_dict(state)
    return replay


def assert_same(ours, theirs):
    """The same ring, transition for transition; the same draws, now and after another episode."""
    assert ours.num_written == theirs.num_written
    assert (ours._buffer[:] == theirs._buffer[:]).all()
    for number in (77, 78):
        assert (seeded(ours.sample) == seeded(theirs.sample)).all()
        ours.extend(numbered(7, number))
        theirs.extend(numbered(7, number))
        assert (ours._buffer[:] == theirs._buffer[:]).all()


@pytest.mark.parametrize("episodes", [1, 2, 3, 5, 9])
def test_the_ring_comes_back_transition_for_transition(tmp_path, episodes):
    replay = make()
    log = ReplayLog(replay, tmp_path)
    for number in range(episodes):
        replay.extend(numbered(4 + number % 5, number))
        if number % 2 == 0:
            log.append()
    log.append()
    assert_same(restored(log, log.state_dict()), replay)


def test_a_replay_without_transitions_comes_back(tmp_path):
    replay = make()
    log = ReplayLog(replay, tmp_path)
    log.append()
    copy = restored(log, log.state_dict())
    assert (copy.num_written, copy.num_transitions, log.segments) == (0, 0, [])
    for number in range(4):  # past the capacity
        copy.extend(numbered(7, number))
        replay.extend(numbered(7, number))
    assert_same(copy, replay)


def test_what_is_written_after_a_checkpoint_takes_nothing_from_it(tmp_path):
    replay = make()
    log = ReplayLog(replay, tmp_path)
    for number in range(4):
        replay.extend(numbered(6, number))
        log.append()
    state = log.state_dict()
    expected = restored(log, state)
    for number in range(4, 9):  # the ring is overwritten, and saved without a new checkpoint
        replay.extend(numbered(6, number))
        log.append()
    assert_same(restored(log, state), expected)


def test_files_that_no_checkpoint_needs_are_removed(tmp_path):
    replay = make()
    log = ReplayLog(replay, tmp_path)
    for number in range(6):
        replay.extend(numbered(6, number))
        log.append()
        log.prune([segment.name for segment in log.segments])
    # 42 transitions written; the 17 newest are 25 to 42, in the files that begin at 21, 28 and 35
    assert [s.begin for s in log.segments] == [21, 28, 35]
    assert sorted(path.name for path in tmp_path.iterdir()) == [s.name for s in log.segments]
    assert_same(restored(log, log.state_dict()), replay)


def test_more_than_the_ring_between_two_checkpoints(tmp_path):
    replay = make()
    log = ReplayLog(replay, tmp_path)
    replay.extend(numbered(5, 0))
    log.append()
    for number in range(1, 6):
        replay.extend(numbered(8, number))
    log.append()
    assert [(s.begin, s.end) for s in log.segments] == [(51 - 17, 51)]
    assert_same(restored(log, log.state_dict()), replay)


def test_unfinished_episodes_and_counters_come_back(tmp_path):
    replay = make(capacity=40)
    log = ReplayLog(replay, tmp_path)
    replay.extend(numbered(2, 0))  # too short
    replay.extend(numbered(5, 1))
    replay.extend(unfinished(1, 2))
    replay.extend(unfinished(1, 2))
    log.append()
    copy = restored(log, log.state_dict(), capacity=40)
    for name in ("num_steps", "num_short_episodes", "num_pending", "num_transitions"):
        assert getattr(copy, name) == getattr(replay, name), name
    assert copy.num_pending == 4
    copy.extend(finished(1))
    replay.extend(finished(1))
    assert (copy._buffer[:] == replay._buffer[:]).all() and copy.num_transitions == 6 + 6


def test_truncating_ends_every_open_episode():
    replay = make(capacity=40)
    replay.extend(unfinished(2, 4))
    assert replay.truncate() == 2 and replay.num_pending == 0
    done = replay.written(0)["next", "done"].flatten()
    assert done.nonzero().flatten().tolist() == [4, 9]
    assert not replay.written(0)["next", "terminated"].any()
    assert replay.truncate() == 0


def test_transitions_that_were_overwritten_are_refused():
    replay = make(capacity=7)
    for number in range(3):
        replay.extend(numbered(6, number))
    assert len(replay.written(14)) == 7
    for number in (0, 13):
        with pytest.raises(ValueError, match=f"Transition number {number} is not in storage"):
            replay.written(number)


def test_a_larger_ring_that_takes_up_an_unwrapped_one_draws_the_same(tmp_path):
    replay = make(capacity=40)
    log = ReplayLog(replay, tmp_path)
    for number in range(4):
        replay.extend(numbered(6, number))
        log.append()
    replay.extend(unfinished(1, 2))
    longer = restored(log, log.state_dict(), capacity=60)
    torch.testing.assert_close(longer.written(0), replay.written(0), rtol=0, atol=0)
    assert longer.num_pending == 2
    assert (seeded(longer.sample) == seeded(replay.sample)).all()


@pytest.mark.parametrize(("before", "after"), [(17, 40), (17, 18), (40, 17), (23, 11)])
def test_a_ring_of_another_size_takes_up_the_newest(tmp_path, before, after):
    replay = make(capacity=before)
    log = ReplayLog(replay, tmp_path)
    written = []
    for number in range(8):
        replay.extend(numbered(6, number))
        log.append()
        written += list(replay.written(7 * number).unbind(0))
    for number in range(8, 11):
        state = log.state_dict()
        replay = make(capacity=after)
        log = ReplayLog(replay, tmp_path)
        log.load_state_dict(state)
        held = min(after, before + 7 * (number - 8), 7 * number)
        assert replay.num_transitions == held and replay.num_written == 7 * number
        expected = torch.stack(written[-held:])
        torch.testing.assert_close(replay.written(7 * number - held), expected, rtol=0, atol=0)
        batch = seeded(replay.sample)
        assert (batch["observation"] + 3 == batch["next", "observation"])[:, :-1].all()
        replay.extend(numbered(6, number))
        log.append()
        written += list(replay.written(7 * number).unbind(0))


def test_frames_come_back(tmp_path):
    replay = make(capacity=40, frame_channels=3)
    log = ReplayLog(replay, tmp_path)
    for _ in range(4):
        replay.extend(stacks_of(11, size=8))
        log.append()
    last = stacks_of(9, size=8)
    replay.extend(last[:, :4])
    copy = restored(log, log.state_dict(), capacity=40, frame_channels=3)
    for both in (copy, replay):
        both.extend(last[:, 4:])
    assert (copy._buffer[:] == replay._buffer[:]).all()
    assert (seeded(copy.sample) == seeded(replay.sample)).all()


def test_a_failed_write_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    replay = make()
    log = ReplayLog(replay, tmp_path)
    replay.extend(numbered(6, 0))
    log.append()
    before = log.state_dict()
    replay.extend(numbered(6, 1))

    def full(*args, **kwargs):
        raise RuntimeError("unexpected pos 704 vs 662")  # PyTorch's words for a full disk

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="cannot be written"):
            log.append()
    assert log.state_dict()["segments"] == before["segments"]
    log.append()
    assert_same(restored(log, log.state_dict()), replay)


def test_files_that_are_not_what_they_were_are_refused(tmp_path):
    replay = make()
    log = ReplayLog(replay, tmp_path)
    replay.extend(numbered(6, 0))
    log.append()
    state = log.state_dict()
    path = tmp_path / log.segments[0].name
    content = path.read_bytes()
    for damaged in (content[:-1], content[:50] + b"?" + content[51:]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is truncated or altered"):
            restored(log, state)
    path.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        restored(log, state)
    with pytest.raises(ValueError, match="do not cover"):
        restored(log, {**state, "segments": []})


def test_files_that_begin_too_late_are_refused(tmp_path):
    replay = make()
    log = ReplayLog(replay, tmp_path)
    for number in range(2):
        replay.extend(numbered(6, number))
        log.append()
    state = log.state_dict()
    with pytest.raises(ValueError, match=r"Transitions 7 to 14 do not .*, 0 to 14"):
        restored(log, {**state, "segments": state["segments"][1:]})
