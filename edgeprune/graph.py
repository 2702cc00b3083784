"""The vocabulary: nodes, edges, the graph of a transformer, and circuits in it. Pure Python.

A **source** writes to the residual stream: `tok` and `pos` (Tracr) or `embed` (GPT-2, Llama), then `a{layer}.h{head}`
and `m{layer}`. A **destination** reads from it: `a{layer}.h{head}.q`, `.k`, `.v`, `m{layer}`, `logits`. An **edge**
leads from a source to a destination that comes later. A **circuit** is a set of edges, together with the graph and
the ablation that it belongs to.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from edgeprune.errors import CircuitMismatch, GraphError, UnknownAblation

Ablation = Literal["zero", "mean", "resample"]
"""What a removed edge carries instead of its source's value.

- `zero`: nothing.
- `mean`: the source's mean over the domain, at the same length and position.
- `resample`: the source's value on a corrupted input of the same length (also called interchange).
"""

ABLATIONS: Final[tuple[Ablation, ...]] = ("zero", "mean", "resample")

Kind = Literal["tok", "pos", "embed", "a", "m", "logits"]
Port = Literal["", "q", "k", "v"]

_SHOWN: Final = 3
"""Largest number of edges shown when a circuit is printed."""

EMBEDDINGS: Final = ("tok", "pos", "embed")
_NODE = re.compile(
    r"(?P<fixed>tok|pos|embed|logits)|a(?P<a>\d{1,6})\.h(?P<head>\d{1,6})(?:\.(?P<port>[qkv]))?|m(?P<m>\d{1,6})"
)


def parse_ablation(name: str) -> Ablation:
    """Return the ablation of this name.

    Raises:
        UnknownAblation: there is no such ablation.
    """
    for ablation in ABLATIONS:
        if name == ablation:
            return ablation
    raise UnknownAblation(f"Expected an ablation among {', '.join(ABLATIONS)}; got {name!r}")


@dataclass(frozen=True, order=True)
class Node:
    """A place where the residual stream is written (a source) or read (a destination).

    `layer` and `head` count from 0 and are -1 where they do not apply. `port` is the input of an attention head that a
    destination reads into; it is empty for every other node.
    """

    kind: Kind
    layer: int = -1
    head: int = -1
    port: Port = ""

    @property
    def stage(self) -> float:
        """Order of computation: 0 for embeddings, 1 + 2l for attention in layer l, 2 + 2l for its MLP, logits last."""
        if self.kind in EMBEDDINGS:
            return 0.0
        if self.kind == "logits":
            return float("inf")
        return 1.0 + 2 * self.layer + (self.kind == "m")

    @property
    def owner(self) -> "Node":
        """The node at which this destination is drawn: the head for q, k and v, else the node itself.

        `Graph.readers` gives the nodes that compute with what it reads: several heads may share keys and values.
        """
        return Node(self.kind, self.layer, self.head)

    def __str__(self) -> str:
        if self.kind == "a":
            return f"a{self.layer}.h{self.head}" + (f".{self.port}" if self.port else "")
        return f"m{self.layer}" if self.kind == "m" else self.kind

    def __repr__(self) -> str:
        return f"Node.parse({str(self)!r})"

    @staticmethod
    def parse(text: str) -> "Node":
        """Return the node written `text`, for instance `a0.h1.q`.

        Raises:
            GraphError: `text` is not a node's name.
        """
        match = _NODE.fullmatch(text)
        if match is None:
            raise GraphError(f"Expected a node such as tok, a0.h1, a0.h1.q, m0 or logits; got {text!r:.100}")
        if (fixed := match["fixed"]) is not None:
            return Node(fixed)  # pyright: ignore[reportArgumentType]  # the pattern lists the kinds
        if match["m"] is not None:
            return Node("m", int(match["m"]))
        return Node("a", int(match["a"]), int(match["head"]), match["port"] or "")  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, order=True)
class Edge:
    """A connection along which `destination` reads what `source` writes."""

    source: Node
    destination: Node

    def __str__(self) -> str:
        return f"{self.source}->{self.destination}"

    def __repr__(self) -> str:
        return f"Edge.parse({str(self)!r})"

    @staticmethod
    def parse(text: str) -> "Edge":
        """Return the edge written `text`, for instance `tok->a0.h0.q`.

        Raises:
            GraphError: `text` is not an edge's name.
        """
        source, arrow, destination = text.partition("->")
        if not arrow:
            raise GraphError(f"Expected an edge such as tok->a0.h0.q; got {text!r:.100}")
        return Edge(Node.parse(source), Node.parse(destination))


@dataclass(frozen=True)
class Graph:
    """All sources and destinations of a model, in the order of a mask's rows and columns.

    Raises:
        GraphError: a node is listed twice, a source cannot write, or a destination cannot read.
    """

    sources: tuple[Node, ...]
    destinations: tuple[Node, ...]

    def __post_init__(self) -> None:
        wrong = {node for node in self.sources if node.port or node.kind == "logits"}
        wrong |= {
            node for node in self.destinations if node.kind in EMBEDDINGS or (node.kind == "a") != bool(node.port)
        }
        for nodes in (self.sources, self.destinations):
            wrong |= {node for node, times in Counter(nodes).items() if times > 1}
        if wrong:
            named = ", ".join(map(str, sorted(wrong)))
            raise GraphError(
                f"Expected sources such as tok and a0.h1, destinations such as a0.h1.q, once each; got {named}"
            )

    @staticmethod
    def transformer(*, embeddings: tuple[Kind, ...], layers: int, heads: int, kv_heads: int | None = None) -> "Graph":
        """Return the graph of a decoder with `layers` blocks, each of attention and then an MLP.

        Args:
            embeddings: the embedding sources, `("tok", "pos")` or `("embed",)`.
            layers: number of blocks.
            heads: attention heads per block (query heads, with grouped-query attention).
            kv_heads: key-value heads per block; `heads` if None.
        """
        kv_heads = heads if kv_heads is None else kv_heads
        sources: list[Node] = [Node(kind) for kind in embeddings]
        destinations: list[Node] = []
        for layer in range(layers):
            sources += [Node("a", layer, head) for head in range(heads)] + [Node("m", layer)]
            destinations += [Node("a", layer, head, "q") for head in range(heads)]
            destinations += [Node("a", layer, head, "k") for head in range(kv_heads)]
            destinations += [Node("a", layer, head, "v") for head in range(kv_heads)]
            destinations += [Node("m", layer)]
        return Graph(tuple(sources), (*destinations, Node("logits")))

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Every edge, ordered by destination and then by source."""
        return tuple(Edge(s, d) for d in self.destinations for s in self.sources if s.stage < d.stage)

    @property
    def total(self) -> int:
        """Number of edges, counted without listing them."""
        stages = sorted(source.stage for source in self.sources)
        return sum(bisect_left(stages, destination.stage) for destination in self.destinations)

    @cached_property
    def source_index(self) -> Mapping[Node, int]:
        """Each source's row in a mask."""
        return {node: i for i, node in enumerate(self.sources)}

    @cached_property
    def destination_index(self) -> Mapping[Node, int]:
        """Each destination's column in a mask."""
        return {node: i for i, node in enumerate(self.destinations)}

    @cached_property
    def readers(self) -> Mapping[Node, tuple[Node, ...]]:
        """The nodes that compute with what each destination reads: for keys and values, all heads that share them.

        In a partial graph whose nodes do not show how many heads share them, each head has its own.
        """
        heads = Counter(node.layer for node in self.sources if node.kind == "a")
        shared = Counter(node.layer for node in self.destinations if node.port == "k")
        found = dict[Node, tuple[Node, ...]]()
        for node in self.destinations:
            each = 1
            if node.port in ("k", "v") and shared[node.layer] and heads[node.layer] % shared[node.layer] == 0:
                each = max(1, heads[node.layer] // shared[node.layer])
            first = node.owner.head * each
            found[node] = tuple(replace(node.owner, head=first + i) for i in range(each)) if node.port else (node,)
        return found

    def position(self, edge: Edge) -> tuple[int, int]:
        """Return the row and column of `edge` in a mask.

        Raises:
            GraphError: the graph has no such edge.
        """
        row = self.source_index.get(edge.source)
        column = self.destination_index.get(edge.destination)
        if row is None or column is None or edge.source.stage >= edge.destination.stage:
            raise GraphError(f"Expected an edge of this graph of {self.total} edges; got {edge}")
        return row, column


@dataclass(frozen=True, repr=False)
class Circuit:
    """A set of kept edges; every other edge of `graph` is ablated by `ablation`.

    `a & b`, `a | b` and `a.minus(b)` are circuits too. They raise `CircuitMismatch` if graphs or ablations differ.
    """

    graph: Graph
    ablation: Ablation
    edges: frozenset[Edge]

    def __post_init__(self) -> None:
        edges: Any = self.edges  # a custom method may pass another type
        if not isinstance(edges, frozenset) or not all(isinstance(edge, Edge) for edge in edges):
            raise GraphError(
                f"Expected a frozenset of Edge objects, such as Edge.parse('tok->m0'); got a {type(edges).__name__}, "
                f"{edges!r:.80}"
            )
        for edge in self.edges:
            self.graph.position(edge)

    def names(self) -> list[str]:
        """Return the edges as text, in the graph's order."""
        return edge_names(self.graph, self.edges)

    def __len__(self) -> int:
        return len(self.edges)

    def __repr__(self) -> str:
        first = ", ".join(self.names()[:_SHOWN]) + (", ..." if len(self) > _SHOWN else "")
        return f"Circuit({self.ablation}, {len(self)} of {self.graph.total:,} edges{first and ': '}{first})"

    def __and__(self, other: "Circuit") -> "Circuit":
        compare_circuits(self, other)
        return replace(self, edges=self.edges & other.edges)

    def __or__(self, other: "Circuit") -> "Circuit":
        compare_circuits(self, other)
        return replace(self, edges=self.edges | other.edges)

    def minus(self, other: "Circuit") -> "Circuit":
        """Return the circuit of the edges that are in this circuit and not in `other`."""
        compare_circuits(self, other)
        return replace(self, edges=self.edges - other.edges)

    def paths(self, start: Node | str) -> Iterator[tuple[Edge, ...]]:
        """Yield all paths of kept edges from a source to the logits, in the order of the graph.

        The number of paths may be exponential in the number of layers: take as many as you need.

        Args:
            start: a source, such as `tok` or `a0.h1`.

        Raises:
            GraphError: the graph has no such source.
        """
        node = Node.parse(start) if isinstance(start, str) else start
        if node not in self.graph.source_index:
            raise GraphError(f"Expected a source of this graph, such as {self.graph.sources[0]}; got {start}")
        leaving: dict[Node, list[Edge]] = {}
        for edge in sorted(self.edges, key=lambda edge: self.graph.position(edge)[::-1]):
            leaving.setdefault(edge.source, []).append(edge)
        left = [(edge,) for edge in reversed(leaving.get(node, []))]
        while left:
            path = left.pop()
            if path[-1].destination.kind == "logits":
                yield path
            readers = self.graph.readers[path[-1].destination]
            left += [(*path, edge) for reader in reversed(readers) for edge in reversed(leaving.get(reader, []))]

    def to_networkx(self) -> Any:
        """Return a `networkx.MultiDiGraph` with one edge per kept edge and node that reads it; the key is the port."""
        from networkx import MultiDiGraph

        graph = MultiDiGraph(ablation=self.ablation)
        graph.add_nodes_from(str(node) for node in (*self.graph.sources, Node("logits")))
        for name in self.names():
            edge = Edge.parse(name)
            for reader in self.graph.readers[edge.destination]:
                graph.add_edge(str(edge.source), str(reader), key=edge.destination.port, edge=name)
        return graph

    def to_dataframe(self) -> Any:
        """Return a `pandas.DataFrame` with one row per kept edge: `edge`, `source`, `destination` and its `port`.

        Raises:
            ImportError: pandas is not installed.
        """
        from pandas import DataFrame

        edges = map(Edge.parse, self.names())
        rows = [(str(e), str(e.source), str(e.destination.owner), e.destination.port) for e in edges]
        return DataFrame(rows, columns=["edge", "source", "destination", "port"])

    def save(self, path: str | Path) -> None:
        """Write the circuit as JSON (`edgeprune/files/circuit.schema.json`).

        Raises:
            UnwritableFile: the file cannot be written.
        """
        from edgeprune.files.store import save_circuit

        save_circuit(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> "Circuit":
        """Return the circuit in a file, or in a run's folder.

        Raises:
            CircuitFileError: the file holds no circuit.
            RunError: the run in the folder has not ended.
        """
        from edgeprune.files.folders import circuit_file
        from edgeprune.files.store import load_circuit

        return load_circuit(circuit_file(Path(path)))

    def _repr_svg_(self) -> str:
        """Return the SVG picture that a notebook shows."""
        from edgeprune.pictures.draw import as_svg, draw_comparison

        title = f"{len(self)} of {self.graph.total:,} edges, {self.ablation} ablation"
        return as_svg(draw_comparison(self.graph, self.edges, None, title))


def edge_names(graph: Graph, edges: Iterable[Edge]) -> list[str]:
    """Return `edges` as text, in the order of `graph`, each once."""
    chosen = set(edges)
    return [str(edge) for edge in sorted(chosen, key=lambda e: graph.position(e)[::-1])]


@dataclass(frozen=True)
class Comparison:
    """The difference between `found` and `truth`, as sets of edges."""

    missing: frozenset[Edge]
    """True edges that were not found."""

    extra: frozenset[Edge]
    """Edges found that are not true."""

    exact: bool
    """True if no edge is missing and none is extra."""


def compare_circuits(found: Circuit, truth: Circuit) -> Comparison:
    """Compare two circuits edge by edge. Scores play no part.

    Raises:
        CircuitMismatch: the circuits differ in graph or in ablation.
    """
    if found.graph != truth.graph:
        raise CircuitMismatch(
            f"Expected two circuits of one graph; got graphs of {found.graph.total} and {truth.graph.total} edges"
        )
    if found.ablation != truth.ablation:
        raise CircuitMismatch(
            f"Expected a truth under ablation {found.ablation!r}; got one under {truth.ablation!r}: "
            "derive it again under the ablation of the circuit"
        )
    missing, extra = truth.edges - found.edges, found.edges - truth.edges
    return Comparison(missing, extra, not missing and not extra)
