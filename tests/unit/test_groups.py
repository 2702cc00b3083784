"""Sets of edges that are tried together, and what the last stage of Edge Pruning takes out with them."""

from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from pruning import minimax, prune_compiled

from edgeprune import groups
from edgeprune.graph import Edge, Graph
from edgeprune.groups import masks_without, removals
from edgeprune.masks import circuit_mask, edges_of, live_circuit, mask_of
from edgeprune.methods.edge_pruning.final_check import FinalCheck
from edgeprune.methods.edge_pruning.problem import Problem

GRAPH = Graph.transformer(embeddings=("tok", "pos"), layers=2, heads=2)
NAMES = (
    *("tok->a0.h0.q", "pos->a0.h0.q", "tok->a0.h0.k", "pos->a0.h0.k", "tok->a0.h0.v", "tok->a0.h1.v"),
    *("a0.h0->m0", "a0.h1->m0", "tok->m0", "m0->logits", "a0.h0->m1", "m1->logits"),
)
EDGES = sorted(map(Edge.parse, NAMES))


def sets(graph=GRAPH, edges=EDGES):
    return [
        frozenset(str(e) for e, out in zip(edges, row, strict=True) if out) for row in removals(graph, edges).tolist()
    ]


@pytest.mark.parametrize(
    "together",
    [
        {"tok->m0"},
        {"a0.h0->m0", "a0.h1->m0"},
        {"tok->a0.h0.q", "pos->a0.h0.q", "tok->a0.h0.k", "pos->a0.h0.k"},
        {"tok->a0.h0.q", "pos->a0.h0.q"},
        {"tok->a0.h0.q", "pos->a0.h0.q", "tok->a0.h0.k", "pos->a0.h0.k", "tok->a0.h0.v"},
        {"a0.h0->m0", "a0.h0->m1"},
        {"a0.h0->m0", "a0.h0->m1", "a0.h1->m0"},
    ],
    ids=["an edge", "two into one", "queries and keys", "all into one", "inputs", "outputs", "two nodes' outputs"],
)
def test_what_may_go_only_together_is_tried_together(together):
    assert together in sets()


def test_each_set_is_tried_once_small_ones_first_and_none_is_empty():
    found = sets()
    assert len(set(found)) == len(found)
    assert [len(each) for each in found] == sorted(map(len, found))
    assert min(map(len, found)) == 1
    assert removals(GRAPH, []).shape == (0, 0)


IN_GROUPS = [
    *({"tok->a0.h0.q", "pos->a0.h0.q"}, {"tok->a0.h0.k", "pos->a0.h0.k"}, {"tok->a0.h0.v"}, {"tok->a0.h1.v"}),
    *({"a0.h0->m0", "a0.h1->m0", "tok->m0"}, {"a0.h0->m1"}, {"m0->logits", "m1->logits"}),
    {"tok->a0.h0.q", "pos->a0.h0.q", "tok->a0.h0.k", "pos->a0.h0.k"},
    {"tok->a0.h0.q", "pos->a0.h0.q", "tok->a0.h0.k", "pos->a0.h0.k", "tok->a0.h0.v"},
    {"tok->a0.h0.q", "tok->a0.h0.k", "tok->a0.h0.v", "tok->a0.h1.v", "tok->m0"},
    *({"pos->a0.h0.q", "pos->a0.h0.k"}, {"a0.h0->m0", "a0.h0->m1"}, {"a0.h1->m0"}, {"m0->logits"}, {"m1->logits"}),
]
"""Inputs of each destination, queries with keys, all inputs of a head, and the outputs of each source."""


def test_groups_are_the_inputs_and_outputs_of_each_node_each_once():
    found = [{str(EDGES[n]) for n in row.nonzero()[:, 0].tolist()} for row in groups.groups(GRAPH, EDGES)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, IN_GROUPS))
    assert groups.groups(GRAPH, []).shape == (0, 0)


def small_sets(largest):
    return {frozenset(each) for size in range(1, largest + 1) for each in combinations(map(str, EDGES), size)}


@pytest.mark.parametrize(("most", "largest"), [(1, 1), (77, 1), (78, 2), (297, 2), (298, 3)])
def test_small_sets_are_tried_size_by_size_while_they_are_few_and_those_of_one_edge_always(monkeypatch, most, largest):
    """Of twelve edges there are 12 sets of one, 66 of two and 220 of three."""
    monkeypatch.setattr(groups, "SUBSETS", most)
    monkeypatch.setattr(groups, "PAIRS", 0)
    assert set(sets()) == small_sets(largest) | set(map(frozenset, IN_GROUPS))


def test_of_few_edges_every_set_is_tried():
    few = ["tok->m0", "m0->logits", "tok->a0.h0.q"]
    every = {frozenset(each) for size in (1, 2, 3) for each in combinations(few, size)}
    assert set(sets(edges=list(map(Edge.parse, few)))) == every
    assert sets(edges=[Edge.parse("tok->m0")]) == [frozenset(["tok->m0"])]


