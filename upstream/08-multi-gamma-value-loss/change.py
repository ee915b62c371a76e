"""``MultiGammaValueLoss`` and its ``AuxiliaryValueHeads``, with their configurations."""

from pathlib import Path

NEEDS = ()
CONFIGS = "torchrl/trainers/algorithms/configs"
DOCS = "docs/source/reference"


def change(tree):
    """Add the two modules, and name them where TorchRL names its own."""
    for file in ("modules/models/value_heads.py", "objectives/multi_gamma.py"):
        path = f"torchrl/{file}"
        tree.new(path, (Path(__file__).parent / path).read_text())

    models = tree.file("torchrl/modules/models/__init__.py")
    models.after("from .utils import", "from .value_heads import AuxiliaryValueHeads")
    models.after('"ACTModel",', '"AuxiliaryValueHeads",')
    modules = tree.file("torchrl/modules/__init__.py")
    modules.before("    BatchRenorm1d,", "AuxiliaryValueHeads,")
    modules.before('"BatchRenorm1d",', '"AuxiliaryValueHeads",')
    objectives = tree.file("torchrl/objectives/__init__.py")
    objectives.before(
        "from torchrl.objectives.multiagent",
        "from torchrl.objectives.multi_gamma import MultiGammaValueLoss",
    )
    objectives.after('"MAPPOLoss",', '"MultiGammaValueLoss",')

    _add_configs(tree)
    for page, before, name in (
        ("modules_models", "    DreamerActor", "AuxiliaryValueHeads"),
        ("objectives_other", "    ExponentialQuadraticCost", "MultiGammaValueLoss"),
        ("config", "    PPOLossConfig", "MultiGammaValueLossConfig"),
    ):
        if tree.has(f"{DOCS}/{page}.rst"):
            tree.file(f"{DOCS}/{page}.rst").before(before, name)


def _add_configs(tree):
    """A configuration dataclass for each class, in the groups of their kind."""
    modules = tree.file(f"{CONFIGS}/modules.py")
    modules.after("    AdditiveGaussianModule,", "AuxiliaryValueHeads,")
    modules.append(
        '''


        @dataclass
        class AuxiliaryValueHeadsConfig(ConfigBase):
            """Hydra configuration for :class:`~torchrl.modules.AuxiliaryValueHeads`.

            Example:
                >>> from hydra.utils import instantiate
                >>> from torchrl.trainers.algorithms.configs import AuxiliaryValueHeadsConfig
                >>> cfg = AuxiliaryValueHeadsConfig(latent_dim=8, num_heads=2, num_bins=11)
                >>> heads = instantiate(cfg)
                >>> assert heads.num_heads == 2
            """

            latent_dim: int = MISSING
            num_heads: int = MISSING
            num_bins: int = MISSING
            latent_key: Any = "latent"
            logits_key: Any = "value_logits"
            device: Any = None
            _target_: str = (
                "torchrl.trainers.algorithms.configs.modules._make_auxiliary_value_heads"
            )

            def __post_init__(self) -> None:
                """Post-initialization hook for the auxiliary value heads config."""


        def _make_auxiliary_value_heads(
            *, latent_key: Any, logits_key: Any, **kwargs
        ) -> AuxiliaryValueHeads:
            """Build the auxiliary value heads."""
            return AuxiliaryValueHeads(
                latent_key=_normalize_hydra_key(latent_key),
                logits_key=_normalize_hydra_key(logits_key),
                **kwargs,
            )
        '''
    )
    tree.file(f"{CONFIGS}/objectives.py").append(
        '''


        @dataclass
        class MultiGammaValueLossConfig(LossConfig):
            """Hydra configuration for :class:`~torchrl.objectives.MultiGammaValueLoss`."""

            heads: Any = MISSING
            gammas: Any = MISSING
            vmin: float = -10.0
            vmax: float = 10.0
            rho: float = 0.5
            loss_weight: float = 0.5
            bootstrap: str = "primary"
            reduction: str = "mean"
            _target_: str = "torchrl.objectives.MultiGammaValueLoss"

            def __post_init__(self) -> None:
                """Post-initialization hook for the multi-gamma value loss config."""
                super().__post_init__()
        '''
    )
    init = tree.file(f"{CONFIGS}/__init__.py")
    init.after("    AdditiveGaussianModuleConfig,", "AuxiliaryValueHeadsConfig,")
    init.before('"ConvNetConfig",', '"AuxiliaryValueHeadsConfig",')
    init.before("    PPOLossConfig,", "MultiGammaValueLossConfig,")
    init.before('"PPOLossConfig",', '"MultiGammaValueLossConfig",')
    init.after(
        "node=TdMpc2WorldModelConfig)",
        """
        cs.store(
            group="model", name="auxiliary_value_heads", node=AuxiliaryValueHeadsConfig
        )
        """,
    )
    init.before(
        "node=PPOLossConfig)",
        'cs.store(group="loss", name="multi_gamma", node=MultiGammaValueLossConfig)',
    )
