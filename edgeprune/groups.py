"""Edges that may go only together: without one of them, what is left computes something else."""

from collections.abc import Collection, Iterator, Sequence
from itertools import combinations
from math import comb
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from edgeprune.graph import Edge, Graph

SUBSETS: Final = 4096
"""Small sets that are tried, at the most: all of one edge, and of two, three and so on as long as they keep below."""

PAIRS: Final = 1 << 14
"""Pairs of groups that are tried, at the most; where there are more, none is."""

Removals = Bool[Tensor, "removal edge"]
"""What is taken out of a circuit together, one set of edges a row."""


def groups(graph: Graph, edges: Sequence[Edge]) -> Removals:
    """All edges into each destination; the queries and keys of each node; all its inputs; all its outputs."""
    return _as_rows(_groups(graph, edges), len(edges))


def removals(graph: Graph, edges: Sequence[Edge], *, pairs: int | None = None) -> Removals:
    """What to try to take out of a circuit of `edges` together, small sets first.

    All sets of one edge, of two, three and so on, as long as there are at most `SUBSETS` of them; all `groups`; any two
    of these, if there are at most `pairs` of them, or `PAIRS`.
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
    """All sets of one of so many edges, of two, and so on."""
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
    """The masks of `edges` without those that each row removes."""
    masks = torch.zeros(len(removed), len(graph.sources), len(graph.destinations))
    if edges:
        rows, columns = zip(*map(graph.position, edges), strict=True)
        masks[:, rows, columns] = (~removed).float()
    return masks
