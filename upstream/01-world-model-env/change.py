"""``WorldModelEnv`` takes actions of any shape, and its latent advances."""

NEEDS = ()
FILE = "torchrl/envs/model_based/world_model_env.py"


def change(tree):
    """Expand whole specs, and have the latent among the observations."""
    file = tree.file(FILE)

    file.before(
        "from torchrl.envs.common import",
        "from torchrl.data.tensor_specs import Composite, Unbounded",
    )

    file.replace(
        "spec. When ``None``, the env exposes the latent state under",
        """
        spec. Its entries are exposed beside the latent state, which is under
        ``latent_key``. The latent's shape is that of ``latent_key`` in
        ``base_env``, or else what the encoder makes of its observation.
        """,
        through="inferred from",
    )
    init = file.within("def __init__(")
    init.replace(
        "self.action_spec = base_env.action_spec",
        """
        # The full specs are composites, whose ``expand`` leaves the event dimensions of
        # their leaves alone.
        self.action_spec = base_env.full_action_spec.expand(self.batch_size).clone()
        self.reward_spec = base_env.full_reward_spec.expand(self.batch_size).clone()
        self.done_spec = base_env.full_done_spec.expand(self.batch_size).clone()
        """,
        through="self.done_spec = ",
    )
    init.replace(
        "if observation_spec is not None:",
        """
        # The latent is what ``reset`` gets and what every step reads and writes. It stays
        # an observation beside those of an override: nothing else is carried to the next
        # step.
        latent_spec = self._make_latent_spec(base_env)
        self.state_spec = latent_spec.clone()
        if observation_spec is not None:
            latent_spec.update(observation_spec)
        self.observation_spec = latent_spec
        """,
        through="clone()",
    )
    file.before(
        "def _step(self",
        '''
        def _make_latent_spec(self, base_env: EnvBase) -> Composite:
            """Return the spec of the latent, from ``base_env`` or by encoding its observation."""
            observation_spec = base_env.observation_spec.expand(self.batch_size)
            if self.latent_key in observation_spec.keys(True):
                latent = observation_spec[self.latent_key].zero()
            else:
                with torch.no_grad():
                    latent = self._world_model.encode(observation_spec.zero()).get(
                        self.latent_key
                    )
            spec = Unbounded(latent.shape, dtype=latent.dtype, device=self.device)
            return Composite(
                {self.latent_key: spec}, shape=self.batch_size, device=self.device
            )

        ''',
    )
