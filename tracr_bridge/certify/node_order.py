"""The order in which the nodes of a graph are gone through, and which of them compute together."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgeprune.graph import Edge, Graph, Node


@dataclass(frozen=True)
class Unit:
    """Nodes that compute together, as they share keys and values, and the edges into them; or the logits."""

    sources: frozenset[Node]
    edges: tuple[int, ...]

    @property
    def is_logits(self) -> bool:
        """Whether it is the logits."""
        return not self.sources


def in_order(graph: Graph, edges: Sequence[Edge]) -> list[Unit]:
    """Units so that each comes after what it reads, and few nodes wait to be read at a time; the logits last."""
    together: list[set[Node]] = []
    for destination in graph.destinations:
        nodes = {node for node in graph.readers[destination] if node.kind != "logits"}
        for other in [each for each in together if not each.isdisjoint(nodes)]:
            together.remove(other)
            nodes |= other
        together += [nodes] if nodes else []
    reached = [frozenset(nodes) for nodes in together] + [frozenset[Node]()]
    units = [
        Unit(nodes, tuple(n for n, edge in enumerate(edges) if _computes(graph, edge.destination, nodes)))
        for nodes in reached
    ]
    waiting, ordered = [unit for unit in units if unit.edges], list[Unit]()
    while waiting:
        later = {node for unit in waiting for node in unit.sources}
        ready = [u for u in waiting if later.isdisjoint(edges[e].source for e in u.edges)]

        def cost(unit: Unit, waiting: list[Unit] = waiting) -> tuple[bool, int, int]:
            read = {edges[e].source for other in waiting if other is not unit for e in other.edges}
            past = {node for each in (*ordered, unit) for node in each.sources}
            return unit.is_logits, len(past & read), units.index(unit)

        ordered.append(min(ready, key=cost))
        waiting.remove(ordered[-1])
    return ordered


def _computes(graph: Graph, destination: Node, nodes: frozenset[Node]) -> bool:
    return not nodes.isdisjoint(graph.readers[destination]) if nodes else destination.kind == "logits"
