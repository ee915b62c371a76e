from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from torchrl.collectors import Collector
from torchrl.data import (
    Bounded,
    Composite,
    LazyTensorStorage,
    SliceSampler,
    TensorDictReplayBuffer,
    Unbounded,
)
from torchrl.envs import EnvBase, SerialEnv
from torchrl.modules import TdMpc2Planner
from torchrl.objectives import TdMpc2Loss
from torchrl.trainers.algorithms import TdMpc2Trainer
from torchrl.trainers.algorithms.configs.modules import (
    _make_tdmpc2_policy_prior,
    _make_tdmpc2_q_ensemble,
    _make_tdmpc2_world_model,
)

HORIZON = 3
IDS = ("collector", "traj_ids")
DONE, TRUNCATED = ("next", "done"), ("next", "truncated")


class _ClockEnv(EnvBase):
    """Its observation says which environment, episode and step it belongs to."""

    def __init__(self, name, length=7):
        super().__init__()
        self.name, self.length, self.episode, self.t = name, length, -1, 0
        self.observation_spec = Composite(observation=Unbounded(3))
        self.action_spec = Bounded(-1, 1, (1,))
        self.reward_spec = Unbounded(1)

    def _observation(self):
        return torch.tensor([self.name, self.episode, self.t], dtype=torch.float32)

    def _reset(self, tensordict=None, **kwargs):
        self.episode, self.t = self.episode + 1, 0
        return TensorDict(observation=self._observation())

    def _step(self, tensordict):
        self.t += 1
        done = torch.tensor([self.t >= self.length])
        return TensorDict(
            observation=self._observation(),
            reward=torch.zeros(1),
            done=done,
            terminated=done.clone(),
        )

    def _set_seed(self, seed):
        pass


def _make_trainer(num_envs, steps, **sampler):
    sizes = {"latent_dim": 8, "action_dim": 1, "mlp_dim": 8}
    networks = (
        _make_tdmpc2_world_model(observation_dim=3, encoder_dim=8, **sizes),
        _make_tdmpc2_policy_prior(**sizes),
        _make_tdmpc2_q_ensemble(**sizes),
    )
    loss = TdMpc2Loss(*networks, horizon=HORIZON)
    search = {"num_samples": 2, "num_elites": 1, "num_pi_trajs": 0, "iterations": 1}
    planner = TdMpc2Planner(*networks, horizon=HORIZON, **search)
    env = SerialEnv(num_envs, [lambda i=i: _ClockEnv(i) for i in range(num_envs)])
    collector = Collector(
        env,
        planner,
        frames_per_batch=num_envs * steps,
        total_frames=-1,
        auto_register_policy_transforms=True,
    )
    sampler = SliceSampler(slice_len=HORIZON, output_layout="batch_time", **sampler)
    storage = LazyTensorStorage(1_000)
    model = nn.ModuleList([networks[0], networks[2]])
    trainer = TdMpc2Trainer(
        collector=collector,
        total_frames=1_000,
        loss_module=loss,
        planner=planner,
        optimizer_model=torch.optim.Adam(model.parameters()),
        optimizer_actor=torch.optim.Adam(networks[1].parameters()),
        replay_buffer=TensorDictReplayBuffer(storage=storage, sampler=sampler),
        batch_size=64,
        progress_bar=False,
    )
    return trainer, collector


def _make_batch(num_rows, steps, end_key=DONE):
    """Transitions ``[num_rows, steps]`` in which nothing ends."""
    batch = TensorDict(
        observation=torch.arange(num_rows * steps).view(num_rows, steps, 1).float(),
        batch_size=[num_rows, steps],
    )
    return batch.set(end_key, torch.zeros(num_rows, steps, 1, dtype=torch.bool))


