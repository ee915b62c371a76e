"""Whatever the episodes, environments and wrap-arounds: a slice is a true piece of one episode."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from torchrl_tdmpc.data import EpisodeReplay


def frame(env: int, episode: int, step: int, shape: tuple[int, int]) -> torch.Tensor:
    """A frame [channels, 2, width] of uint8 that tells every (environment, episode, step) apart."""
    channels, width = shape
    numbers = torch.tensor([[16 * env + episode % 16], [step]], dtype=torch.uint8)
    return numbers.expand(channels, 2, width)


def stack(env: int, episode: int, step: int, num_frames: int, shape) -> torch.Tensor:
    """Newest last; before the first frame of an episode there is that frame again."""
    steps = range(step - num_frames + 1, step + 1)
    return torch.cat([frame(env, episode, max(s, 0), shape) for s in steps])


def vector(env: int, episode: int, step: int) -> torch.Tensor:
    return torch.tensor([env, episode, step], dtype=torch.float32)


def transition(observe, env: int, episode: int, step: int, is_last: bool) -> TensorDict:
    terminated = is_last and bool(episode % 2)
    return TensorDict(
        {
            "observation": observe(env, episode, step),
            "action": (vector(env, episode, step) + 0.25) / 1024,
            "next": {
                "observation": observe(env, episode, step + 1),
                "reward": vector(env, episode, step).sum(-1, keepdim=True) - 0.5,
                "terminated": torch.tensor([terminated]),
                "done": torch.tensor([is_last]),
            },
        }
    )


@st.composite
def runs(draw):
    """Episode lengths of each environment, and how the steps come in."""
    num_envs = draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(1, 9), min_size=3, max_size=8))
    return {
        "num_envs": num_envs,
        "lengths": lengths,
        "horizon": draw(st.integers(1, 3)),
        "spare": draw(st.integers(0, 20)),  # transitions beyond the least that a slice takes
        "steps_per_batch": draw(st.integers(1, 5)),
    }


def check_run(run, observe, num_frames: int, **arguments) -> None:
    horizon, num_envs = run["horizon"], run["num_envs"]
    capacity = horizon + num_frames + run["spare"]
    replay = EpisodeReplay(capacity=capacity, horizon=horizon, batch_size=8, **arguments)
    ring = deque(maxlen=capacity)  # of transitions: an environment's episode and step

    episodes = [(0, 0)] * num_envs  # where each environment is
    num_steps = sum(run["lengths"])
    for _ in range(-(-num_steps // run["steps_per_batch"])):
        columns = []
        for env in range(num_envs):
            episode, step = episodes[env]
            column = []
            for _ in range(run["steps_per_batch"]):
                length = run["lengths"][(episode + env) % len(run["lengths"])]
                is_last = step + 1 == length
                column.append(transition(observe, env, episode, step, is_last))
                if is_last and length >= horizon:
                    ring.extend((env, episode, s) for s in range(-num_frames, length))
                episode, step = (episode + 1, 0) if is_last else (episode, step + 1)
            episodes[env] = episode, step
            columns.append(torch.stack(column))
        replay.extend(torch.stack(columns))
        assert replay.num_transitions == len(ring)
        if len(ring) >= horizon + num_frames:
            check_batch(replay.sample(), set(ring), observe, num_frames, run)


def check_batch(batch, ring, observe, num_frames: int, run) -> None:
    assert batch.shape == (8, run["horizon"])
    for piece in batch.unbind(0):
        env, episode, step = (piece["action"][0] * 1024 - 0.25).int().tolist()
        length = run["lengths"][(episode + env) % len(run["lengths"])]
        assert step + run["horizon"] <= length
        expected = torch.stack(
            [
                transition(observe, env, episode, s, s + 1 == length)
                for s in range(step, step + run["horizon"])
            ]
        )
        assert (piece == expected).all(), (piece.to_dict(), expected.to_dict())
        # Every transition that it was made from is still in the ring
        first = step - num_frames
        assert all((env, episode, s) in ring for s in range(first, step + run["horizon"]))


@settings(deadline=None, max_examples=20)
@given(runs())
def test_a_slice_is_a_piece_of_one_episode(run):
    check_run(run, vector, 1)


@settings(deadline=None, max_examples=20)
@given(runs(), st.integers(1, 4), st.tuples(st.integers(1, 3), st.sampled_from([2, 8])))
def test_a_slice_of_frames_is_a_piece_of_one_episode(run, num_frames, shape):
    def observe(env, episode, step):
        return stack(env, episode, step, num_frames, shape)

    check_run(run, observe, num_frames, frame_channels=shape[0])


def stacks_of(num_steps: int, *, size: int = 64) -> TensorDict:
    """One episode of RGB images in stacks of three, ``[1, num_steps]``."""
    frames = torch.randint(256, (num_steps + 1, 3, size, size), dtype=torch.uint8)
    frames = torch.cat([frames[:1], frames[:1], frames])
    stacks = torch.cat([frames[:-2], frames[1:-1], frames[2:]], 1)
    done = torch.zeros(num_steps, 1, dtype=torch.bool)
    done[-1] = True
    return TensorDict(
        {
            "observation": stacks[:-1],
            "action": torch.zeros(num_steps, 6),
            "next": {
                "observation": stacks[1:],
                "reward": torch.arange(num_steps).float().unsqueeze(-1),
                "terminated": torch.zeros_like(done),
                "done": done,
            },
        },
        [num_steps],
    ).unsqueeze(0)


def test_frames_take_13_kilobytes_a_decision():
    replay = EpisodeReplay(capacity=3000, horizon=3, batch_size=8, frame_channels=3)
    episodes = [stacks_of(500) for _ in range(3)]
    for episode in episodes:
        replay.extend(episode)
    stored = replay._buffer[:]
    num_bytes = sum(value.nbytes for value in stored.values(True, True))
    assert 3 * 64 * 64 <= num_bytes / 1500 <= 13_000
    batch = replay.sample()
    step = int(batch[0, 0]["next", "reward"])
    truth = [episode[0, step : step + 3] for episode in episodes]
    assert sum(bool((batch[0] == piece).all()) for piece in truth) == 1
    assert batch["observation"].dtype == torch.uint8


def test_what_is_no_stack_is_refused():
    episode = stacks_of(5, size=4)
    replay = EpisodeReplay(capacity=20, horizon=3, batch_size=2, frame_channels=4)
    with pytest.raises(ValueError, match=r"\[9, 4, 4\].*a multiple of 4"):
        replay.extend(episode)
    replay = EpisodeReplay(capacity=20, horizon=3, batch_size=2, frame_channels=3)
    backwards = episode.clone()
    backwards["next", "observation"] = backwards["next", "observation"].flip(2)
    with pytest.raises(ValueError, match="is not a stack of frames of 3 channels, newest last"):
        replay.extend(backwards)
    assert replay.num_steps == 0
    replay = EpisodeReplay(capacity=5, horizon=3, batch_size=2, frame_channels=3)
    with pytest.raises(ValueError, match="cannot hold a slice of 3 steps; choose at least 6"):
        replay.extend(episode)
    with pytest.raises(ValueError, match="frame_channels 0"):
        EpisodeReplay(capacity=5, horizon=3, batch_size=2, frame_channels=0)
