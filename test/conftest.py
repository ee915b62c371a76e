"""What every test runs under."""

import torch

# Networks here are tiny: a second thread would cost more than it computes
torch.set_num_threads(1)
