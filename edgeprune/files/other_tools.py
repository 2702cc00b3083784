"""Read and write circuits in the files of other tools, and say what each conversion loses.

- **Edge-Pruning** (the paper's code): `edges.json`, a list of `[writer, reader]`. Writers are `tok_embeds` and
  `pos_embeds` (GPT-2) or `embeds` (Llama), heads and MLPs; readers a head's `.q`, `.k` or `.v`, MLPs and `resid_post`.
- **EAP-IG** (and MIB): a graph as JSON, with every edge's signed score and whether it is in the circuit. There is one
  embedding, `input`, and a head's inputs are written `a0.h0<q>`.

Neither file names the ablation, so the caller has to. One side may have two embeddings (`tok` and `pos`) where the
other has one. Under zero ablation, an edge from the single embedding becomes an edge from both, and an edge from either
becomes one from the single embedding. Under mean and resample, positions carry the same value, kept or not: an edge
from the single embedding becomes one from `tok`, and an edge from `pos` alone is dropped. (`write_edge_pruning` writes
both embeddings of a GPT-2 under every ablation, as that code's loader takes them.)
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from edgeprune.errors import GraphError
from edgeprune.files.store import CircuitFileError, SavedCircuit, load_json, write_json
from edgeprune.graph import EMBEDDINGS, Ablation, Circuit, Edge, Graph, Kind, Node

_EDGE_PRUNING: Final = {"tok": "tok_embeds", "pos": "pos_embeds", "embed": "embeds", "logits": "resid_post"}
_OURS: Final = {theirs: ours for ours, theirs in _EDGE_PRUNING.items()} | {"token_embeds": "tok"}  # Tracr's
_GPT2: Final = "gpt2"
_INPUT: Final = "input"
_PORT: Final = re.compile(r"<([qkv])>$")
_LARGEST: Final = 1000
"""Most layers, and most heads per layer, of a graph that is read: ten times more than any model has."""

_LARGEST_SCORE: Final = torch.finfo(torch.float32).max
"""Largest size of a score: beyond it, single precision, which all tools use for scores, has only infinity."""

MERGED: Final = (
    "edges from tok and from pos are one edge from the embedding, kept where either is; its score is the larger of "
    "theirs in size"
)
SPLIT: Final = "an edge from the embedding is one from tok and one from pos, with the same score"
POSITIONS: Final = (
    "edges from pos are left out: under mean and resample positions carry the same whether such an edge is kept or not"
)
SOME_EDGES: Final = "some edges of the graph are not in the file: they are not kept, and score 0"
ANY_FAMILY: Final = (
    "the circuit's file does not say which kind of model it is of: written for GPT-2 (tok_embeds and pos_embeds); "
    "--family llama writes embeds"
)
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
    """Score of each edge; without scores in the file, 1 for the circuit's edges and 0 for others."""

    losses: tuple[str, ...]
    """What the file does not hold, and what was assumed or changed, in words."""


def write_edge_pruning(circuit: Circuit, path: Path, *, family: str | None = None) -> tuple[str, ...]:
    """Write `edges.json` as the paper's code does; return what is lost, in words.

    Args:
        circuit: the circuit to write.
        path: the file.
        family: the kind of model, as `config.json` names it; GPT-2 by default, and never GPT-2 if heads share keys.
            For GPT-2, an edge from `embed` is written as one from each of two embeddings, as in the paper's code.

    Raises:
        UnwritableFile: the file cannot be written.
    """
    twice = (family or _GPT2) == _GPT2 and not _grouped(circuit.graph)
    content = list[list[str]]()
    for edge in map(Edge.parse, circuit.names()):
        kinds = ("tok", "pos") if twice and edge.source.kind == "embed" else (edge.source.kind,)
        content += [[_EDGE_PRUNING.get(kind, str(edge.source)), _their_name(edge.destination)] for kind in kinds]
    write_json(path, content)
    return NO_ABLATION, NO_SCORES, NO_GRAPH


