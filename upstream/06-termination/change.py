"""A head for terminations, its loss, and plans that end where it predicts one."""

NEEDS = ("04-batched-planner",)
LOSS = "torchrl/objectives/tdmpc2.py"
PLANNER = "torchrl/modules/planners/tdmpc2.py"
STEPPER = "torchrl/trainers/algorithms/tdmpc2.py"
CONFIGS = "torchrl/trainers/algorithms/configs/"


def change(tree):
    """Read the world model's ``done_head`` in the loss and the planner, and configure it."""
    change_loss(tree.file(LOSS))
    change_planner(tree.file(PLANNER))
    change_stepper(tree.file(STEPPER))
    change_model_config(tree.file(CONFIGS + "modules.py"))
    change_loss_config(tree.file(CONFIGS + "objectives.py"))
    change_trainer_config(tree.file(CONFIGS + "trainers.py"))


def change_loss(file):
    """Add ``loss_termination`` where the world model has a head for it."""
    forward = file.within("def forward(self, tensordict")
    forward.replace("return TensorDict(", "losses = TensorDict(")
    forward.after(
        "        )",
        """
        if self.next_termination_logits_key is not None:
            losses.set(
                "loss_termination",
                self.termination_coef * metadata.get("loss_termination"),
            )
        return losses
        """,
    )

    components = file.within("def _model_loss_components(")
    components.replace(
        "latent_sequence, reward_predictions, q_predictions = self",
        """
        (
            latent_sequence,
            reward_predictions,
            q_predictions,
            termination_logits,
        ) = self._rollout(observation, action)
        """,
        through="        )",
    )
    components.before(
        "return total_loss, metadata",
        """
        if termination_logits is not None:
            termination_loss = self._masked_transition_mean(
                F.binary_cross_entropy_with_logits(
                    termination_logits, terminated, reduction="none"
                ).squeeze(-1),
                loss_mask,
            )
            total_loss = total_loss + self.termination_coef * termination_loss
            metadata.set("loss_termination", termination_loss)
        """,
    )

    rollout = file.within("def _rollout(")
    rollout.replace(
        ") -> tuple[",
        """
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """,
    )
    rollout.after("reward_predictions = []", "termination_logits = []")
    rollout.after(
        "reward_predictions.append(",
        """
        if self.next_termination_logits_key is not None:
            termination_logits.append(step_td.get(self.next_termination_logits_key))
        """,
    )
    rollout.after(
        "reward_predictions = torch.stack(",
        """
        termination_logits = (
            torch.stack(termination_logits, dim=-2) if termination_logits else None
        )
        """,
    )
    rollout.replace(
        "return latent_sequence,",
        "return latent_sequence, reward_predictions, q_predictions, termination_logits",
    )

    keys = file.within("def out_keys(self)")
    keys.replace("return [", "keys = [")
    keys.after(
        "        ]",
        """
        if self.next_termination_logits_key is not None:
            keys.append("loss_termination")
        return keys
        """,
    )

    file.replace(
        "world_model: TensorDict-native encoder, dynamics,",
        """
        world_model: TensorDict-native encoder, dynamics, and reward model. If it
            has a ``done_head``, the first output of the head is read as the logit
            of the probability that the episode ended on arriving in the next
            latent state, and is trained against the termination flag.
        """,
    )
    file.after(
        "value_coef: Weight of distributional",
        """
        termination_coef: Weight of termination loss. Unlike the others, the loss
            is not weighted by ``rho``. Used only if there is a ``done_head``.
        """,
    )
    file.after("value_coef: float = 0.1,", "termination_coef: float = 1.0,")
    file.after('"value_coef": value_coef,', '"termination_coef": termination_coef,')
    file.after(
        "self.value_coef = float(", "self.termination_coef = float(termination_coef)"
    )
    file.before(
        "self.policy_latent_key = policy_prior",
        """
        done_head = getattr(world_model, "done_head", None)
        self.next_termination_logits_key = (
            None if done_head is None else _tdmpc2_next_key(done_head.out_keys[0])
        )
        """,
    )


