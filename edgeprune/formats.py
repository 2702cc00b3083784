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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from edgeprune.errors import GraphError
from edgeprune.graph import EMBEDDINGS, Ablation, Circuit, Edge, Graph, Node
from edgeprune.masks import circuit_mask
from edgeprune.store import CircuitFileError, load_json, write_text

_EDGE_PRUNING: Final = {"tok": "tok_embeds", "pos": "pos_embeds", "embed": "embeds", "logits": "resid_post"}
_OURS: Final = {theirs: ours for ours, theirs in _EDGE_PRUNING.items()}
_INPUT: Final = "input"
_PORT: Final = re.compile(r"<([qkv])>$")

MERGED: Final = "edges from tok and from pos are one edge from the embedding; its score is the larger of theirs"
SPLIT: Final = "an edge from the embedding is one from tok and one from pos, with the same score"
NO_ABLATION: Final = "the file does not say which ablation the circuit belongs to"
NO_ORIGIN: Final = "the file does not say which model the circuit is of, what found it, and in which versions"
MADE_SCORES: Final = "the circuit has no scores: its edges score 1, all others 0"
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
    return _imported(named, graph, ablation, path, (NO_ABLATION, NO_SCORES, NO_GRAPH))


def write_eap_ig(
    circuit: Circuit, path: Path, *, scores: Float[Tensor, "source destination"] | None = None, d_model: int = 0
) -> tuple[str, ...]:
    """Write a graph as EAP-IG's `Graph.to_json` does; what is lost, in words.

    Args:
        circuit: what is in the graph.
        path: where to write it.
        scores: of all edges; 1 and 0 unless given.
        d_model: width of the residual stream, which EAP-IG asks for where neurons are scored.

    Raises:
        UnwritableFile: it cannot be written there.
        GraphError: the graph has fewer key-value heads than heads, which EAP-IG has no word for.
    """
    graph = circuit.graph
    losses = [NO_ABLATION] if scores is not None else [NO_ABLATION, MADE_SCORES]
    scores = circuit_mask(circuit) if scores is None else scores
    layers = 1 + max((node.layer for node in graph.sources), default=-1)
    heads = sum(node.kind == "a" and node.layer == 0 for node in graph.sources)
    if sum(node.port == "k" and node.layer == 0 for node in graph.destinations) != heads:
        raise GraphError("Expected as many key-value heads as heads; EAP-IG's graphs have no other")
    edges: dict[str, dict[str, Any]] = {}
    for edge in graph.edges:
        score = float(scores[graph.position(edge)])
        entry = edges.setdefault(_eap_name(edge), {"score": score, "in_graph": False})
        entry["score"] = max(entry["score"], score)
        entry["in_graph"] |= edge in circuit.edges
    used = {_eap_node(node) for edge in circuit.edges for node in (edge.source, edge.destination.owner)} | {"logits"}
    nodes = dict.fromkeys([*map(_eap_node, graph.sources), "logits"])
    content = {
        "cfg": {"n_layers": layers, "n_heads": heads, "parallel_attn_mlp": False, "d_model": d_model},
        "nodes": {name: {"in_graph": name in used} for name in nodes},
        "edges": edges,
    }
    write_text(path, json.dumps(content, indent=1) + "\n")
    merged = sum(node.kind in EMBEDDINGS for node in graph.sources) > 1
    return (*losses, MERGED) if merged else tuple(losses)


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
    own = Graph.transformer(embeddings=("embed",), layers=layers, heads=heads)
    every = _imported(scored, own if graph is None else graph, ablation, path, (NO_ABLATION,))
    circuit = _imported([(*pair, 1.0) for pair in sorted(kept)], every.circuit.graph, ablation, path, ()).circuit
    return Imported(circuit, every.scores, every.losses)


def scores_by_edge(scores: Float[Tensor, "source destination"], graph: Graph) -> dict[Edge, float]:
    """The score of every edge, by edge."""
    return {edge: float(scores[graph.position(edge)]) for edge in graph.edges}


def score_tensor(scores: Mapping[Edge, float], graph: Graph) -> Float[Tensor, "source destination"]:
    """Scores by edge as a tensor; 0 for an edge that has none."""
    found = torch.zeros(len(graph.sources), len(graph.destinations))
    for edge, score in scores.items():
        found[graph.position(edge)] = score
    return found


def _imported(
    named: Iterable[tuple[str, str, float]], graph: Graph, ablation: Ablation, path: Path, losses: tuple[str, ...]
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