def needs_family(circuit: Circuit) -> bool:
    """Whether `write_edge_pruning` writes a different file for a GPT-2 than for other kinds of model."""
    return any(edge.source.kind == "embed" for edge in circuit.edges) and not _grouped(circuit.graph)


def family_of(saved: SavedCircuit) -> str | None:
    """Return the kind of model of a circuit: from its file, or else from the model's `config.json`, if that is local.

    Return None if neither says it.
    """
    from huggingface_hub import try_to_load_from_cache

    if saved.family or not saved.model:
        return saved.family or None
    config: object = Path(saved.model) / "config.json"
    if not Path(saved.model).is_dir():
        with suppress(ValueError):  # not a valid name on the hub
            config = try_to_load_from_cache(saved.model, "config.json")
    with suppress(CircuitFileError):
        content = load_json(Path(config)) if isinstance(config, str | Path) else None
        kind = content.get("model_type") if isinstance(content, dict) else None
        return kind if isinstance(kind, str) else None
    return None


def _grouped(graph: Graph) -> bool:
    return any(len(readers) > 1 for readers in graph.readers.values())


def _their_name(node: Node) -> str:
    return _EDGE_PRUNING.get(node.kind, str(node))


def read_edge_pruning(path: Path, graph: Graph, ablation: Ablation) -> Imported:
    """Read the circuit in an `edges.json`, as a circuit of `graph`.

    Raises:
        CircuitFileError: the file does not exist, is not an `edges.json`, or has edges that `graph` lacks.
    """
    named: list[tuple[str, str, float]] = []
    for pair in _load(path, list):
        match pair:
            case [str(writer), str(reader)]:
                named.append((_OURS.get(writer, writer), _OURS.get(reader, reader), 1.0))
            case _:
                raise CircuitFileError(f"Expected a list of [writer, reader] in {str(path)!r}; got {pair!r:.200} in it")
    losses = [NO_ABLATION, NO_SCORES, NO_GRAPH]
    if not any(writer in EMBEDDINGS for writer, _, _ in named):
        losses.append(NO_EMBEDDINGS)
    return _imported(named, graph, ablation, path, losses)


def write_eap_ig(circuit: Circuit, path: Path, *, scores: Mapping[Edge, float] | None = None) -> tuple[str, ...]:
    """Write a graph as EAP-IG's `Graph.to_json` does; return what is lost, in words.

    Args:
        circuit: the circuit; its edges are marked as in the graph.
        path: the file.
        scores: score of each edge; by default 1 for the circuit's edges and 0 for all others.

    Raises:
        UnwritableFile: the file cannot be written.
        GraphError: the graph is not that of a whole transformer, or has fewer key-value heads than heads, which
            EAP-IG's graphs cannot express; or a score is not a finite number in single precision.
    """
    graph = circuit.graph
    losses = [NO_ABLATION, NO_WIDTH]
    if scores is None:
        losses.append(MADE_SCORES)
        scores = {edge: float(edge in circuit.edges) for edge in graph.edges}
    elif any(edge not in scores for edge in graph.edges):
        losses.append(SOME_SCORES)
    embeddings, layers, heads = _shape(graph)
    written = graph.edges
    if len(embeddings) > 1:
        losses.append(MERGED if circuit.ablation == "zero" else POSITIONS)
        if circuit.ablation != "zero":
            written = tuple(edge for edge in graph.edges if edge.source.kind != "pos")
    merged: dict[str, list[Edge]] = {}
    for edge in written:
        merged.setdefault(_eap_name(edge), []).append(edge)
    edges = {
        name: {
            "score": max((scores[edge] for edge in ours if edge in scores), key=abs, default=0.0),
            "in_graph": any(edge in circuit.edges for edge in ours),
        }
        for name, ours in merged.items()
    }
    for name, entry in edges.items():
        if not abs(entry["score"]) <= _LARGEST_SCORE:
            raise GraphError(f"Expected scores up to {_LARGEST_SCORE:.2g} in size; {name} has {entry['score']}")
    kept = circuit.edges.intersection(written)
    used = {_eap_node(node) for edge in kept for node in (edge.source, edge.destination.owner)} | {"logits"}
    nodes = dict.fromkeys([*map(_eap_node, graph.sources), "logits"])
    content = {
        "cfg": {"n_layers": layers, "n_heads": heads, "parallel_attn_mlp": False, "d_model": 0},
        "nodes": {name: {"in_graph": name in used} for name in nodes},
        "edges": edges,
    }
    write_json(path, content)
    return tuple(losses)


