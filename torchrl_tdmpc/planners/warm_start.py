"""The transform that carries a plan from one agent step to the next."""

from __future__ import annotations

from tensordict import NestedKey
from torchrl.data import Composite, TensorSpec
from torchrl.envs import TensorDictPrimer

__all__ = ["WarmStart"]


class WarmStart(TensorDictPrimer):
    """Zeros for the plan's mean at each reset, in an environment that the planner can act in.

    Args:
        mean_key: where the mean is carried.
        mean_spec: of the mean.
        action_key: where the planner writes the action.

    Raises:
        ValueError: once the environment is known: its actions have another size than the mean's, or
            other bounds than [-1, 1].
    """

    def __init__(self, mean_key: NestedKey, mean_spec: TensorSpec, action_key: NestedKey):
        super().__init__({mean_key: mean_spec}, default_value=0.0, expand_specs=True)
        self.action_key = action_key
        self.action_dim = mean_spec.shape[-1]

    def transform_input_spec(self, input_spec: Composite) -> Composite:
        """Add the mean to the state, and look at the action."""
        spec = input_spec["full_action_spec"].get(self.action_key, None)
        if spec is not None:
            self._refuse(spec)
        return super().transform_input_spec(input_spec)

    def _refuse(self, spec: TensorSpec) -> None:
        if not spec.shape or spec.shape[-1] != self.action_dim:
            raise ValueError(
                f"the environment's action has shape {list(spec.shape)}; the planner gives "
                f"[..., {self.action_dim}]."
            )
        low, high = (getattr(spec.space, name, None) for name in ("low", "high"))
        if low is None or not ((low == -1).all() and (high == 1).all()):
            ends = "unbounded" if low is None else f"in {[low.min().item(), high.max().item()]}"
            raise ValueError(
                f"the environment's actions are {ends}; the planner gives actions in [-1, 1], so "
                "scale them: make_task does, and so does TorchRL's ActionScaling."
            )
