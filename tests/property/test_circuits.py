"""Graphs and circuits of any shape."""

from contextlib import suppress

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgeprune.errors import GraphError
from edgeprune.graph import Circuit, Edge, Graph, Node, compare_circuits
from edgeprune.masks import circuit_mask, edge_exists, edges_of, live, live_circuit


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Decoders of up to three layers, with grouped-query attention among them."""
    kv_heads = draw(st.integers(1, 3))
    return Graph.transformer(
        embeddings=draw(st.sampled_from([("tok", "pos"), ("embed",)])),
        layers=draw(st.integers(1, 3)),
        heads=kv_heads * draw(st.integers(1, 2)),
        kv_heads=kv_heads,
    )


@st.composite
def circuits(draw: st.DrawFn, graph: Graph | None = None) -> Circuit:
    graph = draw(graphs()) if graph is None else graph
    return Circuit(graph, "zero", frozenset(draw(st.sets(st.sampled_from(graph.edges)))))


def reachable(graph: Graph, edges: frozenset[Edge]) -> set[Edge]:
    """The edges on a path to the logits, found backwards from them, one node at a time."""

    def read_by(edge: Edge, node: Node) -> bool:
        destination = edge.destination
        if destination.port not in ("k", "v"):
            return str(destination).rsplit(".", 1)[0] == str(node)
        heads = max(source.head for source in graph.sources) + 1
        shared = max(each.head for each in graph.destinations if each.port == "k") + 1
        return (node.kind, node.layer) == ("a", destination.layer) and node.head * shared // heads == destination.head

    found, frontier = set[Edge](), [edge for edge in edges if str(edge.destination) == "logits"]
    while frontier:
        edge = frontier.pop()
        found.add(edge)
        frontier += [each for each in edges - found if read_by(each, edge.source)]
    return found


@given(graphs())
def test_edges_are_as_many_as_counted_and_each_has_a_place_of_its_own(graph):
    places = {graph.position(edge) for edge in graph.edges}
    assert len(places) == len(graph.edges) == graph.total == int(edge_exists(graph).sum())
    assert all(graph.sources[row].stage < graph.destinations[column].stage for row, column in places)


@given(graphs())
def test_names_are_read_back(graph):
    assert [Node.parse(str(node)) for node in graph.sources + graph.destinations] == [
        *graph.sources,
        *graph.destinations,
    ]
    assert [Edge.parse(str(edge)) for edge in graph.edges] == list(graph.edges)


@given(st.text(max_size=8))
def test_a_text_is_a_nodes_name_or_is_refused(text):
    with suppress(GraphError):
        assert str(Node.parse(text)) == text


@given(circuits())
def test_a_circuit_is_read_back_from_its_names_and_from_its_mask(circuit):
    assert frozenset(map(Edge.parse, circuit.names())) == circuit.edges
    assert edges_of(circuit.graph, circuit_mask(circuit) > 0) == circuit.edges
    assert len(circuit) == int(circuit_mask(circuit).sum())


@given(circuits(), st.data())
def test_comparison_is_the_difference_of_sets_either_way_round(one, data):
    other = data.draw(circuits(one.graph))
    there, back = compare_circuits(one, other), compare_circuits(other, one)
    assert (there.missing, there.extra) == (back.extra, back.missing)
    assert (one.edges | there.missing) - there.extra == other.edges
    assert there.exact == back.exact == (one.edges == other.edges)


@given(circuits())
def test_live_edges_are_those_on_a_path_to_the_logits(circuit):
    kept = live(circuit.graph, circuit_mask(circuit) > 0)
    assert edges_of(circuit.graph, kept) == reachable(circuit.graph, circuit.edges)
    several = torch.stack([edge_exists(circuit.graph), circuit_mask(circuit) > 0, kept])
    assert torch.equal(live(circuit.graph, several)[1:], torch.stack([kept, kept]))


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_dead_edges_change_no_output(compiled, data):
    program = compiled("sort_unique")
    circuit = data.draw(circuits(program.model.graph))
    alone = live_circuit(circuit.graph, "zero", circuit_mask(circuit) > 0)
    assume(alone.edges != circuit.edges)
    tokens = program.dataset.tokens[:20]
    torch.testing.assert_close(
        program.model(tokens, circuit_mask(circuit)), program.model(tokens, circuit_mask(alone)), atol=1e-4, rtol=1e-4
    )


@given(graphs(), graphs())
def test_an_edge_is_refused_by_a_graph_without_it(one, other):
    lacking = [edge for edge in one.edges if edge not in set(other.edges)]
    assume(lacking)
    with pytest.raises(GraphError, match="Expected an edge of this graph"):
        Circuit(other, "zero", frozenset(lacking[:1]))