def _shape(graph: Graph) -> tuple[tuple[Kind, ...], int, int]:
    """Return the embeddings of a graph, its number of layers, and its number of heads per layer.

    Raises:
        GraphError: EAP-IG cannot express the graph.
    """
    layers = 1 + max((node.layer for node in graph.sources), default=-1)
    heads = sum(node.kind == "a" and node.layer == 0 for node in graph.sources)
    embeddings: tuple[Kind, ...] = tuple(node.kind for node in graph.sources if node.kind in EMBEDDINGS)
    if graph != Graph.transformer(embeddings=embeddings, layers=layers, heads=heads):
        raise GraphError(
            "Expected the graph of a whole transformer, with as many key-value heads as heads; EAP-IG's have no other"
        )
    return embeddings, layers, heads


def _eap_node(node: Node) -> str:
    return _INPUT if node.kind in EMBEDDINGS else str(node)


def _eap_name(edge: Edge) -> str:
    destination = edge.destination
    return f"{_eap_node(edge.source)}->{destination.owner}" + (f"<{destination.port}>" if destination.port else "")


def read_eap_ig(path: Path, ablation: Ablation, *, graph: Graph | None = None) -> Imported:
    """Read the circuit in a graph of EAP-IG.

    Args:
        path: the file.
        ablation: what removed edges carry.
        graph: the circuit's graph; by default that of the file, with one embedding.

    Raises:
        CircuitFileError: the file does not exist, holds no graph of EAP-IG, or has edges that `graph` lacks.
        GraphError: EAP-IG cannot express `graph`.
    """
    content = _load(path, dict)
    try:
        layers, heads = (_as(int, content["cfg"][name], f"cfg: {name}") for name in ("n_layers", "n_heads"))
        parallel = _as(bool, content["cfg"].get("parallel_attn_mlp", False), "cfg: parallel_attn_mlp")
        more = any(set(entry) - {"in_graph"} for entry in content.get("nodes", {}).values())
        named = [_eap_edge(name, entry) for name, entry in content["edges"].items()]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise CircuitFileError(
            f"Expected a graph of EAP-IG in {str(path)!r}; {type(error).__name__}: {error!s:.200}"
        ) from error
    if parallel:
        raise CircuitFileError(f"Expected attention before MLPs; in {str(path)!r} they are side by side")
    if not (0 <= layers <= _LARGEST and min(layers, 1) <= heads <= _LARGEST):  # without layers there are no heads
        raise CircuitFileError(
            f"Expected up to {_LARGEST} layers of 1 to {_LARGEST} heads in {str(path)!r}; got {layers} of {heads}"
        )
    own = Graph.transformer(embeddings=("embed",), layers=layers, heads=heads)
    graph = own if graph is None else graph
    if (of_model := _shape(graph)[1:]) != _shape(own)[1:]:
        raise CircuitFileError(
            f"Expected a graph of {of_model[0]} layers of {of_model[1]} heads in {str(path)!r}, as the model has; got "
            f"{layers} of {heads}"
        )
    # Scores of neurons, if any, are separate lists beside the nodes.
    losses = [NO_ABLATION, NODE_SCORES] if more or "neurons" in content else [NO_ABLATION]
    if len(named) < own.total:
        losses.append(SOME_EDGES)
    every = _imported([(source, to, score) for source, to, score, _ in named], graph, ablation, path, losses)
    circuit = _imported([(source, to, 1.0) for source, to, _, kept in named if kept], graph, ablation, path, ()).circuit
    return Imported(circuit, every.scores, every.losses)


