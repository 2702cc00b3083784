"""The paper's objective on compiled programs: which it recovers, in its one configuration, is a golden table."""

import json
from pathlib import Path

import pytest
from pruning import prune_compiled

from edgeprune.methods.edge_pruning.configurations import COMPILED
from tracr_bridge.compile.catalogue import catalogue
from tracr_bridge.recovery import recover

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "paper.json").read_text())
"""Whether the circuit found at seed 0 is exact, and edges in all (`benchmarks/recover.py --method edge-pruning`)."""

SMALL = 13
"""Edges of the largest graphs that are run again; the others take from seconds to minutes each."""

QUICK = ("caesar",)

CASES = [
    pytest.param(name, ablation, id=f"{name}-{ablation}", marks=[] if name in QUICK else pytest.mark.sweep)
    for name, of_program in GOLDEN.items()
    for ablation, (_, edges) in of_program.items()
    if edges <= SMALL
]


def test_every_program_is_in_the_table():
    assert GOLDEN.keys() == catalogue().keys()


@pytest.mark.parametrize(("name", "ablation"), CASES)
def test_a_program_neither_leaves_the_table_nor_joins_it(compiled, truth, name, ablation):
    program = compiled(name)
    found = prune_compiled(program, ablation, COMPILED).circuit
    exact, edges = GOLDEN[name][ablation]
    assert edges == program.model.graph.total
    assert recover.assess(truth(name, ablation), found).comparison.exact == exact
