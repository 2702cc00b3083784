"""Circuits in the files of other tools: round trips, and what each way loses."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeprune.errors import GraphError
from edgeprune.formats import (
    MADE_SCORES,
    MERGED,
    NO_ABLATION,
    NO_EMBEDDINGS,
    NO_GRAPH,
    NO_SCORES,
    NO_WIDTH,
    NODE_SCORES,
    SOME_SCORES,
    SPLIT,
    read_eap_ig,
    read_edge_pruning,
    write_eap_ig,
    write_edge_pruning,
)
from edgeprune.graph import Circuit, Edge, Graph, Node
from edgeprune.store import CircuitFileError

ONE = Graph.transformer(embeddings=("embed",), layers=2, heads=2)
TWO = Graph.transformer(embeddings=("tok", "pos"), layers=2, heads=2)
GROUPED = Graph.transformer(embeddings=("embed",), layers=1, heads=4, kv_heads=2)
ablations = st.sampled_from(("zero", "mean", "resample"))
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)


def circuits(graph):
    return st.builds(Circuit, st.just(graph), ablations, st.frozensets(st.sampled_from(graph.edges)))


def embedding_twins(circuit):
    """The same edges from both embeddings wherever there is one from either."""
    edges = {str(edge) for edge in circuit.edges}
    twins = {
        name.replace(a, b, 1)
        for name in edges
        for a, b in (("tok->", "pos->"), ("pos->", "tok->"))
        if name.startswith(a)
    }
    return frozenset(map(Edge.parse, edges | twins))


@st.composite
def partial_graphs(draw):
    """Some nodes of a small transformer, grouped queries among them."""
    whole = draw(st.sampled_from([ONE, TWO, GROUPED]))
    sources, destinations = (
        [node for node in nodes if draw(st.booleans())] for nodes in (whole.sources, whole.destinations)
    )
    graph = Graph(tuple(sources), tuple(destinations))
    return graph if graph.edges else whole


@given(circuits(TWO) | circuits(ONE) | partial_graphs().flatmap(circuits))
@in_one_folder
def test_edge_pruning_gives_back_the_circuit(tmp_path, circuit):
    losses = write_edge_pruning(circuit, tmp_path / "edges.json")
    read = read_edge_pruning(tmp_path / "edges.json", circuit.graph, circuit.ablation)
    assert read.circuit == circuit
    assert losses == (NO_ABLATION, NO_SCORES, NO_GRAPH)
    embedded = any(edge.source.kind in ("tok", "pos", "embed") for edge in circuit.edges)
    assert read.losses == (losses if embedded else (*losses, NO_EMBEDDINGS))
    assert float(read.scores.sum()) == len(circuit)


@given(circuits(ONE), st.integers(0, 2**31))
@in_one_folder
def test_eap_ig_gives_back_the_circuit_and_its_scores(tmp_path, circuit, seed):
    drawn = torch.rand(ONE.total, generator=torch.Generator().manual_seed(seed)) - 0.5
    scores = dict(zip(ONE.edges, drawn.tolist(), strict=True))
    assert write_eap_ig(circuit, tmp_path / "graph.json", scores=scores) == (NO_ABLATION, NO_WIDTH)
    for graph in (None, ONE):
        read = read_eap_ig(tmp_path / "graph.json", circuit.ablation, graph=graph)
        assert read.circuit == circuit
        assert read.losses == (NO_ABLATION,)
        for edge in ONE.edges:
            assert float(read.scores[ONE.position(edge)]) == pytest.approx(scores[edge])


@given(circuits(TWO))
@in_one_folder
def test_two_embeddings_are_merged_on_the_way_out_and_split_on_the_way_in(tmp_path, circuit):
    assert write_eap_ig(circuit, tmp_path / "graph.json") == (NO_ABLATION, NO_WIDTH, MADE_SCORES, MERGED)
    split = read_eap_ig(tmp_path / "graph.json", circuit.ablation, graph=TWO)
    assert split.circuit.edges == embedding_twins(circuit)
    assert split.losses == (NO_ABLATION, SPLIT)
    merged = read_eap_ig(tmp_path / "graph.json", circuit.ablation)
    assert {str(edge) for edge in merged.circuit.edges} == {
        str(edge).replace("tok->", "embed->").replace("pos->", "embed->") for edge in circuit.edges
    }
    write_edge_pruning(circuit, tmp_path / "edges.json")
    assert read_edge_pruning(tmp_path / "edges.json", ONE, circuit.ablation).circuit == merged.circuit


def test_the_files_are_those_of_the_other_tools(tmp_path):
    edges = frozenset(map(Edge.parse, ["tok->a0.h1.q", "pos->m0", "a0.h1->m1", "m1->logits"]))
    circuit = Circuit(TWO, "zero", edges)
    write_edge_pruning(circuit, tmp_path / "edges.json")
    assert sorted(json.loads((tmp_path / "edges.json").read_text())) == [
        ["a0.h1", "m1"], ["m1", "resid_post"], ["pos_embeds", "m0"], ["tok_embeds", "a0.h1.q"]
    ]  # fmt: skip
    write_eap_ig(circuit, tmp_path / "graph.json")
    graph = json.loads((tmp_path / "graph.json").read_text())
    assert graph["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 0}
    assert graph["edges"]["input->a0.h1<q>"] == {"score": 1.0, "in_graph": True}
    assert graph["edges"]["input->a0.h0<q>"] == {"score": 0.0, "in_graph": False}
    assert graph["edges"]["m1->logits"]["in_graph"]
    # As in EAP-IG: every edge of a graph with one embedding, every node, the logits among them.
    assert len(graph["edges"]) == ONE.total
    assert {name for name, node in graph["nodes"].items() if node["in_graph"]} == {
        "input",
        "a0.h1",
        "m0",
        "m1",
        "logits",
    }
    assert len(graph["nodes"]) == 1 + 2 * 3 + 1


SMALL = Graph((Node("tok"),), (Node("m", 0), Node("logits")))


@pytest.mark.parametrize("graph", [GROUPED, SMALL], ids=["grouped queries", "a part"])
def test_graphs_that_eap_ig_has_no_word_for_are_refused(tmp_path, graph):
    with pytest.raises(GraphError, match="a whole transformer, with as many key-value heads as heads"):
        write_eap_ig(Circuit(graph, "zero", frozenset()), tmp_path / "graph.json")
    assert not any(tmp_path.iterdir())


def test_an_edge_without_a_score_is_said_and_hides_no_score_of_its_twin(tmp_path):
    circuit = Circuit(TWO, "zero", frozenset())
    scores = {Edge.parse("tok->m0"): -0.5}
    assert write_eap_ig(circuit, tmp_path / "graph.json", scores=scores) == (NO_ABLATION, NO_WIDTH, SOME_SCORES, MERGED)
    edges = json.loads((tmp_path / "graph.json").read_text())["edges"]
    assert edges["input->m0"]["score"] == -0.5 and edges["m0->logits"]["score"] == 0


def test_scores_of_nodes_and_neurons_are_said_to_be_lost(tmp_path):
    write_eap_ig(Circuit(ONE, "zero", frozenset(ONE.edges[:3])), tmp_path / "graph.json")
    graph = json.loads((tmp_path / "graph.json").read_text())
    for more in ({"neurons": {"m0": [True]}}, {"nodes": graph["nodes"] | {"m0": {"in_graph": True, "score": 0.5}}}):
        (tmp_path / "more.json").write_text(json.dumps(graph | more))
        assert read_eap_ig(tmp_path / "more.json", "zero").losses == (NO_ABLATION, NODE_SCORES)


@pytest.mark.parametrize(("layers", "heads"), [(10**12, 1), (-1, 1), (1, 0), (1, 10**9)])
def test_a_graph_larger_than_any_is_refused(tmp_path, layers, heads):
    (tmp_path / "graph.json").write_text(json.dumps({"cfg": {"n_layers": layers, "n_heads": heads}, "edges": {}}))
    with pytest.raises(CircuitFileError, match=f"up to 1000 layers of 1 to 1000 heads .*; got {layers} of {heads}"):
        read_eap_ig(tmp_path / "graph.json", "zero")


def test_the_papers_names_for_tracrs_embeddings_are_read(tmp_path):
    (tmp_path / "edges.json").write_text('[["token_embeds", "a0.h0.q"], ["pos_embeds", "m0"]]')
    read = read_edge_pruning(tmp_path / "edges.json", TWO, "zero")
    assert read.circuit.names() == ["tok->a0.h0.q", "pos->m0"]


BAD = [
    (read_edge_pruning, "{}", "Expected a JSON list"),
    (read_edge_pruning, '[["tok_embeds"]]', r"Expected a list of \[writer, reader\]"),
    (read_edge_pruning, '[["m1", "m0"]]', "m1->m0"),
    (read_edge_pruning, '[["m7", "resid_post"]]', "m7->logits"),
    (read_edge_pruning, "nonsense", "Expecting value"),
    (read_edge_pruning, f'[["m{5000 * "9"}", "resid_post"]]', "Expected a node such as"),
    (read_eap_ig, "[]", "Expected a JSON dict"),
    (read_eap_ig, "{}", "KeyError: 'cfg'"),
    (
        read_eap_ig,
        '{"cfg": {"n_layers": 1, "n_heads": 1}, "edges": {"m0": {"score": 1, "in_graph": true}}}',
        "ValueError",
    ),
    (read_eap_ig, '{"cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": true}, "edges": {}}', "side by side"),
]


@pytest.mark.parametrize(("read", "text", "message"), BAD, ids=[message for _, _, message in BAD])
def test_a_file_of_another_kind_is_refused(tmp_path, read, text, message):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(CircuitFileError, match=message):
        read(path, ONE, "zero") if read is read_edge_pruning else read(path, "zero")
    with pytest.raises(CircuitFileError, match="No such file"):
        read(tmp_path / "none", ONE, "zero") if read is read_edge_pruning else read(tmp_path / "none", "zero")