def change_planner(file):
    """Let nothing count after a step that is predicted to end the episode."""
    file.after(
        "and ``reward_head`` TensorDict modules.",
        """
            If it has a ``done_head``, the first output of the head is read as the
            logit of termination, and neither rewards nor the bootstrap value count
            after a step whose predicted probability is above one half.
        """,
        indent=12,
    )
    file.replace(
        'if getattr(world_model, "done_head"',
        """
        done_head = getattr(world_model, "done_head", None)
        termination_logits_key = (
            None if done_head is None else _tdmpc2_next_key(done_head.out_keys[0])
        )
        """,
        through="            )",
    )
    file.after(
        "self.reward_logits_key = reward_logits_key",
        "self.termination_logits_key = termination_logits_key",
    )
    step = file.within("def _step(")
    step.replace(
        ") -> tuple[", ") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:"
    )
    step.replace(
        "return step_td.get(self.next_latent_key)",
        """
        reward_logits = step_td.get(_tdmpc2_next_key(self.reward_logits_key))
        termination_logits = None
        if self.termination_logits_key is not None:
            termination_logits = step_td.get(self.termination_logits_key)
        return step_td.get(self.next_latent_key), reward_logits, termination_logits
        """,
        through="        )",
    )
    estimate = file.within("def _estimate_value(")
    estimate.replace(
        "current_latent, reward_logits =",
        "current_latent, reward_logits, termination_logits = self._step(",
    )
    estimate.after(
        "discount = discount * self.discount",
        """
        if termination_logits is not None:
            discount = discount * (termination_logits <= 0)
        """,
    )


def change_stepper(file):
    """Report the new loss beside the others."""
    step = file.within("def step(self, trainer")
    step.before(
        "detached_model_loss = model_loss.detach()",
        """
        termination_metrics = {}
        termination_loss = model_metadata.get("loss_termination", None)
        if termination_loss is not None:
            termination_metrics["loss_termination"] = (
                self.loss_module.termination_coef * termination_loss
            ).detach()
        """,
    )
    step.before('"pi_entropy": actor_metadata', "**termination_metrics,")


def change_model_config(file):
    """Configure the head."""
    config = file.within("class TdMpc2WorldModelConfig")
    config.before(
        ".. seealso:: :class:`~torchrl.modules.WorldModel`",
        """
        For tasks that can end early, ``predict_termination=True`` adds a
        ``done_head`` that predicts, from the next latent state, the logit of the
        probability that the episode ended there.

        """,
    )
    config.after(
        "shared: bool = False",
        """
        predict_termination: bool = False
        termination_logits_key: Any = "termination_logits"
        """,
    )
    make = file.within("def _make_tdmpc2_world_model(")
    make.after(
        "shared: bool = False,",
        """
        predict_termination: bool = False,
        termination_logits_key: Any = "termination_logits",
        """,
    )
    make.replace(
        "world_model = WorldModel(",
        """
        done_head = None
        if predict_termination:
            termination_logits_key = _normalize_hydra_key(termination_logits_key)
            done_head = TensorDictModule(
                _make_tdmpc2_mlp(
                    in_features=latent_dim,
                    out_features=1,
                    depth=2,
                    num_cells=mlp_dim,
                    device=device,
                ),
                in_keys=[_next_key(latent_key)],
                out_keys=[_next_key(termination_logits_key)],
            )

        world_model = WorldModel(encoder, dynamics, reward, done_head=done_head)
        """,
    )


def change_loss_config(file):
    """Configure the coefficient."""
    config = file.within("class TdMpc2LossConfig")
    config.after("value_coef: float = 0.1", "termination_coef: float = 1.0")
    make = file.within("def _make_tdmpc2_loss(")
    make.after("value_coef: float = 0.1,", "termination_coef: float = 1.0,")
    make.after("value_coef=value_coef,", "termination_coef=termination_coef,")


def change_trainer_config(file):
    """Give the head's parameters to the model's optimizer, which lists them by module."""
    make = file.within("def _make_tdmpc2_trainer(")
    make.before(
        "model_params = [",
        """
        done_head = getattr(loss_module.world_model, "done_head", None)
        done_params = [] if done_head is None else list(done_head.parameters())
        """,
    )
    make.replace(
        "model_params = [",
        """
        model_params = [
            *done_params,
        """,
    )
    make.replace(
        "other_params = [",
        """
        other_params = [
            *done_params,
        """,
    )
