"""Circuits in the files of other tools, both ways, with what each way loses.

- **Edge-Pruning** (the paper's code): `edges.json`, a list of `[writer, reader]`. Writers are `tok_embeds` and
  `pos_embeds` (GPT-2) or `embeds` (Llama), heads and MLPs; readers a head's `.q`, `.k` or `.v`, MLPs and `resid_post`.
- **EAP-IG** (and MIB): a graph as JSON, with every edge's score and whether it is in the circuit. There is one
  embedding, `input`, and a head's inputs are written `a0.h0<q>`.

Neither says which ablation a circuit belongs to, so that whoever reads one has to. Where one side has two embeddings
and the other has one, an edge from the one is an edge from both, and an edge from either is one from the one.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from edgeprune.errors import GraphError
from edgeprune.graph import EMBEDDINGS, Ablation, Circuit, Edge, Graph, Kind, Node
from edgeprune.store import CircuitFileError, load_json, write_text

_EDGE_PRUNING: Final = {"tok": "tok_embeds", "pos": "pos_embeds", "embed": "embeds", "logits": "resid_post"}
_OURS: Final = {theirs: ours for ours, theirs in _EDGE_PRUNING.items()} | {"token_embeds": "tok"}  # Tracr's
_INPUT: Final = "input"
_PORT: Final = re.compile(r"<([qkv])>$")
_LARGEST: Final = 1000
"""Layers, and heads a layer, of a graph that is read: ten times more than any model has."""

MERGED: Final = "edges from tok and from pos are one edge from the embedding; its score is the larger of theirs"
SPLIT: Final = "an edge from the embedding is one from tok and one from pos, with the same score"
NO_ABLATION: Final = "the file does not say which ablation the circuit belongs to"
NO_ORIGIN: Final = "the file does not say which model the circuit is of, what found it, and in which versions"
MADE_SCORES: Final = "the circuit has no scores: its edges score 1, all others 0"
SOME_SCORES: Final = "some edges of the circuit's file have no score: they score 0"
ONE_CIRCUIT: Final = "several circuits are true, and the file holds the smallest alone"
NO_CERTIFICATE: Final = "the certificate of the true circuits is not kept"
NO_WIDTH: Final = "the residual stream is as wide as 0: the circuit's file does not say how wide it is"
NODE_SCORES: Final = "scores of nodes and of neurons, and which neurons are in the graph, are not kept"
NO_EMBEDDINGS: Final = (
    "no edge starts at an embedding: either none is kept, or the file was written without (with_embedding_nodes=False)"
)
NO_SCORES: Final = "the file holds no scores"
NO_GRAPH: Final = "the file does not say which edges there are beside the circuit's"


@dataclass(frozen=True)
class Imported:
    """A circuit from another tool's file."""

    circuit: Circuit
    scores: Float[Tensor, "source destination"]
    """1 for the circuit's edges and 0 for others where the file holds none."""

    losses: tuple[str, ...]
    """What the file does not hold, and what was made of it, in words."""


def write_edge_pruning(circuit: Circuit, path: Path) -> tuple[str, ...]:
    """Write `edges.json` as the paper's code does; what is lost, in words.

    Raises:
        UnwritableFile: it cannot be written there.
    """
    edges = [Edge.parse(name) for name in circuit.names()]
    content = [[_their_name(edge.source), _their_name(edge.destination)] for edge in edges]
    write_text(path, json.dumps(content, indent=1) + "\n")
    return NO_ABLATION, NO_SCORES, NO_GRAPH


def _their_name(node: Node) -> str:
    return _EDGE_PRUNING.get(node.kind, str(node))


def read_edge_pruning(path: Path, graph: Graph, ablation: Ablation) -> Imported:
    """The circuit in an `edges.json`, as one of `graph`.

    Raises:
        CircuitFileError: there is no such file, it is none, or the graph has no such edges.
    """
    named: list[tuple[str, str, float]] = []
    for pair in _load(path, list):
        match pair:
            case [str(writer), str(reader)]:
                named.append((_OURS.get(writer, writer), _OURS.get(reader, reader), 1.0))
            case _:
                raise CircuitFileError(f"Expected a list of [writer, reader] in {str(path)!r}; got {pair!r} in it")
    losses = [NO_ABLATION, NO_SCORES, NO_GRAPH]
    if not any(writer in EMBEDDINGS for writer, _, _ in named):
        losses.append(NO_EMBEDDINGS)
    return _imported(named, graph, ablation, path, losses)


