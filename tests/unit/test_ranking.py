"""Circuits of the edges that score highest: how many of them, how many alive, and how few are good enough."""

import math

import pytest
import torch

from edgeprune.graph import Edge, Graph
from edgeprune.masks import edge_exists, live
from edgeprune.methods.circuit_loss import CircuitLoss
from edgeprune.methods.ranking import keep_most, keep_most_alive, keep_within

GRAPH = Graph.transformer(embeddings=("embed",), layers=2, heads=2)


def test_of_edges_that_score_alike_the_first_are_kept_and_none_that_is_not_there():
    graph = Graph.transformer(embeddings=("embed",), layers=1, heads=1)
    exists = edge_exists(graph)
    scores = torch.where(exists, 1.0, 9.0)
    scores[0, 1] = -math.inf
    kept = keep_most(graph, scores, 3)
    assert kept.sum() == 3 and not kept[0, 1] and not (kept & ~exists).any()
    assert torch.equal(kept[exists].nonzero()[:, 0], torch.tensor([0, 2, 3]))
    assert torch.equal(keep_most(graph, scores, graph.total), exists)


def test_of_many_edges_that_score_alike_the_first_are_kept():
    """So many that a sort which is not asked to be stable is not."""
    exists = edge_exists(GRAPH)
    scores = torch.zeros(exists.shape)
    scores[exists] = torch.arange(GRAPH.total).float() % 3
    ranked = sorted(exists.nonzero().tolist(), key=lambda cell: -float(scores[*cell]))
    for edges in range(GRAPH.total + 1):
        assert keep_most(GRAPH, scores, edges).nonzero().tolist() == sorted(ranked[:edges])


@pytest.mark.parametrize("seed", range(5))
def test_as_many_of_the_highest_are_kept_as_leave_so_many_alive(seed):
    scores = torch.rand(edge_exists(GRAPH).shape, generator=torch.Generator().manual_seed(seed))
    alive = [int(live(GRAPH, keep_most(GRAPH, scores, edges)).sum()) for edges in range(GRAPH.total + 1)]
    for asked in range(GRAPH.total + 1):
        kept = keep_most_alive(GRAPH, scores, asked)
        most = max(edges for edges in range(GRAPH.total + 1) if alive[edges] <= asked)
        assert torch.equal(kept, live(GRAPH, keep_most(GRAPH, scores, most)))


class Missing(CircuitLoss):
    """Loses 1 for every edge that is gone."""

    graph = GRAPH

    def __init__(self) -> None:
        self.limits = set()

    def __call__(self, masks, *, limit=math.inf):
        self.limits.add(limit)
        return self.graph.total - masks.flatten(1).sum(1)


@pytest.mark.fakes
@pytest.mark.parametrize("seed", range(2))
def test_a_loss_at_the_tolerance_is_within_it_and_no_circuit_is_run_beyond(seed):
    """From no edges at all, though the first of them would live alone, to all of them."""
    scores = torch.rand(edge_exists(GRAPH).shape, generator=torch.Generator().manual_seed(seed))
    scores[GRAPH.position(Edge.parse("embed->logits"))] = 2
    alive = [live(GRAPH, keep_most(GRAPH, scores, edges)) for edges in range(GRAPH.total + 1)]
    for tolerance in range(GRAPH.total + 1):
        loss = Missing()
        fewest = next(kept for kept in alive if GRAPH.total - int(kept.sum()) <= tolerance)
        assert torch.equal(keep_within(loss, scores, tolerance), fewest)
        assert loss.limits == {tolerance}
    assert torch.equal(keep_within(Missing(), scores, -1), edge_exists(GRAPH))


def test_as_few_of_the_highest_are_kept_as_are_within_the_tolerance(compiled, truth):
    """Of scores that put the true edges first, those are kept, and nothing else."""
    program = compiled("xproportion")
    true = truth("xproportion", "zero").circuit
    loss = CircuitLoss(program.model, program.dataset, "zero", inputs=999, batch_size=64, seed=0)
    graph = program.model.graph
    scores = torch.rand(edge_exists(graph).shape, generator=torch.Generator().manual_seed(0))
    for edge in true.edges:
        scores[graph.position(edge)] += 1
    kept = keep_within(loss, scores, 1e-4)
    assert {(int(row), int(column)) for row, column in kept.nonzero()} == set(map(graph.position, true.edges))
