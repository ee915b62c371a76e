"""What acts: the MPPI planner and the latent environment it plans in."""

from torchrl_tdmpc.planners.latent_env import LatentEnv
from torchrl_tdmpc.planners.plan import Plan, PlanDraws
from torchrl_tdmpc.planners.settings import default_iterations
from torchrl_tdmpc.planners.tdmpc2 import TDMPC2Planner

__all__ = ["LatentEnv", "Plan", "PlanDraws", "TDMPC2Planner", "default_iterations"]
