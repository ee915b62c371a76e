"""The planner: MPPI over imagined trajectories, guided by the policy prior."""

from __future__ import annotations

from typing import Any, Literal

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.modules import MPCPlannerBase

from torchrl_tdmpc.modules import (
    Context,
    Execution,
    PolicyPrior,
    QEnsemble,
    TDMPC2WorldModel,
    refuse_misfit,
)
from torchrl_tdmpc.planners.latent_env import LatentEnv
from torchrl_tdmpc.planners.plan import Elites, Plan, PlanDraws
from torchrl_tdmpc.planners.settings import LIMITS, default_iterations, refuse_settings
from torchrl_tdmpc.planners.warm_start import WarmStart

__all__ = ["TDMPC2Planner"]

CPU_ENVS = 4  # planned for together on a CPU: the activations of more leave its caches


class TDMPC2Planner(MPCPlannerBase):
    """Model predictive path integral control in latent space (section 3.2, arXiv 2310.16828).

    As a TensorDict module it reads the observation and the previous plan's mean, and writes the
    action, this plan's mean and how many trajectory values were NaN, for any batch of environments:
    all of them are planned for together (on a CPU in groups of four), each with its own warm start.
    The mean is policy state: append :meth:`make_tensordict_primer` to the environment, or let
    ``Collector(auto_register_policy_transforms=True)`` do it, so that it is carried from step to
    step and zeroed where an environment resets.

    Under ``ExplorationType.RANDOM`` the action is perturbed by the plan's standard deviation;
    otherwise it is the elite's own.

    With a world model of several tasks it also reads the index of each environment's task; the
    environments of one call may have different tasks.

    Its settings are attributes. A value that the constructor refuses is refused there too.

    Args:
        world_model: imagines; ``env``, a :class:`LatentEnv`, shows it as TorchRL's planners do.
        policy_prior: proposes trajectories, and acts after the horizon.
        q_ensemble: values what comes after the horizon.

    Keyword Args:
        discount: discount factor, gamma, in (0, 1). Left out for a world model of several tasks
            alone, each of which has its own.
        horizon: number of agent steps planned ahead, H.
        iterations: number of refinements of the action distribution; ``"auto"`` is 6, or 8 from 20
            action dimensions on.
        num_samples: trajectories valued in each iteration, N.
        num_elites: best trajectories that refit the distribution, K.
        num_pi_trajs: trajectories that the policy prior proposes, P, part of N.
        min_std: lower limit of the action distribution's standard deviation.
        max_std: upper limit of the same, and its value before the first iteration.
        temperature: of the elites' softmax weights; higher is greedier.
        mpc: False acts with the policy prior alone: a sample when exploring, else its mode.
        execution: how planning runs: compiled or not, and in which precision. Encoding, and acting
            with ``mpc=False``, run eagerly, in float32.
        previous_mean_key: where the mean is carried.
        nan_values_key: where the number of NaN trajectory values is written, ``[*envs]``.

    Raises:
        ValueError: an argument out of its range, or networks that do not fit each other.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_tdmpc.modules import MODEL_SIZES, make_networks
        >>> planner = TDMPC2Planner(*make_networks((3,), 2, MODEL_SIZES[1]), discount=0.99)
        >>> data = TensorDict(
        ...     observation=torch.randn(4, 3), _previous_mean=torch.zeros(4, 3, 2), batch_size=4
        ... )
        >>> planner(data)["action"].shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        world_model: TDMPC2WorldModel,
        policy_prior: PolicyPrior,
        q_ensemble: QEnsemble,
        *,
        discount: float | None = None,
        horizon: int = 3,
        iterations: int | Literal["auto"] = "auto",
        num_samples: int = 512,
        num_elites: int = 64,
        num_pi_trajs: int = 24,
        min_std: float = 0.05,
        max_std: float = 2.0,
        temperature: float = 0.5,
        mpc: bool = True,
        execution: Execution = Execution(),
        previous_mean_key: NestedKey = "_previous_mean",
        nan_values_key: NestedKey = "nan_values",
    ):
        if isinstance(world_model, LatentEnv):
            raise TypeError("the first argument is a LatentEnv; give its world model instead.")
        refuse_misfit(world_model, policy_prior, q_ensemble)
        env = LatentEnv(world_model, q_ensemble.action_dim)
        super().__init__(env, action_key=env.action_key)
        self.action_spec = env.full_action_spec[env.action_key]
        self.world_model = world_model
        self.policy_prior = policy_prior
        self.q_ensemble = q_ensemble
        self.action_dim = q_ensemble.action_dim
        self.discount = discount
        self.horizon = horizon
        self.iterations = iterations
        self.num_samples = num_samples
        self.num_elites = num_elites
        self.num_pi_trajs = num_pi_trajs
        self.max_std = max_std
        self.min_std = min_std
        self.temperature = temperature
        self.mpc = mpc
        self.execution = execution
        self.in_keys = [env.observation_key, previous_mean_key, *self.world_model.task_keys]
        self.out_keys = [
            env.action_key,
            unravel_key(("next", previous_mean_key)),
            nan_values_key,
        ]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "iterations" and value == "auto":
            value = default_iterations(self.action_dim)
        if name in LIMITS:  # in the constructor and ever after
            settings = {key: vars(self)[key] for key in LIMITS if key in vars(self)}
            refuse_settings({**settings, name: value})
        super().__setattr__(name, value)

    @property
    def discount(self) -> float | None:
        """Discount factor of the plan's return; None if the tasks have their own."""
        return self._discount

    @discount.setter
    def discount(self, discount: float | None) -> None:
        self.world_model.refuse_discount("discount", discount)
        self._discount = discount

    @property
    def execution(self) -> Execution:
        """How planning runs; what is set here holds from the next call on."""
        return self._execution

    @execution.setter
    def execution(self, execution: Execution) -> None:
        device = next(self.q_ensemble.parameters()).device
        self._policy_trajectories = execution.prepare(type(self).policy_trajectories, device)
        self._refine = execution.prepare(type(self).refine, device)
        self._execution = execution

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that carries the plan's mean in an environment: zero after each reset."""
        parameter = next(self.world_model.parameters())
        spec = Unbounded(
            (self.horizon, self.action_dim), device=parameter.device, dtype=parameter.dtype
        )
        return WarmStart(self.in_keys[1], spec, self.env.action_key)

    def forward(
        self, tensordict: TensorDictBase, tensordict_out: TensorDictBase | None = None
    ) -> TensorDictBase:
        """Write the action, the mean that warm-starts the next call, and the number of NaN values.

        Raises:
            KeyError: the previous mean is missing.
            ValueError: it is of another planner.
        """
        out = tensordict if tensordict_out is None else tensordict_out
        for key, value in zip(self.out_keys_source, self._act(tensordict), strict=True):
            out.set(key, value)
        return out

    def planning(self, tensordict: TensorDictBase) -> Tensor:
        """The action ``[*envs, A]`` alone."""
        return self._act(tensordict)[0]

    @torch.no_grad()
    def _act(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor, Tensor]:
        """Action ``[*envs, A]``, mean ``[*envs, H, A]`` and NaN count ``[*envs]``."""
        observation_key, mean_key = self.in_keys[:2]
        if tensordict.get(mean_key, None) is None:
            raise KeyError(
                f"the planner's warm start {mean_key!r} is missing: append "
                "planner.make_tensordict_primer() to the environment, or build the collector with "
                "auto_register_policy_transforms=True."
            )
        envs = tensordict.select(*self.in_keys).reshape(-1)
        observation, mean = envs.get(observation_key), envs.get(mean_key)
        if mean.shape[1:] != (self.horizon, self.action_dim):
            raise ValueError(
                f"the warm start {mean_key!r} has shape {list(mean.shape[1:])}; this planner's is "
                f"[horizon, action] = {[self.horizon, self.action_dim]}."
            )
        explore = exploration_type() == ExplorationType.RANDOM
        context = self.world_model.context(envs)
        latent = self.world_model.encode(observation, context)
        if self.mpc:
            plan = self.plan(latent, mean, explore=explore, context=context)
            action, mean, nan_values = plan.action, plan.mean, plan.nan_values
        else:
            if explore:
                action = self.policy_prior.act(latent, context=context)
            else:
                action = self.policy_prior.mode(latent, context)
            nan_values = torch.zeros(len(latent), dtype=torch.long, device=latent.device)
        return tuple(
            x.reshape(tensordict.batch_size + x.shape[1:]) for x in (action, mean, nan_values)
        )

    def draw(self, latent: Tensor) -> PlanDraws:
        """Draw the random numbers of one planning call for latents ``[E, L]``."""
        envs, horizon, action = len(latent), self.horizon, self.action_dim
        prior, sampled = self.num_pi_trajs, self.num_samples - self.num_pi_trajs
        iterations = self.iterations

        def normal(*shape: int) -> Tensor:
            return latent.new_empty(shape).normal_()

        return PlanDraws(
            policy_trajectories=normal(envs, horizon, prior, action),
            samples=normal(iterations, envs, horizon, sampled, action),
            terminal_policy=normal(iterations, envs, self.num_samples, action),
            q_pair=torch.stack([self.q_ensemble.draw_pair() for _ in range(iterations)]),
            elite=latent.new_empty(envs, self.num_elites).exponential_(),
            action=normal(envs, action),
        )

    # Under a compilation of the user's, each refinement is compiled once: not all of them as one
    @torch.compiler.disable(recursive=False)
    def plan(
        self,
        latent: Tensor,
        previous_mean: Tensor,
        draws: PlanDraws | None = None,
        *,
        explore: bool = True,
        context: Context = Context(),
    ) -> Plan:
        """Plan for E environments together.

        Args:
            latent: encoded observations, ``[E, L]``.
            previous_mean: means of the previous call, not yet shifted, ``[E, H, A]``; zero at the
                first step of an episode.
            draws: the random numbers; drawn here when None.
            explore: whether the action is perturbed.
            context: of each environment, ``[E]``.
        """
        draws = self.draw(latent) if draws is None else draws
        if latent.device.type == "cpu" and len(latent) > CPU_ENVS:
            groups = (slice(i, i + CPU_ENVS) for i in range(0, len(latent), CPU_ENVS))
            plans = (
                self.plan(
                    latent[envs],
                    previous_mean[envs],
                    draws.of(envs),
                    explore=explore,
                    context=context.of(envs),
                )
                for envs in groups
            )
            return Plan(*map(torch.cat, zip(*plans)))
        z, context = latent.unsqueeze(1), context.unsqueeze(1)
        policy_actions = self._policy_trajectories(self, z, draws.policy_trajectories, context)

        # Warm start: the previous mean one step later, and no knowledge of the last step
        mean = torch.cat([previous_mean[:, 1:], torch.zeros_like(previous_mean[:, :1])], 1)
        std = torch.full_like(mean, self.max_std)
        nan_values = 0
        for i in range(self.iterations):
            mean, std, elites, nans = self._refine(
                self,
                z,
                policy_actions,
                mean,
                std,
                draws.samples[i],
                draws.terminal_policy[i],
                draws.q_pair[i],
                context,
            )
            nan_values = nan_values + nans

        # Follow one elite, drawn by its score (Gumbel trick), for one step
        chosen = (elites.score.log() - draws.elite.log()).argmax(1)
        action = elites.first_action[torch.arange(len(chosen), device=chosen.device), chosen]
        if explore:
            action = action + std[:, 0] * draws.action
        return Plan(action.clamp(-1, 1), mean, std, elites.value, nan_values)

    def refine(
        self,
        latent: Tensor,
        policy_actions: Tensor,
        mean: Tensor,
        std: Tensor,
        sample_eps: Tensor,
        terminal_eps: Tensor,
        q_pair: Tensor,
        context: Context = Context(),
    ) -> tuple[Tensor, Tensor, Elites, Tensor]:
        """Refit the action distribution to the best of its samples and the policy's trajectories.

        Args:
            latent: where the trajectories start, ``[E, 1, L]``.
            policy_actions: ``[E, H, P, A]``.
            mean: of the action distribution, ``[E, H, A]``.
            std: of the same.
            sample_eps: noise of the samples, ``[E, H, N - P, A]``.
            terminal_eps: noise of the policy at the horizon, ``[E, N, A]``.
            q_pair: int64 indices of two Q-functions.
            context: of each environment, ``[E, 1]``.

        Returns:
            The new mean and standard deviation, the elites, and how many values were NaN ``[E]``.
        """
        # Candidates: a_t ~ N(mean_t, std_t), beside the policy's own trajectories
        samples = mean.unsqueeze(2) + std.unsqueeze(2) * sample_eps
        actions = torch.cat([policy_actions, samples.clamp(-1, 1)], 2)
        actions = context.unsqueeze(1).mask(actions)
        value = self.trajectory_value(latent, actions, terminal_eps, q_pair, context).squeeze(-1)
        nan_values = value.isnan().sum(1)

        # Elites, weighted by softmax(temperature * value), refit mean and std
        elite_value, elite = value.nan_to_num(0).topk(self.num_elites, dim=1)
        elite = elite[:, None, :, None].expand(-1, self.horizon, -1, self.action_dim)
        elite_actions = actions.gather(2, elite)
        score = (self.temperature * elite_value).softmax(1)
        weight = score[:, None, :, None]
        mean = (weight * elite_actions).sum(2)
        variance = (weight * (elite_actions - mean.unsqueeze(2)).square()).sum(2)
        std = variance.sqrt().clamp(self.min_std, self.max_std)
        mean, std = context.mask(mean), context.mask(std)
        return mean, std, Elites(elite_value, score, elite_actions[:, 0]), nan_values

    def policy_trajectories(
        self, latent: Tensor, eps: Tensor, context: Context = Context()
    ) -> Tensor:
        """Actions ``[E, H, P, A]`` of the policy prior, imagined from ``latent`` ``[E, 1, L]``.

        Args:
            latent: where the trajectories start.
            eps: noise of the policy, ``[E, H, P, A]``.
            context: of each environment, ``[E, 1]``.
        """
        actions = []
        for t, noise in enumerate(eps.unbind(1)):
            if t > 0:
                latent = self.world_model.next(latent, actions[-1], context)
            actions.append(self.policy_prior.act(latent, noise, context))
        return torch.stack(actions, 1)

    def trajectory_value(
        self,
        latent: Tensor,
        actions: Tensor,
        terminal_eps: Tensor,
        q_pair: Tensor,
        context: Context = Context(),
    ) -> Tensor:
        """Imagined return of action sequences (equation 5, arXiv 2310.16828).

        ``sum_t gamma^t alive_t r_t + gamma^H alive_H Q(z_H, pi(z_H))``, where a trajectory is alive
        until the model predicts a termination, and Q is the mean of the drawn pair.

        Args:
            latent: where the trajectories start, ``[E, 1, L]``.
            actions: ``[E, H, N, A]``.
            terminal_eps: noise of the policy at the horizon, ``[E, N, A]``.
            q_pair: int64 indices of two Q-functions.
            context: of each environment, ``[E, 1]``.

        Returns:
            ``[E, N, 1]``.
        """
        first, *later = actions.unbind(1)
        latents = [self.world_model.next(latent, first, context)]  # z_1 .. z_H
        for a in later:
            latents.append(self.world_model.next(latents[-1], a, context))

        # r_0 from the latent that all trajectories share, the other rewards in one call
        rewards = [self.world_model.reward(latent, first, context)]
        if later:
            z = torch.stack(latents[:-1], 1)
            rewards += self.world_model.reward(z, actions[:, 1:], context.unsqueeze(1)).unbind(1)

        value, discount, alive = 0.0, 1.0, 1.0
        for reward, z in zip(rewards, latents, strict=True):
            value = value + discount * alive * reward
            discount = discount * context.discount_or(self.discount)
            if self.world_model.episodic:
                alive = alive * (self.world_model.termination(z, context) <= 0.5)
        terminal_action = self.policy_prior.act(z, terminal_eps, context)
        terminal_value = self.q_ensemble.value(z, terminal_action, context, pair=q_pair).mean(0)
        return value + discount * alive * terminal_value
