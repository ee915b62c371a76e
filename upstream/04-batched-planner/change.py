"""``TdMpc2Planner`` plans for all environments at once, with the random numbers of the loop."""

NEEDS = ("03-drawn-q-pair",)
MODEL = "torchrl/modules/models/tdmpc2.py"
PLANNER = "torchrl/modules/planners/tdmpc2.py"


def change(tree):
    """Let prior and ensemble take what is drawn for them, and give the plan an environment axis."""
    model = tree.file(MODEL)
    prior = model.within("class _TdMpc2PolicyPrior")
    prior.replace(
        "self, latent: torch.Tensor",
        "self, latent: torch.Tensor, noise: torch.Tensor | None = None",
    )
    prior.replace(
        "eps = torch.randn_like(",
        "eps = torch.randn_like(mean) if noise is None else noise",
    )

    model.within("def _q_logits(").replace(
        "return torch.vmap(",
        """
        call = torch.vmap(self._call, in_dims=(0, None, None), randomness="different")
        if index is not None and index.ndim == 2:
            # The functions differ along the first batch dimension.
            call = torch.vmap(call, in_dims=(0, None, 0), randomness="different")
        return call(params, module, inputs)
        """,
        through=")(params,",
    )
    reduce = model.within("def reduce(")
    reduce.after('= "online",', "pair: torch.Tensor | None = None,")
    reduce.after(
        '``"online"``.',
        """
        pair: Indices of the two Q-functions, with shape ``[2]``, or ``[B, 2]`` for
            a pair of its own for each entry of the first batch dimension.
            Drawn at random when omitted.
        """,
        indent=12,
    )
    reduce.replace(
        "pair = torch.randperm(",
        """
        if pair is None:
            pair = torch.randperm(self.num_q, device=latent.device)[:2]
        """,
    )
    reduce.before('if reduction == "min":', "pair_dim = pair.ndim - 1")
    reduce.replace("values.min(dim=0)", "q_value = values.min(dim=pair_dim).values")
    reduce.replace("values.sum(dim=0)", "q_value = values.sum(dim=pair_dim) / 2")

    planner = tree.file(PLANNER)
    planner.before("import math", "import inspect")
    planner.after("import math", "from collections.abc import Iterator")
    planner.after("import contextmanager", "from functools import partial")
    planner.before(
        "The fitted action mean is",
        """
        All environments of a batch are planned for at once. Their random numbers are
        drawn one environment after the other, so a batch is planned for as its
        environments would be in turn.

        """,
    )
    planner.replace(
        "policy_prior: TD-MPC2 policy-prior TensorDict module.",
        """
        policy_prior: TD-MPC2 policy-prior TensorDict module. If its module takes
            the argument ``noise``, it is given the Gaussian noise of its actions;
            otherwise environments are planned for one after the other.
        """,
    )
    planner.after(
        "self._policy_prior = policy_prior",
        """
        prior_forward = getattr(getattr(policy_prior, "module", None), "forward", None)
        self._prior_takes_noise = (
            prior_forward is not None
            and "noise" in inspect.signature(prior_forward).parameters
        )
        """,
    )

    planner.replace("def _plan_single(", PLAN, through="return action.clamp(")
    planner.replace(
        "actions = []",
        """
        mean = latent.new_zeros(latent.shape[0], self.horizon, self.action_dim)
        if previous_mean is not None:
            mean[:, :-1] = previous_mean[:, 1:].masked_fill(
                is_init.view(-1, 1, 1), 0
            )
        # A prior that draws its own noise plans for one environment at a time.
        size = latent.shape[0] if self._prior_takes_noise else 1
        plans = map(self._plan, latent.split(size), mean.split(size))
        action, fitted_mean = map(torch.cat, zip(*plans))
        action = action.reshape(*batch_shape, self.action_dim)
        """,
        through="action = torch.stack(",
    )
    planner.replace("fitted_mean = torch.stack(", "fitted_mean = fitted_mean.reshape(")

    action = planner.within("def _policy_action(")
    action.replace(
        "def _policy_action(",
        """
        def _policy_action(
            self, latent: torch.Tensor, draws: Iterator[torch.Tensor]
        ) -> torch.Tensor:
        """,
    )
    action.replace(
        "self.policy_prior(policy_td)",
        """
        if self._prior_takes_noise:
            self.policy_prior(policy_td, noise=next(draws).flatten(0, 1))
        else:
            self.policy_prior(policy_td)
        """,
    )

    value = planner.within("def _q_value(")
    value.replace(
        "def _q_value(",
        """
        def _q_value(
            self, latent: torch.Tensor, action: torch.Tensor, pair: torch.Tensor
        ) -> torch.Tensor:
            # One pair for each environment, whose rows follow each other.
            latent = latent.unflatten(0, (pair.shape[0], -1))
            action = action.unflatten(0, (pair.shape[0], -1))
        """,
    )
    value.replace(
        "self.q_ensemble.reduce(",
        """
        self.q_ensemble.reduce(q_td, reduction="avg", source="online", pair=pair)
        """,
    )
    value.replace(
        "return q_td.get(",
        "return q_td.get(self.q_ensemble.q_value_key).flatten(0, 1)",
    )

    estimate = planner.within("def _estimate_value(")
    estimate.replace(
        "self, latent: torch.Tensor, actions",
        """
        self,
        latent: torch.Tensor,
        actions: torch.Tensor,
        draws: Iterator[torch.Tensor],
        """,
    )
    estimate.replace(
        "current_latent, reward_logits =",
        """
        current_latent, reward_logits = self._step(
            current_latent, actions[:, index].flatten(0, 1)
        )
        """,
    )
    estimate.replace(
        "terminal_action = ",
        """
        terminal_action = self._policy_action(current_latent, draws)
        terminal_value = self._q_value(current_latent, terminal_action, next(draws))
        return value + discount * terminal_value
        """,
        through="return value +",
    )


