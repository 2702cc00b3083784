"""Circuits of the edges that score highest: by number of edges, by number of live edges, or by a tolerance."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from edgeprune.graph import Graph
from edgeprune.masks import edge_exists, live
from edgeprune.methods.circuit_loss import CircuitLoss

Scores = Float[Tensor, "source destination"]
Kept = Bool[Tensor, "source destination"]


def keep_most(graph: Graph, scores: Scores, edges: int) -> Kept:
    """Return the `edges` edges that score highest; among equal scores, the first ones."""
    exists = edge_exists(graph)
    order = torch.sort(scores[exists], descending=True, stable=True).indices
    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[order[:edges]] = True
    return torch.zeros_like(exists).masked_scatter(exists, kept)


def keep_most_alive(graph: Graph, scores: Scores, edges: int) -> Kept:
    """Return the top-scoring edges of which at most `edges` are live, without the dead ones.

    There may be fewer than `edges`, because one more edge can bring several to life.
    """
    low, high = 0, graph.total
    while low < high:  # the more edges are kept, the more are live
        middle = (low + high + 1) // 2
        fits = int(live(graph, keep_most(graph, scores, middle)).sum()) <= edges
        low, high = (middle, high) if fits else (low, middle - 1)
    return live(graph, keep_most(graph, scores, low))


def keep_within(loss: CircuitLoss, scores: Scores, tolerance: float) -> Kept:
    """Return the fewest top-scoring edges whose loss is within the tolerance, without dead edges; all if none is.

    This is a bisection that assumes that the loss falls with every edge. Where it does not, fewer edges may suffice.
    """
    graph, low, high = loss.graph, 0, loss.graph.total
    while low < high:
        middle = (low + high) // 2
        kept = live(graph, keep_most(graph, scores, middle))
        within = float(loss(kept[None].float(), limit=tolerance)[0]) <= tolerance
        low, high = (low, middle) if within else (middle + 1, high)
    return live(graph, keep_most(graph, scores, high))
