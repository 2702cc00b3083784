"""The search by behaviours on shipped programs, its parts, and the groups that elimination takes out."""

import itertools

import numpy as np
import pytest
import torch

from edgeprune.data import Dataset
from edgeprune.graph import Edge, Graph, Node
from edgeprune.groups import masks_without, removals
from edgeprune.masks import mask_of
from edgeprune.metrics.distances import ATOL
from tracr_bridge.certify import behaviours
from tracr_bridge.certify.behaviours import minimal_circuits
from tracr_bridge.certify.faithfulness import Judge
from tracr_bridge.certify.node_order import in_order
from tracr_bridge.compile.model import TracrModel
from tracr_bridge.compile.weights import HeadWeights, LayerWeights, Weights


def judge_of(compiled, name: str, ablation="zero") -> Judge:
    return Judge(compiled(name).model, compiled(name).dataset, ablation, atol=ATOL)


@pytest.mark.parametrize(
    ("name", "ablation"),
    [("hist", "zero"), ("reverse", "resample"), ("xproportion", "mean"), ("induction", "zero"), ("twin_heads", "zero")],
)
@pytest.mark.parametrize("unmerged", [0, 4])
def test_circuits_are_the_same_however_they_are_enumerated(compiled, truth, monkeypatch, name, ablation, unmerged):
    monkeypatch.setattr(behaviours, "_FEW", 0)
    monkeypatch.setattr(behaviours, "_UNMERGED", unmerged)
    found = minimal_circuits(judge_of(compiled, name, ablation), sorted(compiled(name).model.structural))
    assert found is not None
    assert set(found.circuits) == {circuit.edges for circuit in truth(name, ablation).certificate.circuits}


