"""Settings of all tests."""

import torch
from hypothesis import HealthCheck, settings

# A busy machine is no failure.
settings.register_profile("busy-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy-machine")

# Models here are too small for threads to pay, and on a busy machine they wait for each other.
torch.set_num_threads(1)
