"""Settings of all tests."""

import pytest
import torch
from hypothesis import HealthCheck, settings

# A busy machine is no failure.
settings.register_profile("busy-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy-machine")

# Models here are too small for threads to pay, and on a busy machine they wait for each other.
torch.set_num_threads(1)


@pytest.fixture
def drawn_from(monkeypatch):
    """Seeds of all generators that are seeded during a test."""
    seen = set()

    class Noting(torch.Generator):
        def manual_seed(self, seed):
            seen.add(int(seed))
            return super().manual_seed(seed)

    monkeypatch.setattr(torch, "Generator", Noting)
    return seen
