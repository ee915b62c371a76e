"""What every test runs under."""

import torch

from torchrl_tdmpc.envs import choose_renderer

# Networks here are tiny: a second thread would cost more than it computes
torch.set_num_threads(1)
# Before a test module imports dm_control
choose_renderer()
