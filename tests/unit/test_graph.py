import re

import pytest

from edgeprune.errors import CircuitMismatch, GraphError, UnknownAblation
from edgeprune.graph import Circuit, Edge, Graph, Node, compare_circuits, edge_names, parse_ablation
from edgeprune.masks import live_circuit, mask_of
from edgeprune.metrics.overlap import nodes_of

TRACR = Graph.transformer(embeddings=("tok", "pos"), layers=2, heads=1)


def edges(*names: str) -> frozenset[Edge]:
    return frozenset(Edge.parse(name) for name in names)


def live_edges(graph, kept):
    return live_circuit(graph, "zero", mask_of(graph, kept) > 0).edges


@pytest.mark.parametrize(
    ("embeddings", "layers", "heads", "total"),
    [
        (("tok", "pos"), 4, 1, 94),  # reverse
        (("tok", "pos"), 2, 1, 32),  # xproportion
        (("embed",), 12, 12, 32_491),  # GPT-2 small
        (("tok", "pos"), 12, 12, 32_936),  # GPT-2 small, the reference's two embedding sources
        (("embed",), 40, 40, 3_877_661),  # CodeLlama-13B
    ],
)
def test_edges_count_as_published(embeddings, layers, heads, total):
    assert Graph.transformer(embeddings=embeddings, layers=layers, heads=heads).total == total


def test_grouped_query_attention_has_one_key_and_value_a_group():
    graph = Graph.transformer(embeddings=("embed",), layers=1, heads=4, kv_heads=2)
    assert [str(d) for d in graph.destinations if d.port == "k"] == ["a0.h0.k", "a0.h1.k"]
    assert sum(d.port == "q" for d in graph.destinations) == 4


def test_total_counts_the_listed_edges():
    assert TRACR.total == len(TRACR.edges) == len(set(TRACR.edges))


def test_a_head_does_not_read_its_own_layer_and_an_mlp_reads_its_own_heads():
    names = set(map(str, TRACR.edges))
    assert "a0.h0->m0" in names
    assert "a0.h0->a0.h0.q" not in names
    assert "m0->a0.h0.q" not in names
    assert "m0->a1.h0.q" in names


def test_every_edge_is_read_back_from_its_name():
    assert [Edge.parse(str(edge)) for edge in TRACR.edges] == list(TRACR.edges)


@pytest.mark.parametrize("name", ["tok", "a0.h0", "a12.h3.q", "m7", "logits", "pos", "embed"])
def test_every_node_is_read_back_from_its_name(name):
    assert str(Node.parse(name)) == name


@pytest.mark.parametrize("name", ["", "a0", "a0.h1.z", "m", "m-1", "tokens", "a0.h0 "])
def test_what_is_no_node_is_refused(name):
    with pytest.raises(GraphError, match="Expected a node such as"):
        Node.parse(name)


def test_what_is_no_edge_is_refused():
    with pytest.raises(GraphError, match="Expected an edge such as"):
        Edge.parse("tok")


@pytest.mark.parametrize("name", ["m0->a0.h0.q", "m1->m0", "tok->a9.h0.q", "embed->m0"])
def test_an_edge_that_the_graph_lacks_is_refused(name):
    with pytest.raises(GraphError, match="Expected an edge of this graph of 32 edges"):
        Circuit(TRACR, "zero", edges(name))


def test_names_are_listed_in_the_graphs_order():
    circuit = Circuit(TRACR, "zero", edges("m1->logits", "tok->m0", "tok->a0.h0.q"))
    assert circuit.names() == ["tok->a0.h0.q", "tok->m0", "m1->logits"]


def test_live_edges_drop_what_leads_nowhere():
    kept = edges("tok->m0", "m0->m1", "tok->a0.h0.v", "a0.h0->logits", "pos->a1.h0.q")
    assert live_edges(TRACR, kept) == edges("tok->a0.h0.v", "a0.h0->logits")


def test_heads_that_share_keys_and_values_all_read_them():
    grouped = Graph.transformer(embeddings=("embed",), layers=1, heads=4, kv_heads=2)
    readers = {str(node): " ".join(map(str, found)) for node, found in grouped.readers.items()}
    assert readers["a0.h1.q"] == "a0.h1"
    assert readers["a0.h0.k"] == readers["a0.h0.v"] == "a0.h0 a0.h1"
    assert readers["a0.h1.k"] == readers["a0.h1.v"] == "a0.h2 a0.h3"
    assert (readers["m0"], readers["logits"]) == ("m0", "logits")
    kept = edges("embed->a0.h1.k", "embed->a0.h1.v", "embed->a0.h0.k", "embed->a0.h2.q", "a0.h2->logits")
    assert live_edges(grouped, kept) == kept - edges("embed->a0.h0.k")
    assert nodes_of(grouped, edges("embed->a0.h1.k")) == {Node("embed"), Node("a", 0, 2), Node("a", 0, 3)}


