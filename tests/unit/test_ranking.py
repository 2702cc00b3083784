"""Circuits of the edges that score highest: how many of them, how many alive, and how few are good enough."""

import math

import pytest
import torch

from edgeprune.graph import Graph
from edgeprune.masks import edge_exists, live
from edgeprune.methods.circuit_loss import CircuitLoss
from edgeprune.ranking import keep_most, keep_most_alive, keep_within

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


@pytest.mark.parametrize("seed", range(5))
def test_as_many_of_the_highest_are_kept_as_leave_so_many_alive(seed):
    scores = torch.rand(edge_exists(GRAPH).shape, generator=torch.Generator().manual_seed(seed))
    alive = [int(live(GRAPH, keep_most(GRAPH, scores, edges)).sum()) for edges in range(GRAPH.total + 1)]
    for asked in range(GRAPH.total + 1):
        kept = keep_most_alive(GRAPH, scores, asked)
        most = max(edges for edges in range(GRAPH.total + 1) if alive[edges] <= asked)
        assert torch.equal(kept, live(GRAPH, keep_most(GRAPH, scores, most)))


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
