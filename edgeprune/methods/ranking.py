"""Circuits of the edges that score highest: so many of them, so many that are alive, or as few as are good enough."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from edgeprune.graph import Graph
from edgeprune.masks import edge_exists, live
from edgeprune.methods.circuit_loss import CircuitLoss

Scores = Float[Tensor, "source destination"]
Kept = Bool[Tensor, "source destination"]


def keep_most(graph: Graph, scores: Scores, edges: int) -> Kept:
    """The so many edges that score highest; of those that score alike, the first."""
    exists = edge_exists(graph)
    order = torch.sort(scores[exists], descending=True, stable=True).indices
    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[order[:edges]] = True
    return torch.zeros_like(exists).masked_scatter(exists, kept)


def keep_most_alive(graph: Graph, scores: Scores, edges: int) -> Kept:
    """The edges that score highest, of which so many are alive, or fewer where one more brings several to life."""
    low, high = 0, graph.total
    while low < high:  # the more are kept, the more are alive
        middle = (low + high + 1) // 2
        fits = int(live(graph, keep_most(graph, scores, middle)).sum()) <= edges
        low, high = (middle, high) if fits else (low, middle - 1)
    return live(graph, keep_most(graph, scores, low))


def keep_within(loss: CircuitLoss, scores: Scores, tolerance: float) -> Kept:
    """The fewest of the edges that score highest at which the loss is within a tolerance, dead ones apart.

    Found by bisection, as if the loss fell with every edge: fewer may do where it does not. All edges where none do.
    """
    graph, low, high = loss.graph, 0, loss.graph.total
    while low < high:
        middle = (low + high) // 2
        kept = live(graph, keep_most(graph, scores, middle))
        within = float(loss(kept[None].float(), limit=tolerance)[0]) <= tolerance
        low, high = (low, middle) if within else (middle + 1, high)
    return live(graph, keep_most(graph, scores, high))
