"""The world model as an environment: what the planner imagines, as TorchRL sees it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import BaseCollector
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import ModelBasedEnvBase

from torchrl_tdmpc.modules import Context, TDMPC2WorldModel

__all__ = ["LatentEnv"]


class LatentEnv(ModelBasedEnvBase):
    """Environment whose observation is the latent and whose physics is the world model.

    It accepts any batch size. A reset needs the latent to start from, or the observation to encode.
    With a world model of several tasks it also needs the task, and the state carries its context.

    Args:
        world_model: the model; it is used, not registered, so that its weights appear once in the
            state dict of whatever owns it.
        action_dim: size of the action vector, A.

    Examples:
        >>> from torchrl_tdmpc.modules import MODEL_SIZES, make_networks
        >>> world_model, policy_prior, _ = make_networks((3,), 2, MODEL_SIZES[1])
        >>> env = LatentEnv(world_model, action_dim=2)
        >>> start = env.reset(TensorDict(observation=torch.randn(5, 3), batch_size=5))
        >>> env.rollout(4, policy_prior, auto_reset=False, tensordict=start).shape
        torch.Size([5, 4])
    """

    def __init__(self, world_model: TDMPC2WorldModel, action_dim: int):
        parameter = next(world_model.parameters())
        super().__init__(world_model, device=parameter.device)
        del self._modules["world_model"]
        self.__dict__["world_model"] = world_model
        observation_key, action_key = world_model.in_keys[:2]
        self.observation_key, self.latent_key = observation_key, world_model.out_keys[0]
        leaf = {"device": parameter.device, "dtype": parameter.dtype}
        latent_spec = Unbounded((world_model.latent_dim,), **leaf)
        self.observation_spec = Composite({self.latent_key: latent_spec})
        if (tasks := world_model.task_context) is not None:
            sizes = {"embedding": tasks.embedding_dim, "action_mask": action_dim, "discount": 1}
            context = {name: Unbounded((size,), **leaf) for name, size in sizes.items()}
            self.observation_spec["context"] = Composite(context)
        self.state_spec = self.observation_spec.clone()
        self.action_spec = Composite({action_key: Bounded(-1, 1, (action_dim,), **leaf)})
        self.reward_spec = Unbounded((1,), **leaf)

    def to(self, *args, **kwargs) -> LatentEnv:
        """Move the specs, and the world model's weights with them."""
        self.world_model.to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> LatentEnv:
        # What owns this environment moves, and the world model with it
        super()._apply(fn, recurse)
        super().to(fn(torch.empty(0, device=self.device)).device)
        return self

    def register_collector(self, collector: BaseCollector) -> None:
        """Forget the collector: it steps other environments, and no process can be sent it."""

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        latent, action = tensordict.get(self.latent_key), tensordict.get(self.action_key)
        context = Context.read(tensordict)
        next_latent = self.world_model.next(latent, action, context)
        reward = self.world_model.reward(latent, action, context)
        if self.world_model.episodic:
            terminated = self.world_model.termination(next_latent, context) > 0.5
        else:
            terminated = torch.zeros_like(reward, dtype=torch.bool)
        return TensorDict(
            {
                self.latent_key: next_latent,
                **context.entries("context", tensordict.batch_size),
                "reward": reward,
                "terminated": terminated,
                "done": terminated.clone(),
            },
            batch_size=tensordict.batch_size,
            device=self.device,
        )

    def _reset(self, tensordict: TensorDictBase | None, **kwargs) -> TensorDictBase:
        keys = () if tensordict is None else tensordict.keys(True, True)
        if self.latent_key in keys:
            context, latent = self.world_model.context(tensordict), tensordict.get(self.latent_key)
        elif self.observation_key in keys:
            context = self.world_model.context(tensordict)
            latent = self.world_model.encode(tensordict.get(self.observation_key), context)
        else:
            raise KeyError(
                f"a reset of LatentEnv needs {self.latent_key!r} or {self.observation_key!r} in "
                "its tensordict: imagination starts from a state."
            )
        return TensorDict(
            {self.latent_key: latent, **context.entries("context", tensordict.batch_size)},
            batch_size=tensordict.batch_size,
            device=self.device,
        )
