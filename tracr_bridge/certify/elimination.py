"""Circuits from which no edge and no group of edges can be taken out: where there is too much to enumerate."""

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
"""Seeded orders in which edges and groups are taken out."""

_AT_ONCE: Final = 4096
"""Moves that are tried at a time."""


def eliminate(judge: Judge, edges: Sequence[Edge], *, seed: int, orders: int = ORDERS) -> list[frozenset[Edge]]:
    """Circuits at which seeded orders of elimination end, all orders run abreast.

    Each order takes edges and groups of edges out one after the other, from all of `edges`, where the rest still
    reproduces, until none can go.

    On the way a few pairs stand for all. Only where an order ends is everything run: a pair on which that fails joins
    the few, and the order starts again. So what is handed back is proved, and most of what is run fails at once.
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
    """Where each order of elimination (`[order, move]`) ends, as far as the judge's first pairs tell.

    At its end nothing can go, which is certain; that what is left reproduces everywhere is not.
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
    """Which moves can be made next, each alone."""
    distinct, of = torch.unique(kept, dim=0, return_inverse=True)
    found = torch.zeros(len(distinct), len(moves), dtype=torch.bool)
    for row, each in zip(found, distinct, strict=True):
        takes = torch.nonzero((moves & each).any(1))[:, 0]
        row[takes] = torch.cat([_reproduces(judge, edges, each & ~moves[some]) for some in takes.split(_AT_ONCE)])
    return found[of]


def _reproduces(judge: Judge, edges: Sequence[Edge], kept: Kept) -> Bool[Tensor, " set"]:
    """Whether each set seems to reproduce the model; equal ones are run once."""
    if not len(kept):
        return torch.zeros(0, dtype=torch.bool)
    distinct, of = torch.unique(kept, dim=0, return_inverse=True)
    return judge.seems_to_reproduce(masks_without(judge.model.graph, edges, ~distinct))[of]


def _edges(edges: Sequence[Edge], row: Tensor) -> frozenset[Edge]:
    return frozenset(edge for edge, keep in zip(edges, row.tolist(), strict=True) if keep)
