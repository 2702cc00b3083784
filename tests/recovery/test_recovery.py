"""Edge Pruning recovers every program's certified circuit exactly, in its one configuration."""

import pytest

from edgeprune.errors import DegenerateProgram
from edgeprune.graph import compare
from edgeprune.methods import METHODS
from tracr_bridge.catalogue import catalogue
from tracr_bridge.recover import closest, reconcile

CASES = [(name, ablation) for name in catalogue() for ablation in ("zero", "resample")]
SMALL = ("reverse", "xproportion", "hist", "shift_by", "induction", "pair_balance")


def assert_recovers(compiled, truth, name, ablation, seed):
    program = compiled(name)
    try:
        certified = truth(name, ablation)
    except DegenerateProgram:
        assert (name, ablation) == ("length", "resample")  # nothing but the length decides its output
        return
    found = METHODS["edge-pruning"](program.model, program.dataset, ablation, seed=seed).circuit
    certified = reconcile(certified, found)
    comparison = compare(found, closest(certified, found))
    assert (sorted(map(str, comparison.missing)), sorted(map(str, comparison.extra))) == ([], [])


@pytest.mark.parametrize("ablation", ["zero", "resample"])
@pytest.mark.parametrize("name", SMALL)
def test_edge_pruning_is_exact(compiled, truth, name, ablation):
    assert_recovers(compiled, truth, name, ablation, 0)


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("name", "ablation"), CASES)
def test_edge_pruning_is_exact_at_every_seed(compiled, truth, name, ablation, seed):
    assert_recovers(compiled, truth, name, ablation, seed)
