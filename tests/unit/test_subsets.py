import itertools

import pytest

from edgeprune.graph import Edge, Graph, live_edges
from tracr_bridge.subsets import live_subsets

NAMES = ["tok->a0.h0.q", "tok->a0.h0.v", "a0.h0->m0", "tok->m0", "m0->logits", "a0.h0->logits", "pos->m1"]
EDGES = [Edge.parse(name) for name in NAMES]
GRAPH = Graph.transformer(embeddings=("tok", "pos"), layers=2, heads=1)
SHARED = Graph.transformer(embeddings=("embed",), layers=1, heads=4, kv_heads=2)
OF_SHARED = [
    *("embed->a0.h0.q", "embed->a0.h3.q", "embed->a0.h1.k", "embed->a0.h1.v", "embed->a0.h0.v"),
    *("a0.h1->logits", "a0.h2->m0", "a0.h3->logits", "m0->logits"),
]


@pytest.mark.parametrize(("graph", "edges"), [(GRAPH, EDGES), (SHARED, list(map(Edge.parse, OF_SHARED)))])
def test_live_subsets_are_those_that_a_search_of_all_subsets_finds(graph, edges):
    subsets = live_subsets(graph, edges, limit=1 << 10)
    assert subsets is not None
    built = {frozenset(e for e, keep in zip(edges, row, strict=True) if keep) for row in subsets.tolist()}
    assert len(built) == len(subsets)
    every = (frozenset(s) for size in range(len(edges) + 1) for s in itertools.combinations(edges, size))
    assert built == {s for s in every if live_edges(graph, s) == s}


def test_too_many_subsets_are_not_built():
    assert live_subsets(GRAPH, EDGES, limit=10) is None
    wide = Graph.transformer(embeddings=("tok", "pos"), layers=1, heads=40)
    assert live_subsets(wide, [Edge.parse(f"a0.h{head}->logits") for head in range(40)], limit=1 << 16) is None