def test_comparison_lists_missing_and_extra_edges():
    truth = Circuit(TRACR, "zero", edges("tok->m0", "m0->logits"))
    found = Circuit(TRACR, "zero", edges("tok->m0", "pos->m0"))
    comparison = compare_circuits(found, truth)
    assert (comparison.missing, comparison.extra, comparison.exact) == (edges("m0->logits"), edges("pos->m0"), False)
    assert compare_circuits(truth, truth).exact


def test_circuits_under_different_ablations_do_not_compare():
    with pytest.raises(CircuitMismatch, match="Expected a truth under ablation 'zero'; got one under 'mean'"):
        compare_circuits(Circuit(TRACR, "zero", frozenset()), Circuit(TRACR, "mean", frozenset()))


def test_circuits_of_different_graphs_do_not_compare():
    other = Graph.transformer(embeddings=("tok", "pos"), layers=4, heads=1)
    with pytest.raises(CircuitMismatch, match="graphs of 32 and 94 edges"):
        compare_circuits(Circuit(TRACR, "zero", frozenset()), Circuit(other, "zero", frozenset()))


def test_an_unknown_ablation_is_refused():
    assert parse_ablation("mean") == "mean"
    with pytest.raises(UnknownAblation, match="among zero, mean, resample; got 'noise'"):
        parse_ablation("noise")


@pytest.mark.parametrize(
    ("sources", "destinations", "named"),
    [
        (("tok", "a0.h0.q"), ("logits",), "a0.h0.q"),
        (("tok", "logits"), ("logits",), "logits"),
        (("tok",), ("tok", "logits"), "tok"),
        (("tok",), ("a0.h0", "logits"), "a0.h0"),
        (("tok", "tok"), ("logits",), "tok"),
        (("tok",), ("logits", "logits"), "logits"),
        (("tok", "a0.h1.k", "a0.h0.k"), ("a0.h0", "pos", "logits", "logits"), "a0.h0, a0.h0.k, a0.h1.k, logits, pos"),
    ],
)
def test_nodes_that_cannot_write_or_read_or_come_twice_are_all_named(sources, destinations, named):
    with pytest.raises(GraphError, match=rf"^Expected sources such as tok .*, once each; got {re.escape(named)}$"):
        Graph(tuple(map(Node.parse, sources)), tuple(map(Node.parse, destinations)))


def test_a_node_that_is_written_twice_is_one_of_each_side():
    graph = Graph(
        (Node("tok"), Node("m", 0)), (Node("m", 0), Node("logits"))
    )  # once as a source, once as a destination
    assert [str(edge) for edge in graph.edges] == ["tok->m0", "tok->logits", "m0->logits"]


def checked_as_made(graph, edges):
    """What a circuit checks of itself; where types are checked at run time, it would not come so far."""
    circuit = object.__new__(Circuit)
    for name, value in (("graph", graph), ("ablation", "zero"), ("edges", edges)):
        object.__setattr__(circuit, name, value)
    circuit.__post_init__()


@pytest.mark.parametrize("edges", [["tok->m0"], {"tok->m0"}, frozenset({"tok->m0"}), [Edge.parse("tok->m0")], None])
def test_a_circuit_of_anything_but_a_frozenset_of_edges_is_refused(edges):
    with pytest.raises(
        GraphError, match=r"^Expected a frozenset of Edge objects, such as Edge.parse\('tok->m0'\); got"
    ):
        checked_as_made(Graph.transformer(embeddings=("tok",), layers=1, heads=1), edges)


def test_an_edge_to_the_same_stage_is_none():
    graph = Graph.transformer(embeddings=("tok", "pos"), layers=1, heads=2)
    for name in ("m0->m0", "a0.h0->a0.h1.q", "m0->a0.h0.q"):
        with pytest.raises(GraphError, match=f"Expected an edge of this graph of {graph.total} edges; got {name}"):
            graph.position(Edge.parse(name))


def test_names_go_by_destination_first():
    graph = Graph.transformer(embeddings=("tok", "pos"), layers=2, heads=2)
    assert edge_names(graph, reversed(graph.edges)) == [str(edge) for edge in graph.edges]
    assert edge_names(graph, map(Edge.parse, ("m0->logits", "pos->m0", "tok->logits"))) == [
        "pos->m0",
        "tok->logits",
        "m0->logits",
    ]


def test_an_edge_of_three_nodes_is_none():
    with pytest.raises(GraphError, match="got 'm0->logits'"):
        Edge.parse("tok->m0->logits")


def test_nodes_and_edges_are_shown_as_what_makes_them():
    for text in ("tok", "a0.h1", "a0.h1.q", "m2", "logits"):
        assert repr(Node.parse(text)) == f"Node.parse({text!r})" and eval(repr(Node.parse(text))) == Node.parse(text)
    edge = Edge.parse("tok->a0.h1.q")
    assert repr(edge) == "Edge.parse('tok->a0.h1.q')" and eval(repr(edge)) == edge
    assert repr(frozenset([edge])) == "frozenset({Edge.parse('tok->a0.h1.q')})"
