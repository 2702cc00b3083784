"""How far two sets of edges, or of nodes, are the same."""

from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Any

from edgeprune.graph import Edge, Graph, Node


@dataclass(frozen=True)
class Overlap:
    """What was found beside what is true, as sets of edges or of nodes."""

    precision: float
    """1 where nothing was found."""

    recall: float
    """1 where nothing is true."""

    iou: float
    """1 where nothing was found and nothing is true."""

    exact: bool


def overlap(found: Set[Any], true: Set[Any]) -> Overlap:
    """Compare two sets."""
    both, either = len(found & true), len(found | true)
    return Overlap(
        precision=both / len(found) if found else 1.0,
        recall=both / len(true) if true else 1.0,
        iou=both / either if either else 1.0,
        exact=found == true,
    )


def nodes_of(graph: Graph, edges: Iterable[Edge]) -> frozenset[Node]:
    """The nodes at either end of `edges`; a head is one node, whichever of its inputs is read."""
    return frozenset(node for edge in edges for node in (edge.source, *graph.readers[edge.destination]))
