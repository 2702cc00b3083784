"""Programs are compiled and certified once a session, as neither changes."""

from collections.abc import Callable
from functools import cache

import pytest
import torch

from edgeprune.graph import Ablation
from tracr_bridge.catalogue import catalogue
from tracr_bridge.compile import Compiled, compile_program
from tracr_bridge.recover import certify
from tracr_bridge.truth import Truth

torch.set_num_threads(1)


@cache
def _compiled(name: str) -> Compiled:
    return compile_program(catalogue()[name])


@cache
def _truth(name: str, ablation: Ablation) -> Truth:
    return certify(_compiled(name), ablation)


@pytest.fixture(scope="session")
def compiled() -> Callable[[str], Compiled]:
    """The compiled program of a name."""
    return _compiled


@pytest.fixture(scope="session")
def truth() -> Callable[[str, Ablation], Truth]:
    """The certified truth of a program under an ablation."""
    return _truth
