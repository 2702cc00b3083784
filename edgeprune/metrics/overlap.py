"""Overlap of two sets of edges or of nodes: precision, recall and IoU."""

from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Any

from edgeprune.graph import Edge, Graph, Node


@dataclass(frozen=True)
class Overlap:
    """Scores of a found set of edges or nodes against the true set."""

    precision: float
    """Share of the found set that is true; 1 if nothing was found."""

    recall: float
    """Share of the true set that was found; 1 if nothing is true."""

    iou: float
    """Size of the intersection over that of the union; 1 if both sets are empty."""

    exact: bool


def overlap(found: Set[Any], true: Set[Any]) -> Overlap:
    """Return the precision, recall, IoU and equality of `found` against `true`."""
    both, either = len(found & true), len(found | true)
    return Overlap(
        precision=both / len(found) if found else 1.0,
        recall=both / len(true) if true else 1.0,
        iou=both / either if either else 1.0,
        exact=found == true,
    )


def nodes_of(graph: Graph, edges: Iterable[Edge]) -> frozenset[Node]:
    """Return the nodes at either end of `edges`; a head is one node, whichever of its inputs an edge enters."""
    return frozenset(node for edge in edges for node in (edge.source, *graph.readers[edge.destination]))
