from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.model_based import WorldModelEnv
from torchrl.envs.utils import check_env_specs
from torchrl.modules import WorldModel

OBSERVATION, LATENT = 3, 4


class _SpecEnv(EnvBase):
    """An env that only lends its specs."""

    def __init__(self, action_dim: int, batch_size: tuple[int, ...] = ()):
        super().__init__(batch_size=batch_size)
        self.observation_spec = Composite(
            observation=Unbounded((*batch_size, OBSERVATION)), shape=batch_size
        )
        self.action_spec = Bounded(-1.0, 1.0, (*batch_size, action_dim))
        self.reward_spec = Unbounded((*batch_size, 1))
        self.done_spec = Categorical(2, shape=(*batch_size, 1), dtype=torch.bool)

    def _reset(self, tensordict, **kwargs):
        raise NotImplementedError

    def _step(self, tensordict):
        raise NotImplementedError

    def _set_seed(self, seed):
        pass


class _Advance(nn.Module):
    """The next latent is the latent plus the sum of the action."""

    def forward(self, latent, action):
        return latent + action.sum(-1, keepdim=True)


def _make_world_model(latent_key="latent"):
    next_key = (
        ("next", *latent_key) if isinstance(latent_key, tuple) else ("next", latent_key)
    )
    encoder = TensorDictModule(
        nn.Linear(OBSERVATION, LATENT), in_keys=["observation"], out_keys=[latent_key]
    )
    dynamics = TensorDictModule(
        _Advance(), in_keys=[latent_key, "action"], out_keys=[next_key]
    )
    reward_head = TensorDictModule(
        lambda latent: (latent.mean(-1, keepdim=True), -latent),
        in_keys=[next_key],
        out_keys=[("next", "reward"), ("next", "decoded")],
    )
    return WorldModel(encoder, dynamics, reward_head)


def _make_start(world_model, latent_key="latent"):
    observation = TensorDict(
        {"observation": torch.randn(3, OBSERVATION)}, batch_size=[3]
    )
    return world_model.encode(observation).select(latent_key).detach()


class TestWorldModelEnvLatent:
    @pytest.mark.parametrize("action_dim", [2, 5])
    @pytest.mark.parametrize("env_batch_size", [(), (3,)])
    def test_specs(self, action_dim, env_batch_size):
        world_model = _make_world_model()
        base_env = _SpecEnv(action_dim, env_batch_size)
        env = WorldModelEnv(world_model, base_env, batch_size=[3])

        assert env.action_spec == Bounded(-1.0, 1.0, (3, action_dim))
        assert env.reward_spec == Unbounded((3, 1))
        assert env.observation_spec == Composite(
            latent=Unbounded((3, LATENT)), shape=[3]
        )
        check_env_specs(env, tensordict=env.reset(_make_start(world_model)))

    @pytest.mark.parametrize("latent_key", ["latent", ("model", "latent")])
    def test_latent_advances(self, latent_key):
        world_model = _make_world_model(latent_key)
        env = WorldModelEnv(
            world_model, _SpecEnv(2), batch_size=[3], latent_key=latent_key
        )
        start = _make_start(world_model, latent_key)
        action = torch.tensor([0.25, 0.5])

        rollout = env.rollout(
            4,
            policy=lambda td: td.set("action", action.expand(3, 2)),
            tensordict=start.clone(),
        )

        steps = torch.arange(1, 5).unsqueeze(-1)
        expected = start[latent_key].unsqueeze(1) + 0.75 * steps
        next_key = (
            ("next", *latent_key)
            if isinstance(latent_key, tuple)
            else ("next", latent_key)
        )
        torch.testing.assert_close(rollout[next_key], expected)
        torch.testing.assert_close(
            rollout["next", "reward"], expected.mean(-1, keepdim=True)
        )

    def test_latent_advances_beside_another_observation(self):
        world_model = _make_world_model()
        env = WorldModelEnv(
            world_model,
            _SpecEnv(2),
            batch_size=[3],
            observation_spec=Composite(decoded=Unbounded((3, LATENT)), shape=[3]),
        )
        start = _make_start(world_model)

        rollout = env.rollout(
            2,
            policy=lambda td: td.set("action", torch.ones(3, 2)),
            tensordict=start.clone(),
        )

        torch.testing.assert_close(rollout["next", "latent"][:, 1], start["latent"] + 4)
        torch.testing.assert_close(
            rollout["next", "decoded"], -rollout["next", "latent"]
        )


if __name__ == "__main__":
    pytest.main()