def write_eap_ig(circuit: Circuit, path: Path, *, scores: Mapping[Edge, float] | None = None) -> tuple[str, ...]:
    """Write a graph as EAP-IG's `Graph.to_json` does; what is lost, in words.

    Args:
        circuit: what is in the graph.
        path: where to write it.
        scores: of edges; 1 for those of the circuit and 0 for all others unless given.

    Raises:
        UnwritableFile: it cannot be written there.
        GraphError: the graph is not that of a whole transformer, or has fewer key-value heads than heads: EAP-IG's
            graphs have no other.
    """
    graph = circuit.graph
    losses = [NO_ABLATION, NO_WIDTH]
    if scores is None:
        losses.append(MADE_SCORES)
        scores = {edge: float(edge in circuit.edges) for edge in graph.edges}
    elif any(edge not in scores for edge in graph.edges):
        losses.append(SOME_SCORES)
    layers = 1 + max((node.layer for node in graph.sources), default=-1)
    heads = sum(node.kind == "a" and node.layer == 0 for node in graph.sources)
    embeddings: tuple[Kind, ...] = tuple(node.kind for node in graph.sources if node.kind in EMBEDDINGS)
    if graph != Graph.transformer(embeddings=embeddings, layers=layers, heads=heads):
        raise GraphError(
            "Expected the graph of a whole transformer, with as many key-value heads as heads; EAP-IG's have no other"
        )
    merged: dict[str, list[Edge]] = {}
    for edge in graph.edges:
        merged.setdefault(_eap_name(edge), []).append(edge)
    edges = {
        name: {
            "score": max((scores[edge] for edge in ours if edge in scores), default=0.0),
            "in_graph": any(edge in circuit.edges for edge in ours),
        }
        for name, ours in merged.items()
    }
    used = {_eap_node(node) for edge in circuit.edges for node in (edge.source, edge.destination.owner)} | {"logits"}
    nodes = dict.fromkeys([*map(_eap_node, graph.sources), "logits"])
    content = {
        "cfg": {"n_layers": layers, "n_heads": heads, "parallel_attn_mlp": False, "d_model": 0},
        "nodes": {name: {"in_graph": name in used} for name in nodes},
        "edges": edges,
    }
    write_text(path, json.dumps(content, indent=1) + "\n")
    return (*losses, MERGED) if len(embeddings) > 1 else tuple(losses)


def _eap_node(node: Node) -> str:
    return _INPUT if node.kind in EMBEDDINGS else str(node)


def _eap_name(edge: Edge) -> str:
    destination = edge.destination
    return f"{_eap_node(edge.source)}->{destination.owner}" + (f"<{destination.port}>" if destination.port else "")


def read_eap_ig(path: Path, ablation: Ablation, *, graph: Graph | None = None) -> Imported:
    """The circuit in a graph of EAP-IG.

    Args:
        path: the file.
        ablation: what removed edges carry.
        graph: the graph to read it into; that of the file, with one embedding, unless given.

    Raises:
        CircuitFileError: there is no such file, it holds no such graph, or the graph has no such edges.
    """
    content = _load(path, dict)
    try:
        layers, heads = int(content["cfg"]["n_layers"]), int(content["cfg"]["n_heads"])
        parallel = bool(content["cfg"].get("parallel_attn_mlp", False))
        more = any(set(entry) - {"in_graph"} for entry in content.get("nodes", {}).values())
        named = [
            (*_PORT.sub(r".\1", name).split("->"), float(entry["score"]), bool(entry["in_graph"]))
            for name, entry in content["edges"].items()
        ]
        scored = [(s.replace(_INPUT, "embed"), d, score) for s, d, score, _ in named]
        kept = {(s.replace(_INPUT, "embed"), d) for s, d, _, in_graph in named if in_graph}
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise CircuitFileError(
            f"Expected a graph of EAP-IG in {str(path)!r}; {type(error).__name__}: {error}"
        ) from error
    if parallel:
        raise CircuitFileError(f"Expected attention before MLPs; in {str(path)!r} they are side by side")
    if not (0 <= layers <= _LARGEST and 1 <= heads <= _LARGEST):
        raise CircuitFileError(
            f"Expected up to {_LARGEST} layers of 1 to {_LARGEST} heads in {str(path)!r}; got {layers} of {heads}"
        )
    own = Graph.transformer(embeddings=("embed",), layers=layers, heads=heads)
    # Neurons, where they are scored, stand in lists of their own beside the nodes.
    losses = [NO_ABLATION, NODE_SCORES] if more or "neurons" in content else [NO_ABLATION]
    every = _imported(scored, own if graph is None else graph, ablation, path, losses)
    circuit = _imported([(*pair, 1.0) for pair in sorted(kept)], every.circuit.graph, ablation, path, ()).circuit
    return Imported(circuit, every.scores, every.losses)


def scores_by_edge(scores: Float[Tensor, "source destination"], graph: Graph) -> dict[Edge, float]:
    """The score of every edge, by edge."""
    return {edge: float(scores[graph.position(edge)]) for edge in graph.edges}


def _imported(
    named: Iterable[tuple[str, str, float]], graph: Graph, ablation: Ablation, path: Path, losses: Sequence[str]
) -> Imported:
    """The edges of `graph` that go by these names, with their scores; embeddings are merged or split as need be."""
    embeddings = tuple(str(node) for node in graph.sources if node.kind in EMBEDDINGS)
    scores = torch.zeros(len(graph.sources), len(graph.destinations))
    edges: set[Edge] = set()
    made_of: dict[str, None] = {}
    for source, destination, score in named:
        own = source in embeddings or source not in EMBEDDINGS
        if not own:
            made_of[SPLIT if source == "embed" else MERGED] = None
        for name in (source,) if own else embeddings:
            try:
                edge = Edge(Node.parse(name), Node.parse(destination))
                position = graph.position(edge)
            except GraphError as error:
                raise CircuitFileError(
                    f"Expected edges of a graph of {graph.total} in {str(path)!r}; {error}"
                ) from error
            scores[position] = max(float(scores[position]), score) if edge in edges else score
            edges.add(edge)
    return Imported(Circuit(graph, ablation, frozenset(edges)), scores, (*losses, *made_of))


def _load(path: Path, kind: type) -> Any:
    content = load_json(path)
    if not isinstance(content, kind):
        raise CircuitFileError(f"Expected a JSON {kind.__name__} in {str(path)!r}; got {type(content).__name__}")
    return content
