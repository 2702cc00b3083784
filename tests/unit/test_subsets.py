import itertools

from edgeprune.graph import Edge, Graph, live_edges
from tracr_bridge.subsets import live_subsets

NAMES = ["tok->a0.h0.q", "tok->a0.h0.v", "a0.h0->m0", "tok->m0", "m0->logits", "a0.h0->logits", "pos->m1"]
EDGES = [Edge.parse(name) for name in NAMES]


def test_live_subsets_are_those_that_a_search_of_all_subsets_finds():
    subsets = live_subsets(EDGES, limit=1 << 10)
    assert subsets is not None
    built = {frozenset(e for e, keep in zip(EDGES, row, strict=True) if keep) for row in subsets.tolist()}
    assert len(built) == len(subsets)
    every = (frozenset(s) for size in range(len(EDGES) + 1) for s in itertools.combinations(EDGES, size))
    graph = Graph.transformer(embeddings=("tok", "pos"), layers=2, heads=1)
    assert built == {s for s in every if live_edges(graph, s) == s}


def test_too_many_subsets_are_not_built():
    assert live_subsets(EDGES, limit=10) is None
    wide = [Edge.parse(f"a0.h{head}->logits") for head in range(40)]
    assert live_subsets(wide, limit=1 << 16) is None
