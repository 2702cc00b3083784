"""What a circuit can be asked, beside the edges that it is."""

from itertools import islice

import pytest

from edgeprune.errors import CircuitMismatch, GraphError, RunError
from edgeprune.files.store import CircuitFileError, load_circuit
from edgeprune.graph import Circuit, Edge, Graph, Node

GRAPH = Graph.transformer(embeddings=("tok", "pos"), layers=2, heads=1)
SHARED = Graph.transformer(embeddings=("embed",), layers=1, heads=4, kv_heads=2)


def circuit(*names, ablation="zero", graph=GRAPH):
    return Circuit(graph, ablation, frozenset(map(Edge.parse, names)))


CHAIN = circuit("tok->a0.h0.q", "tok->a0.h0.v", "a0.h0->m1", "tok->m1", "m1->logits", "pos->a1.h0.k")


def test_a_circuit_is_printed_as_its_size_and_first_edges():
    assert repr(circuit()) == "Circuit(zero, 0 of 32 edges)"
    assert repr(circuit("tok->m0", ablation="mean")) == "Circuit(mean, 1 of 32 edges: tok->m0)"
    three = circuit("m1->logits", "tok->m0", "pos->m0")
    assert repr(three) == "Circuit(zero, 3 of 32 edges: tok->m0, pos->m0, m1->logits)"
    four = three | circuit("m0->m1")
    assert repr(four) == "Circuit(zero, 4 of 32 edges: tok->m0, pos->m0, m0->m1, ...)"
    large = Circuit(Graph.transformer(embeddings=("embed",), layers=12, heads=12), "resample", frozenset())
    assert str(large) == "Circuit(resample, 0 of 32,491 edges)"


def test_circuits_are_intersected_united_and_taken_from_each_other():
    one, other = circuit("tok->m0", "pos->m0"), circuit("pos->m0", "m0->logits")
    assert one & other == circuit("pos->m0")
    assert one | other == circuit("tok->m0", "pos->m0", "m0->logits")
    assert one.minus(other) == circuit("tok->m0")
    assert other.minus(one) == circuit("m0->logits")


@pytest.mark.parametrize("how", [Circuit.__and__, Circuit.__or__, Circuit.minus])
@pytest.mark.parametrize(
    "other", [circuit(ablation="mean"), circuit(graph=Graph.transformer(embeddings=("tok", "pos"), layers=1, heads=1))]
)
def test_circuits_of_two_kinds_make_none(how, other):
    with pytest.raises(CircuitMismatch):
        how(circuit("tok->m0"), other)


def test_paths_lead_from_a_source_to_the_logits_in_the_graphs_order():
    def paths(start):
        return [" ".join(map(str, path)) for path in CHAIN.paths(start)]

    assert paths("tok") == [
        "tok->a0.h0.q a0.h0->m1 m1->logits",
        "tok->a0.h0.v a0.h0->m1 m1->logits",
        "tok->m1 m1->logits",
    ]
    assert paths("a0.h0") == ["a0.h0->m1 m1->logits"] and paths(Node.parse("m1")) == ["m1->logits"]
    assert paths("pos") == [] == paths("m0")  # what pos leads to leads nowhere; nothing is kept of m0


def test_paths_go_through_every_head_that_shares_a_key():
    shared = circuit("embed->a0.h1.k", "a0.h2->m0", "a0.h3->logits", "a0.h1->logits", "m0->logits", graph=SHARED)
    found = [list(map(str, path)) for path in shared.paths("embed")]
    assert found == [["embed->a0.h1.k", "a0.h2->m0", "m0->logits"], ["embed->a0.h1.k", "a0.h3->logits"]]


def test_paths_are_found_one_by_one_where_there_are_too_many():
    graph = Graph.transformer(embeddings=("embed",), layers=40, heads=2)
    whole = Circuit(graph, "zero", frozenset(graph.edges))
    for path in islice(whole.paths("embed"), 100):
        assert path[0].source == Node("embed") and path[-1].destination == Node("logits")


@pytest.mark.parametrize("start", ["logits", "a2.h0", Node("embed")])
def test_paths_from_what_is_no_source_are_refused(start):
    with pytest.raises(GraphError, match=f"Expected a source of this graph, such as tok; got {start}"):
        next(CHAIN.paths(start))


def test_networkx_has_an_edge_for_each_port_and_every_node():
    graph = CHAIN.to_networkx()
    assert graph.graph == {"ablation": "zero"}
    assert list(graph) == ["tok", "pos", "a0.h0", "m0", "a1.h0", "m1", "logits"]
    assert set(graph.edges(keys=True, data="edge")) == {
        ("tok", "a0.h0", "q", "tok->a0.h0.q"),
        ("tok", "a0.h0", "v", "tok->a0.h0.v"),
        ("tok", "m1", "", "tok->m1"),
        ("pos", "a1.h0", "k", "pos->a1.h0.k"),
        ("a0.h0", "m1", "", "a0.h0->m1"),
        ("m1", "logits", "", "m1->logits"),
    }
    shared = circuit("embed->a0.h1.k", graph=SHARED).to_networkx()
    assert set(shared.edges(keys=True)) == {("embed", "a0.h2", "k"), ("embed", "a0.h3", "k")}


def test_a_data_frame_has_a_row_an_edge():
    frame = circuit("m1->logits", "tok->a0.h0.v").to_dataframe()
    assert frame.to_dict("list") == {
        "edge": ["tok->a0.h0.v", "m1->logits"],
        "source": ["tok", "m1"],
        "destination": ["a0.h0", "logits"],
        "port": ["v", ""],
    }
    assert list(circuit().to_dataframe().columns) == ["edge", "source", "destination", "port"]


def test_a_circuit_is_saved_and_loaded_by_a_name(tmp_path):
    CHAIN.save(str(tmp_path / "circuit.json"))
    assert Circuit.load(str(tmp_path / "circuit.json")) == Circuit.load(tmp_path) == CHAIN
    assert load_circuit(tmp_path / "circuit.json") == CHAIN
    with pytest.raises(CircuitFileError):
        Circuit.load(tmp_path / "none.json")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"config": {"pruning": {"steps": 7}}}')
    with pytest.raises(RunError, match="stands at step 0 of 7"):
        Circuit.load(tmp_path / "run")


def test_a_notebook_shows_a_picture():
    shown = CHAIN._repr_svg_()
    assert shown.startswith("<?xml") and "</svg>" in shown
    assert "<!-- 6 of 32 edges, zero ablation -->" in shown and "<!-- a1.h0 -->" in shown
    assert "true" not in shown and "missing" not in shown