def _eap_edge(name: str, entry: Any) -> tuple[str, str, float, bool]:
    """Return an edge's source, destination, score, and whether it is in the circuit.

    Raises:
        KeyError, TypeError, ValueError: the entry is not an edge.
    """
    source, destination = _PORT.sub(r".\1", name).split("->")
    score = float(_as((int, float), entry["score"], f"score of {name}"))
    if not abs(score) <= _LARGEST_SCORE:
        raise ValueError(f"score of {name}: up to {_LARGEST_SCORE:.2g} in size, not {score:g}")
    kept = _as(bool, entry["in_graph"], f"in_graph of {name}")
    return "embed" if source == _INPUT else source, destination, score, kept


def _as(kind: Any, value: Any, what: str) -> Any:
    """Return `value` if it is of type `kind`; true and false do not count as numbers.

    Raises:
        TypeError: it is of another type.
    """
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        named = "true or false" if kind is bool else "a whole number" if kind is int else "a number"
        raise TypeError(f"{what}: {named}, not {value!r:.60}")
    return value


def scores_by_edge(scores: Float[Tensor, "source destination"], graph: Graph) -> dict[Edge, float]:
    """Return the score of every edge of `graph`, by edge."""
    return {edge: float(scores[graph.position(edge)]) for edge in graph.edges}


def _imported(
    named: Iterable[tuple[str, str, float]], graph: Graph, ablation: Ablation, path: Path, losses: Sequence[str]
) -> Imported:
    """Return the edges of `graph` with these names, and their scores; embeddings are merged or split to fit `graph`."""
    found, made_of = _with_embeddings_of(graph, ablation, named)
    scores = torch.zeros(len(graph.sources), len(graph.destinations))
    edges: set[Edge] = set()
    for (source, destination), score in found.items():
        try:
            edge = Edge(Node.parse(source), Node.parse(destination))
            scores[graph.position(edge)] = score
        except GraphError as error:
            raise CircuitFileError(f"Expected edges of a graph of {graph.total} in {str(path)!r}; {error}") from error
        edges.add(edge)
    return Imported(Circuit(graph, ablation, frozenset(edges)), scores, (*losses, *made_of))


def _with_embeddings_of(
    graph: Graph, ablation: Ablation, named: Iterable[tuple[str, str, float]]
) -> tuple[dict[tuple[str, str], float], list[str]]:
    """Return scores by source and destination, with the embeddings of `graph`; and what was changed, in words."""
    embeddings = [node.kind for node in graph.sources if node.kind in EMBEDDINGS]
    one, positions_count = embeddings == ["embed"], ablation == "zero"
    found, alone = dict[tuple[str, str], float](), dict[str, set[str]]()
    split = False
    for source, destination, score in named:
        names = [source]
        if one and source in ("tok", "pos"):
            names = ["embed"] if source == "tok" or positions_count else []
            alone.setdefault(source, set()).add(destination)
        elif source == "embed" and embeddings and not one:
            names, split = [kind for kind in embeddings if kind == "tok" or positions_count], True
        for name in names:
            found[name, destination] = max(found.get((name, destination), 0.0), score, key=abs)
    tokens, positions = alone.get("tok", set()), alone.get("pos", set())
    made_of = list[str]()
    if positions_count:
        made_of = [MERGED] * (tokens != positions) + [SPLIT] * split
    elif split or positions - tokens:
        made_of = [POSITIONS]
    return found, made_of


def _load(path: Path, kind: type) -> Any:
    content = load_json(path)
    if not isinstance(content, kind):
        raise CircuitFileError(f"Expected a JSON {kind.__name__} in {str(path)!r}; got {type(content).__name__}")
    return content
