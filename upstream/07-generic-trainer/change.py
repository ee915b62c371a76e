"""``TdMpc2Loss`` in a generic trainer: its policy loss in ``forward``, and ``SoftUpdate`` on it."""

NEEDS = ()
LOSS = "torchrl/objectives/tdmpc2.py"


def change(tree):
    """Let a loss name the module that has its targets, and return the policy loss on request."""
    _find_targets(tree)
    _return_actor_loss(tree.file(LOSS))
    _configure(tree.file("torchrl/trainers/algorithms/configs/objectives.py"))


def _find_targets(tree):
    """``TargetNetUpdater`` looks for parameters where the loss says they are."""
    tree.file("torchrl/objectives/common.py").before(
        "def convert_to_functional(",
        '''
        @property
        def _target_owner(self) -> nn.Module:
            """The module whose children are the source and target parameters."""
            return self

        ''',
    )
    updater = tree.file("torchrl/objectives/utils.py").within("class TargetNetUpdater")
    updater.replace(
        "in loss_module.named_children()",
        "for name, _ in loss_module._target_owner.named_children():",
    )
    updater.replace(
        "getattr(loss_module, _source)", "getattr(loss_module._target_owner, _source)"
    )
    updater.replace(
        "getattr(self.loss_module, name) for name in self._target_names",
        """
        {
            name: getattr(self.loss_module._target_owner, name)
            for name in self._target_names
        },
        """,
    )
    updater.replace(
        "getattr(self.loss_module, name) for name in self._source_names",
        """
        {
            name: getattr(self.loss_module._target_owner, name)
            for name in self._source_names
        },
        """,
    )
    updater.within("def step(").replace(
        "getattr(self.loss_module, name)",
        "getattr(self.loss_module._target_owner, name)",
    )
    tree.file(LOSS).before(
        "def in_keys(",
        '''
        def _target_owner(self) -> nn.Module:
            """The Q ensemble owns the online and the target Q-functions."""
            return self.q_ensemble

        @property
        ''',
    )


def _return_actor_loss(file):
    """``forward`` also returns the policy loss, if asked; a warning says that it will by itself."""
    loss = file.within("class TdMpc2Loss(")
    loss.after(
        "terminated_key: Termination key",
        """
        return_actor_loss: Whether ``forward`` also returns ``loss_actor``, so that a
            generic trainer with one optimizer trains the policy prior. Defaults to
            ``False`` with a warning: v0.17 makes it ``True``.
        """,
    )
    init = loss.within("def __init__(")
    init.after("scale_tau: float", "return_actor_loss: bool | None = None,")
    init.after("self.scale = ", "self.return_actor_loss = return_actor_loss")
    file.within("def out_keys(").after(
        '"loss_value",', '*(["loss_actor"] if self.return_actor_loss else []),'
    )
    forward = file.within("class TdMpc2Loss(").within("def forward(")
    forward.replace(
        "Return the independent",
        '''
        """Return the weighted model-loss components and, if asked, the policy loss.

        Their gradients are disjoint: the policy loss reads detached latents and
        Q-functions, and no other loss reaches the policy prior. One optimizer step on
        their sum differs from
        :class:`~torchrl.trainers.algorithms.TdMpc2OptimizationStepper` in one thing:
        the policy loss reads the Q-functions as they are before the step.
        """
        if self.return_actor_loss is None:
            warnings.warn(
                "TdMpc2Loss.forward returns no policy loss. From v0.17 on it will by "
                "default. Pass return_actor_loss=False to keep this, or True to have "
                "the policy loss now.",
                category=FutureWarning,
            )
            self.return_actor_loss = False
        ''',
    )
    forward.after(
        "_, metadata =",
        """
        actor_loss = {}
        if self.return_actor_loss:
            latents = metadata.get("actor_latents")
            actor_loss["loss_actor"], _ = self.actor_loss_from_latents(latents)
        """,
    )
    forward.after('"loss_value": self.value_coef', "**actor_loss,")
    file.before("from collections.abc import Sequence", "import warnings")


def _configure(file):
    """The configuration class and its factory take the new argument."""
    file.within("class TdMpc2LossConfig(").after(
        "scale_tau: float", "return_actor_loss: bool | None = None"
    )
    make = file.within("def _make_tdmpc2_loss(")
    make.after("scale_tau: float", "return_actor_loss: bool | None = None,")
    make.after("scale_tau=scale_tau", "return_actor_loss=return_actor_loss,")
