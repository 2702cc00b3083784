"""Orders the nodes of a graph for the search, and groups those that compute together."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgeprune.graph import Edge, Graph, Node


@dataclass(frozen=True)
class Unit:
    """Nodes that compute together (a node, or heads that share keys and values), and edges into them; or the logits."""

    sources: frozenset[Node]
    edges: tuple[int, ...]

    @property
    def is_logits(self) -> bool:
        """Whether the unit is the logits."""
        return not self.sources


def in_order(graph: Graph, edges: Sequence[Edge]) -> list[Unit]:
    """Return the units with edges, each after what it reads, the logits last. Few nodes wait to be read at a time."""
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