def test_a_search_costs_no_more_than_it_may(compiled, monkeypatch):
    edges = sorted(compiled("reverse").model.structural)
    judge = judge_of(compiled, "reverse")
    found = minimal_circuits(judge, edges)
    spent = judge.rows
    assert found is not None and len(found.circuits) == 1
    for limit, enough in ((spent, True), (spent // 4, False)):
        monkeypatch.setattr(behaviours, "ROW_BUDGET", limit)
        again = judge_of(compiled, "reverse")
        assert (minimal_circuits(again, edges) is not None) == enough
        assert again.rows <= 2 * limit
    monkeypatch.undo()
    for name in ("WIDEST", "MOST_CHOICES"):
        monkeypatch.setattr(behaviours, name, 2)
        assert minimal_circuits(judge_of(compiled, "reverse"), edges) is None
        monkeypatch.undo()


def test_a_second_search_by_the_same_judge_has_a_budget_of_its_own(compiled, monkeypatch):
    edges = sorted(compiled("reverse").model.structural)
    judge = judge_of(compiled, "reverse")
    minimal_circuits(judge, edges)
    monkeypatch.setattr(behaviours, "ROW_BUDGET", 2 * judge.rows)
    assert all(minimal_circuits(judge, edges) is not None for _ in range(4))


@pytest.mark.parametrize("name", ["reverse", "induction", "detect_pattern"])
def test_edges_that_are_in_every_circuit_are_found_at_single_places(compiled, truth, name):
    model = compiled(name).model
    search = behaviours._Search(judge_of(compiled, name), sorted(model.structural))
    before = search.undecided
    for _ in range(12):
        search.search_place(search.next_place())
    necessary = {edge for edge, is_ in zip(search._edges, search._necessary.tolist(), strict=True) if is_}
    circuits = [circuit.edges for circuit in truth(name, "zero").certificate.circuits]
    assert necessary and search.undecided == before - len(necessary)
    assert all(necessary <= circuit for circuit in circuits)


def test_what_was_learned_at_places_leaves_every_circuit_in(compiled, truth):
    """Also that of choices made before more edges were known to be necessary."""
    for name in ("shuffle_dyck1", "twin_heads"):
        edges = sorted(compiled(name).model.structural)
        search = behaviours._Search(judge_of(compiled, name), edges)
        for _ in range(6):
            search.search_place(search.next_place())
        for circuit in truth(name, "zero").certificate.circuits:
            row = torch.tensor([[edge in circuit.edges for edge in edges]])
            for steps in search._places:
                at = torch.zeros(1, dtype=torch.long)
                for step, unit in zip(steps, search._units, strict=True):
                    chosen = torch.zeros_like(row)
                    chosen[:, list(unit.edges)] = row[:, list(unit.edges)]
                    at = step.after(at, chosen)
                    assert int(at) >= 0
                    at = at[:1]


def test_places_are_single_scored_positions_each_asked_once_before_any_is_again(compiled):
    judge = judge_of(compiled, "hist")
    search = behaviours._Search(judge, sorted(compiled("hist").model.structural))
    places = [search.next_place() for _ in range(judge.pairs)]
    assert all(int(place.scored.sum()) == 1 for place in places)
    assert len({int(place.pairs) for place in places}) == judge.pairs
    lengths = [int(judge.dataset.group[judge.rows_of_pairs[0, int(place.pairs)]]) for place in places[:4]]
    assert len(set(lengths)) == min(4, len(judge.dataset.group.unique()))  # one of each length after the other


def test_the_subset_minimal_sets_of_each_group_are_kept():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        sets = torch.rand(12, 4, generator=generator) < 0.5
        group = torch.randint(3, (12,), generator=generator)
        kept = behaviours._minimal_of_each(sets, group).tolist()
        rows = [(frozenset(row.nonzero()[:, 0].tolist()), g) for row, g in zip(sets, group.tolist(), strict=True)]
        expected = {(row, g) for row, g in rows if not any(other < row and g == h for other, h in rows)}
        assert {rows[number] for number in kept} == expected and len(kept) == len(expected)
    assert len(behaviours._minimal_of_each(torch.zeros(0, 4, dtype=torch.bool), torch.zeros(0, dtype=torch.long))) == 0


def test_many_sets_of_one_group_are_compared_some_at_a_time_and_too_many_are_not(monkeypatch):
    sets = torch.arange(1, 1 << 10)[:, None] >> torch.arange(10) & 1 == 1
    group = torch.zeros(len(sets), dtype=torch.long)
    for compared in (1, 100, 1 << 10):
        monkeypatch.setattr(behaviours, "_COMPARED", compared)
        assert behaviours._minimal_of_each(sets, group).tolist() == [(1 << n) - 1 for n in range(10)]
    monkeypatch.setattr(behaviours, "_EQUAL", len(sets) - 1)
    with pytest.raises(behaviours._GaveUp):
        behaviours._minimal_of_each(sets, group)


def test_more_circuits_than_anyone_would_list_are_too_many(compiled, truth, monkeypatch):
    edges = sorted(compiled("shuffle_dyck1").model.structural)
    monkeypatch.setattr(behaviours, "MOST_CIRCUITS", 1)
    assert minimal_circuits(judge_of(compiled, "shuffle_dyck1"), edges) is None


def idle_chain(scale: float) -> TracrModel:
    """Outputs are the token's column; m0 writes another, which m1 reads, and makes nothing of: its ReLU is at 0."""
    column = np.eye(3, dtype=np.float32)
    none = HeadWeights(*[np.zeros((3, 1), np.float32)] * 3, np.zeros((1, 3), np.float32))
    first = LayerWeights((none,), column[:, :1] * scale, column[1:2])
    second = LayerWeights((none,), -column[:, 1:2], column[2:])
    token = np.zeros((4, 3), np.float32)
    token[:, 0] = range(4)
    unembed = column[:, :1] + column[:, 2:]
    weights = Weights(token, np.zeros((2, 3), np.float32), (first, second), unembed, causal=False, pad_id=3)
    return TracrModel(weights, token_ids=[0, 1, 2])


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0])
def test_what_waits_to_be_read_is_part_of_a_behaviour(monkeypatch, scale):
    """tok->m0 and m0->m1 change nothing that m1 writes, but something has to read it once they are kept."""
    model = idle_chain(scale)
    tokens, scored = torch.tensor([[0, 1], [0, 2]]), torch.tensor([[False, True]] * 2)
    dataset = Dataset(tokens, scored, model(tokens), torch.zeros(2, dtype=torch.long), logits=False)
    edges = [Edge.parse(name) for name in ("tok->m0", "m0->m1", "m1->logits", "tok->logits")]
    assert set(edges) == model.structural
    monkeypatch.setattr(behaviours, "_FEW", 0)
    monkeypatch.setattr(behaviours, "_UNMERGED", 0)
    monkeypatch.setattr(behaviours, "_IN_VAIN", 0)
    found = minimal_circuits(Judge(model, dataset, "zero", atol=ATOL), edges)
    assert found is not None and found.circuits == [frozenset({edges[3]})]