class TestTdMpc2ReplayBoundaries:
    @pytest.mark.parametrize("steps", [1, 5])
    def test_slices_stay_in_one_environment(self, steps):
        # What the ids of the collector give, and what end flags cannot.
        ids = {"traj_key": IDS}
        if steps < HORIZON:
            ids.update(fragmented=True, step_key="step")
        end_flags = {"end_key": DONE}, {"end_keys": [DONE, ("next", "terminated")]}
        for sampler in end_flags:
            trainer, collector = _make_trainer(2, steps, **sampler)
            with pytest.raises(ValueError, match="cross from one trajectory"):
                trainer._extend_replay_batch(next(iter(collector)))
            assert len(trainer._tdmpc2_replay_buffer.replay_buffer) == 0
            collector.shutdown()

        trainer, collector = _make_trainer(2, steps, **ids)
        data = iter(collector)
        for _ in range(12 // steps + 2):
            batch = next(data)
            # the step number, as `StepCounter` would write it
            batch["step"] = batch["observation"][..., 2:].long()
            trainer._extend_replay_batch(batch)
        observation = trainer._tdmpc2_replay_buffer.sample(batch)["observation"]
        collector.shutdown()
        assert observation.shape == (64, HORIZON, 3)
        difference = observation[:, 1:] - observation[:, :-1]
        expected = torch.tensor([0.0, 0.0, 1.0]).expand_as(difference)
        torch.testing.assert_close(difference, expected)
        assert set(observation[..., 0].unique().tolist()) == {0.0, 1.0}

    @pytest.mark.parametrize("end_key", [DONE, ("next", "agents", "done")])
    def test_end_flags(self, end_key):
        # Every row that another one follows must end; nested keys are read too.
        trainer, collector = _make_trainer(2, 5, end_key=end_key)
        collector.shutdown()
        batch = _make_batch(3, 4, end_key)
        batch[end_key][0, -1] = True
        with pytest.raises(ValueError, match=repr(end_key[-1])):
            trainer._extend_replay_batch(batch)
        batch[end_key][1, -1] = True
        stored = trainer._extend_replay_batch(batch)
        assert stored["observation"].flatten().tolist() == list(range(12))

    @pytest.mark.parametrize("sampler", [{}, {"traj_key": IDS}])
    def test_without_ids(self, sampler):
        # The sampler falls back to end flags where it finds no ids.
        trainer, collector = _make_trainer(2, 5, **sampler)
        collector.shutdown()
        batch = _make_batch(2, 4)
        with pytest.raises(ValueError, match="'done'"):
            trainer._extend_replay_batch(batch)
        batch[IDS] = torch.tensor([[0], [1]]).expand(2, 4)
        stored = trainer._extend_replay_batch(batch)
        assert stored[IDS].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]

    def test_end_keys_are_united(self):
        end_keys = [DONE, TRUNCATED, ("next", "absent")]
        trainer, collector = _make_trainer(2, 5, end_keys=end_keys)
        collector.shutdown()
        batch = _make_batch(3, 4)
        batch[TRUNCATED] = torch.zeros_like(batch[DONE])
        batch[DONE][0, -1] = True
        with pytest.raises(ValueError, match="'truncated'"):
            trainer._extend_replay_batch(batch)
        batch[TRUNCATED][1, -1] = True
        assert len(trainer._extend_replay_batch(batch)) == 12

    def test_padded_rows(self):
        # Split trajectories are padded: the last valid step of a row counts.
        trainer, collector = _make_trainer(2, 5, end_key=DONE)
        collector.shutdown()
        batch = _make_batch(2, 4)
        batch["collector", "mask"] = mask = torch.ones(2, 4, dtype=torch.bool)
        mask[0, 2:] = False
        batch[DONE][0, 3] = True  # padding
        with pytest.raises(ValueError, match="traj_key"):
            trainer._extend_replay_batch(batch)
        batch[DONE][0, 1] = True
        stored = trainer._extend_replay_batch(batch)
        assert stored["observation"].flatten().tolist() == [0, 1, 4, 5, 6, 7]

    def test_concatenated_workers(self):
        # In one row the ids of the collector tell the trajectories apart.
        trainer, collector = _make_trainer(2, 5, end_key=DONE)
        collector.shutdown()
        batch = _make_batch(1, 6)[0]
        batch[IDS] = torch.tensor([0, 0, 0, 1, 1, 1])
        with pytest.raises(ValueError, match="traj_ids"):
            trainer._extend_replay_batch(batch)
        batch[IDS] = torch.zeros(6, dtype=torch.long)
        assert len(trainer._extend_replay_batch(batch)) == 6


if __name__ == "__main__":
    pytest.main()
