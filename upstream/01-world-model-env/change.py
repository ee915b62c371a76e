"""``WorldModelEnv`` takes actions of any shape, and its latent advances."""

NEEDS = ()
FILE = "torchrl/envs/model_based/world_model_env.py"


def change(tree):
    """Expand whole specs, infer the latent's spec, and carry the latent through ``_step``."""
    file = tree.file(FILE)

    imports = "from torchrl.envs.model_based.common import ModelBasedEnvBase"
    file.before("from torchrl.envs.common import", "from torchrl.data import Composite, Unbounded")

    file.replace(
        "spec. When ``None``, the env exposes the latent state under",
        """
        spec. When ``None``, the env exposes the latent state under
        ``latent_key``, with the shape and dtype that the world model's
        encoder gives an observation of ``base_env``.
        """,
        through="inferred from",
    )
    assert imports in file.text

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
        # The latent is the state of the imagined env: what ``reset`` gets, and what every
        # step reads and writes.
        latent_spec = self._make_latent_spec(base_env)
        self.state_spec = latent_spec
        self.observation_spec = (
            latent_spec.clone() if observation_spec is None else observation_spec
        )
        """,
        through="clone()",
    )
    # the closing lines of the branch that went
    file.before(
        "def _step(self",
        '''
        def _make_latent_spec(self, base_env: EnvBase) -> Composite:
            """Encode one observation of ``base_env`` to see what its latent looks like."""
            observation = base_env.observation_spec.zero().expand(self.batch_size)
            with torch.no_grad():
                latent = self._world_model.encode(observation.clone()).get(self.latent_key)
            spec = Unbounded(shape=latent.shape, dtype=latent.dtype, device=self.device)
            return Composite({self.latent_key: spec}, shape=self.batch_size, device=self.device)

        ''',
    )
