"""Sets of edges to remove together: if only one of them is removed, a circuit may compute something else."""

from collections.abc import Collection, Iterator, Sequence
from itertools import combinations
from math import comb
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from edgeprune.graph import Edge, Graph

SUBSETS: Final = 4096
"""Largest number of small sets tried; sets of one edge are always tried, larger ones if they fit in this number."""

PAIRS: Final = 1 << 14
"""Largest number of pairs of groups tried; if there are more pairs, none is tried."""

Removals = Bool[Tensor, "removal edge"]
"""Sets of edges to remove from a circuit, one set per row; True removes the edge."""


def groups(graph: Graph, edges: Sequence[Edge]) -> Removals:
    """Return the groups: all edges into each destination; per node, its queries and keys, all inputs, all outputs."""
    return _as_rows(_groups(graph, edges), len(edges))


def removals(graph: Graph, edges: Sequence[Edge], *, pairs: int | None = None) -> Removals:
    """Return the sets of edges to try to remove from a circuit of `edges`, smallest sets first.

    These are all sets of one edge; all sets of two, three and so on while there are at most `SUBSETS` in total; all
    `groups`; and every union of two groups, if there are at most `pairs` of these (`PAIRS` if None).
    """
    single = _groups(graph, edges)
    double = combinations(single, 2) if comb(len(single), 2) <= (PAIRS if pairs is None else pairs) else ()
    rows = _as_rows({*single, *(one | other for one, other in double)}, len(edges))
    if not edges:
        return rows
    found = torch.unique(torch.cat([rows, *_small_sets(len(edges))]), dim=0)
    return found[torch.argsort(found.sum(1), stable=True)]


def _groups(graph: Graph, edges: Sequence[Edge]) -> list[frozenset[int]]:
    found: dict[frozenset[int], None] = {}
    for node in graph.destinations:
        found[frozenset(n for n, edge in enumerate(edges) if edge.destination == node)] = None
    for node in graph.sources:
        inputs = [n for n, edge in enumerate(edges) if node in graph.readers[edge.destination]]
        matched = [n for n in inputs if edges[n].destination.port in ("q", "k")]
        outputs = [n for n, edge in enumerate(edges) if edge.source == node]
        found |= {frozenset(group): None for group in (matched, inputs, outputs)}
    found.pop(frozenset(), None)
    return list(found)


def _as_rows(sets: Collection[frozenset[int]], edges: int) -> Removals:
    rows = torch.zeros(len(sets), edges, dtype=torch.bool)
    for row, members in enumerate(sets):
        rows[row, list(members)] = True
    return rows


def _small_sets(count: int) -> Iterator[Removals]:
    """Yield all sets of one of `count` edges, then of two and so on, while at most `SUBSETS` in total."""
    total = 0
    for size in range(1, count + 1):
        total += comb(count, size)
        if total > SUBSETS and size > 1:
            return
        members = torch.tensor(list(combinations(range(count), size)))
        yield torch.zeros(len(members), count, dtype=torch.bool).scatter_(1, members, 1)


def masks_without(
    graph: Graph, edges: Sequence[Edge], removed: Removals
) -> Float[Tensor, "removal source destination"]:
    """Return one mask per row of `removed`, which keeps `edges` except those that the row removes."""
    masks = torch.zeros(len(removed), len(graph.sources), len(graph.destinations))
    if edges:
        rows, columns = zip(*map(graph.position, edges), strict=True)
        masks[:, rows, columns] = (~removed).float()
    return masks
