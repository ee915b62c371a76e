"""What every test runs under."""

import os

# Networks here are tiny, and tests run side by side: a second thread would wait more than compute.
# Processes that tests start inherit it, so it is set before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

from torchrl_tdmpc.envs import choose_renderer

# Before a test module imports dm_control
choose_renderer()