@pytest.mark.parametrize(("most", "tried"), [(104, False), (105, True)])
def test_all_pairs_of_fifteen_groups_are_tried_or_none(monkeypatch, most, tried):
    monkeypatch.setattr(groups, "SUBSETS", 1)
    pairs = {frozenset(one | other) for one, other in combinations(IN_GROUPS, 2)} if tried else set()
    expected = small_sets(1) | set(map(frozenset, IN_GROUPS)) | pairs
    asked = removals(GRAPH, EDGES, pairs=most)
    monkeypatch.setattr(groups, "PAIRS", most)
    assert set(sets()) == expected and torch.equal(asked, removals(GRAPH, EDGES))


def test_of_many_groups_no_pairs_are_tried(monkeypatch):
    """Their number grows with the square of the number of groups, and each is as wide as all edges."""
    graph = Graph.transformer(embeddings=("embed",), layers=6, heads=6)
    edges = list(graph.edges)
    moves = removals(graph, edges)
    assert len(moves) < len(edges) + len(graph.destinations) + 3 * len(graph.sources)
    few = edges[:40]
    every = removals(graph, few)
    monkeypatch.setattr(groups, "PAIRS", 0)
    assert len(removals(graph, few)) < len(every) < len(removals(graph, few)) + 3000


def test_queries_of_heads_that_share_a_key_are_not_mixed_up():
    graph = Graph.transformer(embeddings=("embed",), layers=1, heads=2, kv_heads=1)
    edges = sorted(map(Edge.parse, ["embed->a0.h0.q", "embed->a0.h1.q", "embed->a0.h0.k", "a0.h1->logits"]))
    assert {"embed->a0.h1.q", "embed->a0.h0.k"} in sets(graph, edges)
    assert {"embed->a0.h0.q", "embed->a0.h0.k"} in sets(graph, edges)


def test_masks_lack_what_is_removed_and_nothing_else():
    removed = removals(GRAPH, EDGES)
    for mask, row in zip(masks_without(GRAPH, EDGES, removed), removed.tolist(), strict=True):
        assert edges_of(GRAPH, mask > 0) == {e for e, out in zip(EDGES, row, strict=True) if not out}


def final_check(program, ablation):
    generator = torch.Generator().manual_seed(0)
    return FinalCheck(Problem.of(program.model, program.dataset, ablation, "worst"), generator, 16384)


NONE = torch.zeros(2, 0, dtype=torch.long)


@pytest.mark.parametrize("name", ["end_pair", "ignored_input", "lengths_agree", "marked_end"])
def test_groups_that_may_go_only_together_are_taken_out(compiled, truth, name):
    """From all structural edges, of which no more is known than that they are right."""
    program, true = compiled(name), truth(name, "zero")
    check = final_check(program, "zero")
    mask = mask_of(program.model.graph, program.model.structural)
    assert check.without_superfluous(mask, NONE) in {circuit.edges for circuit in true.certificate.circuits}


def test_nothing_is_taken_out_of_a_true_circuit(compiled, truth):
    for ablation in ("zero", "resample"):
        true = truth("seldom_together", ablation).circuit
        check = final_check(compiled("seldom_together"), ablation)
        assert check.without_superfluous(mask_of(true.graph, true.edges), NONE) == true.edges


def test_a_removal_that_is_wrong_on_one_pair_in_a_thousand_is_not_made(compiled, truth, monkeypatch):
    """Few inputs do not show it; all that are checked do."""
    monkeypatch.setattr("edgeprune.methods.edge_pruning.final_check._FIRST", 1)
    true = truth("seldom_together", "resample").circuit
    check = final_check(compiled("seldom_together"), "resample")
    assert check.without_superfluous(mask_of(true.graph, true.edges), NONE) == true.edges
    less = SimpleNamespace(**{**vars(check), "count": 1})
    fewer = FinalCheck(**vars(less))
    assert fewer.without_superfluous(mask_of(true.graph, true.edges), NONE) < true.edges


@pytest.mark.parametrize(
    "settings", [{"joint_removals": False}, {"masked": "edges"}, {"masked": "edges", "joint_removals": False}]
)
def test_masks_on_destinations_and_joint_removals_each_find_a_uniform_head(compiled, truth, settings):
    program = compiled("end_pair")
    found = prune_compiled(program, "zero", minimax(**settings)).circuit
    assert (found == truth("end_pair", "zero").circuit) == (len(settings) == 1)


def test_no_dead_edge_is_found(compiled):
    for name in ("end_pair", "xproportion"):
        program = compiled(name)
        found = prune_compiled(program, "zero", minimax(steps=60)).circuit
        assert live_circuit(found.graph, "zero", circuit_mask(found) > 0) == found