GRAPHS = [
    Graph.transformer(embeddings=("tok", "pos"), layers=2, heads=2),
    Graph.transformer(embeddings=("embed",), layers=2, heads=4, kv_heads=2),
]


@pytest.mark.parametrize("graph", GRAPHS, ids=["own keys", "shared keys"])
@pytest.mark.parametrize("seed", range(10))
def test_units_come_after_what_they_read_and_have_every_edge_once(graph, seed):
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(len(graph.edges), generator=generator) < 0.3
    edges = [edge for edge, keep in zip(graph.edges, kept.tolist(), strict=True) if keep]
    units = in_order(graph, edges)
    assert sorted(itertools.chain.from_iterable(unit.edges for unit in units)) == list(range(len(edges)))
    past = set[Node]()
    for number, unit in enumerate(units):
        read = {edges[edge].source for edge in unit.edges}
        later = {node for each in units[number:] for node in each.sources}
        assert read.isdisjoint(later)
        assert past.isdisjoint(unit.sources)
        past |= unit.sources
        # Whatever computes with the same keys or values is in one unit.
        for edge in unit.edges:
            assert {n for n in graph.readers[edges[edge].destination] if n.kind != "logits"} <= unit.sources
        assert unit.is_logits == (number == len(units) - 1 and any(e.destination.kind == "logits" for e in edges))


@pytest.mark.parametrize("graph", GRAPHS, ids=["own keys", "shared keys"])
@pytest.mark.parametrize("seed", range(20))
def test_of_the_units_that_may_come_next_the_one_comes_after_which_the_fewest_nodes_wait(graph, seed):
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(len(graph.edges), generator=generator) < 0.15 + 0.02 * seed
    edges = [edge for edge, keep in zip(graph.edges, kept.tolist(), strict=True) if keep]
    units = in_order(graph, edges)

    def read_by(some) -> set[Node]:
        return {edges[edge].source for each in some for edge in each.edges}

    for number, unit in enumerate(units):
        left = units[number:]
        later = {node for each in left for node in each.sources}
        ready = [each for each in left if read_by([each]).isdisjoint(later)]

        def waiting(each, number=number, left=left) -> int:
            past = {node for other in (*units[:number], each) for node in other.sources}
            return len(past & read_by(other for other in left if other is not each))

        assert not unit.is_logits or len(left) == 1
        assert unit.is_logits or waiting(unit) == min(waiting(each) for each in ready if not each.is_logits)


def test_groups_hold_what_may_go_only_together():
    graph = Graph.transformer(embeddings=("tok", "pos"), layers=1, heads=2)
    edges = list(graph.edges)

    def named(*names: str) -> frozenset[str]:
        return frozenset(name for name in map(str, edges) if any(part in name for part in names))

    moves = [frozenset(str(edges[n]) for n in row.nonzero()[:, 0].tolist()) for row in removals(graph, edges)]
    assert len(set(moves)) == len(moves) and frozenset() not in moves
    assert [len(move) for move in moves] == sorted(map(len, moves))
    matched = named("->a0.h0.q", "->a0.h0.k")
    inputs, outputs = named("->a0.h1."), named("tok->")
    assert len(matched) == 4 and {matched, inputs, outputs} <= set(moves)
    assert {frozenset({str(edge)}) for edge in edges} <= set(moves)
    assert {matched | inputs, inputs | outputs, named("a0.h0->", "a0.h1->")} <= set(moves)
    assert frozenset({"tok->m0", "pos->m0"}) in moves
    masks = masks_without(graph, edges, removals(graph, edges))
    for move, mask in zip(moves, masks, strict=True):
        assert torch.equal(mask, mask_of(graph, [edge for edge in edges if str(edge) not in move]))


def test_groups_of_shared_keys_are_those_of_every_head_that_reads_them():
    graph = Graph.transformer(embeddings=("embed",), layers=1, heads=4, kv_heads=2)
    edges = [Edge.parse(name) for name in ("embed->a0.h0.q", "embed->a0.h1.q", "embed->a0.h0.k", "a0.h1->logits")]
    moves = {frozenset(str(edges[n]) for n in row.nonzero()[:, 0].tolist()) for row in removals(graph, edges)}
    assert frozenset({"embed->a0.h1.q", "embed->a0.h0.k"}) in moves
    assert frozenset({"embed->a0.h0.q", "embed->a0.h0.k"}) in moves
