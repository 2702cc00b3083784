"""Finds circuits from which no edge and no tried set of edges can be taken out, where enumeration costs too much."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from edgeprune.errors import promise
from edgeprune.graph import Edge
from edgeprune.groups import Removals, masks_without, removals
from tracr_bridge.certify.behaviours import Kept
from tracr_bridge.certify.faithfulness import Judge

ORDERS: Final = 8
"""Number of seeded orders in which edges and sets of edges are taken out."""

_AT_ONCE: Final = 4096
"""Moves tried at a time. A move takes out one set of edges (`groups.removals`)."""


def eliminate(judge: Judge, edges: Sequence[Edge], *, seed: int, orders: int = ORDERS) -> list[frozenset[Edge]]:
    """Return the circuits at which seeded orders of elimination end. All orders run in the same batches.

    Each order starts from all of `edges` and makes one move after the other, if the rest still reproduces the model,
    until no move is possible.

    Moves are judged on a few pairs. Only the end of an order is run on all pairs: a pair on which it fails joins the
    few, and the order starts again. So every returned circuit is proved faithful, and most trials fail after few pairs.
    """
    rng = np.random.default_rng(seed)
    moves = removals(judge.model.graph, edges)
    ranking = torch.from_numpy(np.stack([rng.permutation(len(moves)) for _ in range(orders)]))
    kept = torch.ones(orders, len(edges), dtype=torch.bool)
    unproved = torch.arange(orders)
    while len(unproved):
        known = len(judge.counterexamples)
        kept[unproved] = _take_out(judge, edges, moves, ranking[unproved])
        ends, end_of = torch.unique(kept, dim=0, return_inverse=True)
        unproved = torch.nonzero(~judge.reproduces(masks_without(judge.model.graph, edges, ~ends))[end_of])[:, 0]
        ended = not len(unproved) or len(judge.counterexamples) > known
        promise(ended, "a pair that fails in one batch fails in another")
    return [_edges(edges, row) for row in torch.unique(kept, dim=0)]


def _take_out(judge: Judge, edges: Sequence[Edge], moves: Removals, ranking: Tensor) -> Kept:
    """Return where each order of elimination (`ranking`, `[order, move]`) ends, judged on a few pairs.

    It is certain that no move is possible there. It is not certain that the rest reproduces the model on all pairs.
    """
    kept = torch.ones(len(ranking), len(edges), dtype=torch.bool)
    while bool((possible := _possible(judge, edges, moves, kept)).any()):
        in_order = possible.gather(1, ranking)
        for step in torch.nonzero(in_order.any(0))[:, 0].tolist():
            trial = kept & ~moves[ranking[:, step]]
            alive = torch.nonzero(in_order[:, step] & (trial != kept).any(1))[:, 0]
            verdict = _reproduces(judge, edges, trial[alive])
            kept[alive[verdict]] = trial[alive[verdict]]
    return kept


def _possible(judge: Judge, edges: Sequence[Edge], moves: Removals, kept: Kept) -> Bool[Tensor, "order move"]:
    """Return which moves are possible next, each alone."""
    distinct, of = torch.unique(kept, dim=0, return_inverse=True)
    found = torch.zeros(len(distinct), len(moves), dtype=torch.bool)
    for row, each in zip(found, distinct, strict=True):
        takes = torch.nonzero((moves & each).any(1))[:, 0]
        row[takes] = torch.cat([_reproduces(judge, edges, each & ~moves[some]) for some in takes.split(_AT_ONCE)])
    return found[of]


def _reproduces(judge: Judge, edges: Sequence[Edge], kept: Kept) -> Bool[Tensor, " set"]:
    """Return whether each set reproduces the model on a few pairs. Equal sets are run once."""
    if not len(kept):
        return torch.zeros(0, dtype=torch.bool)
    distinct, of = torch.unique(kept, dim=0, return_inverse=True)
    return judge.seems_to_reproduce(masks_without(judge.model.graph, edges, ~distinct))[of]


def _edges(edges: Sequence[Edge], row: Tensor) -> frozenset[Edge]:
    return frozenset(edge for edge, keep in zip(edges, row.tolist(), strict=True) if keep)