PLAN = '''
def _draw(self, latent: torch.Tensor, explore: bool) -> Iterator[torch.Tensor]:
    """Draw the random numbers of one environment, in the order of their use."""
    randn = partial(torch.randn, device=latent.device, dtype=latent.dtype)
    if self.num_pi_trajs and self._prior_takes_noise:
        for _ in range(self.horizon):
            yield randn(self.num_pi_trajs, self.action_dim)
    num_sampled = self.num_samples - self.num_pi_trajs
    for _ in range(self.iterations):
        yield randn(self.horizon, num_sampled, self.action_dim)
        if self._prior_takes_noise:
            yield randn(self.num_samples, self.action_dim)
        yield torch.randperm(self.q_ensemble.num_q, device=latent.device)[:2]
    yield latent.new_empty(self.num_elites).exponential_()
    if explore:
        yield randn(self.action_dim)

def _plan(
    self, latent: torch.Tensor, mean: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plan for environments with latents ``[E, L]`` and means ``[E, H, A]``."""
    exploration = exploration_type()
    explore = exploration is ExplorationType.RANDOM
    if exploration is None:
        explore = self.training
    num_envs = latent.shape[0]
    draws = [self._draw(latent, explore) for _ in range(num_envs)]
    if self._prior_takes_noise:
        # All numbers of an environment are drawn before those of the next one. With
        # a prior that draws its own, they are drawn where they are used.
        draws = [tuple(numbers) for numbers in draws]
    draws = map(torch.stack, zip(*draws))

    # The models see rows: the candidates of the first environment, then the next.
    actions = latent.new_empty(
        num_envs, self.horizon, self.num_samples, self.action_dim
    )
    if self.num_pi_trajs:
        policy_actions = actions[:, :, : self.num_pi_trajs]
        policy_latent = latent.repeat_interleave(self.num_pi_trajs, 0)
        for index in range(self.horizon):
            if index:
                policy_latent = self._next_latent(policy_latent, policy_action)
            policy_action = self._policy_action(policy_latent, draws)
            policy_actions[:, index] = policy_action.unflatten(0, (num_envs, -1))

    candidate_latent = latent.repeat_interleave(self.num_samples, 0)
    std = torch.full_like(mean, self.max_std)
    for _ in range(self.iterations):
        sampled_actions = mean.unsqueeze(2) + std.unsqueeze(2) * next(draws)
        actions[:, :, self.num_pi_trajs :] = sampled_actions.clamp(-1, 1)

        value = self._estimate_value(candidate_latent, actions, draws).nan_to_num(0)
        value = value.unflatten(0, (num_envs, -1))
        elite_value, elite_indices = torch.topk(value, self.num_elites, dim=1)
        elite_actions = actions.take_along_dim(elite_indices.unsqueeze(1), dim=2)

        # Refit to the elites, weighted by the exponential of their value.
        advantage = elite_value - elite_value.amax(1, keepdim=True)
        weight = (self.temperature * advantage).exp()
        weight = weight / weight.sum(1, keepdim=True)
        total = weight.sum(1, keepdim=True) + 1e-9
        mean = (weight.unsqueeze(1) * elite_actions).sum(2) / total
        squares = (elite_actions - mean.unsqueeze(2)).pow(2)
        variance = (weight.unsqueeze(1) * squares).sum(2) / total
        std = variance.sqrt().clamp(self.min_std, self.max_std)

    gumbel = -next(draws).log()
    drawn = (weight.squeeze(2).log() + gumbel).argmax(1).view(-1, 1, 1)
    action = elite_actions[:, 0].take_along_dim(drawn, dim=1).squeeze(1)
    if explore:
        action = action + std[:, 0] * next(draws)
    return torch.clamp(action, -1, 1), mean
'''
