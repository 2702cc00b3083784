"""Circuits in the files of other tools: round trips, and what each way loses."""

import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeprune.errors import GraphError
from edgeprune.files import other_tools
from edgeprune.files.other_tools import (
    MADE_SCORES,
    MERGED,
    NO_ABLATION,
    NO_EMBEDDINGS,
    NO_GRAPH,
    NO_SCORES,
    NO_WIDTH,
    NODE_SCORES,
    POSITIONS,
    SOME_EDGES,
    SOME_SCORES,
    SPLIT,
    family_of,
    needs_family,
    read_eap_ig,
    read_edge_pruning,
    scores_by_edge,
    write_eap_ig,
    write_edge_pruning,
)
from edgeprune.files.store import CircuitFileError, SavedCircuit
from edgeprune.graph import Circuit, Edge, Graph, Node

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
    """Under zero both count; under the others positions are the same with and without an edge, which is then none."""
    zero = circuit.ablation == "zero"
    made = MERGED if zero else POSITIONS
    assert write_eap_ig(circuit, tmp_path / "graph.json") == (NO_ABLATION, NO_WIDTH, MADE_SCORES, made)
    split = read_eap_ig(tmp_path / "graph.json", circuit.ablation, graph=TWO)
    without = frozenset(edge for edge in circuit.edges if edge.source.kind != "pos")
    assert split.circuit.edges == (embedding_twins(circuit) if zero else without)
    assert split.losses == (NO_ABLATION, SPLIT if zero else POSITIONS)
    merged = read_eap_ig(tmp_path / "graph.json", circuit.ablation)
    assert {str(edge) for edge in merged.circuit.edges} == {
        str(edge).replace("tok->", "embed->").replace("pos->", "embed->")
        for edge in (circuit.edges if zero else without)
    }
    write_edge_pruning(circuit, tmp_path / "edges.json")
    assert read_edge_pruning(tmp_path / "edges.json", ONE, circuit.ablation).circuit == merged.circuit


@pytest.mark.parametrize(
    ("ablation", "edges", "made"),
    [
        ("resample", ["m0->logits"], [POSITIONS]),
        ("mean", ["m0->logits"], [POSITIONS]),
        ("zero", ["embed->m0", "m0->logits"], [MERGED]),
    ],
)
def test_an_edge_from_positions_alone_is_none_where_they_are_the_same_without_it(tmp_path, ablation, edges, made):
    (tmp_path / "edges.json").write_text('[["pos_embeds","m0"],["m0","resid_post"]]')
    read = read_edge_pruning(tmp_path / "edges.json", ONE, ablation)
    assert read.circuit.names() == edges
    assert list(read.losses) == [NO_ABLATION, NO_SCORES, NO_GRAPH, *made]
    # Beside the same edge from tokens nothing is lost, and tokens alone are half of an embedding under zero only.
    (tmp_path / "edges.json").write_text('[["pos_embeds","m0"],["m0","resid_post"],["tok_embeds","m0"]]')
    both = read_edge_pruning(tmp_path / "edges.json", ONE, ablation)
    assert both.circuit.names() == ["embed->m0", "m0->logits"] and both.losses == (NO_ABLATION, NO_SCORES, NO_GRAPH)
    (tmp_path / "edges.json").write_text('[["tok_embeds","m0"],["m0","resid_post"]]')
    tokens = read_edge_pruning(tmp_path / "edges.json", ONE, ablation)
    assert tokens.circuit == both.circuit and (MERGED in tokens.losses) == (ablation == "zero")
    whole = read_edge_pruning(tmp_path / "edges.json", TWO, ablation)
    assert whole.circuit.names() == ["tok->m0", "m0->logits"]


@pytest.mark.parametrize(("ablation", "made"), [("zero", MERGED), ("resample", POSITIONS)])
def test_edges_from_one_of_two_embeddings_each_to_another_node_are_said_to_be_merged_or_left_out(
    tmp_path, ablation, made
):
    (tmp_path / "edges.json").write_text('[["tok_embeds","m0"],["pos_embeds","m1"]]')
    read = read_edge_pruning(tmp_path / "edges.json", ONE, ablation)
    assert read.losses == (NO_ABLATION, NO_SCORES, NO_GRAPH, made)
    assert read.circuit.names() == (["embed->m0", "embed->m1"] if ablation == "zero" else ["embed->m0"])


EMBED = Circuit(ONE, "resample", frozenset(map(Edge.parse, ["embed->m0", "m0->logits"])))


@pytest.mark.parametrize(
    ("family", "writers"),
    [("gpt2", ["tok_embeds", "pos_embeds"]), (None, ["tok_embeds", "pos_embeds"]), ("llama", ["embeds"])],
)
def test_the_papers_gpt2_has_two_embeddings_and_its_llama_one(tmp_path, family, writers):
    write_edge_pruning(EMBED, tmp_path / "edges.json", family=family)
    written = json.loads((tmp_path / "edges.json").read_text())
    assert written == [*([writer, "m0"] for writer in writers), ["m0", "resid_post"]]
    assert read_edge_pruning(tmp_path / "edges.json", ONE, "resample").circuit == EMBED
    # Heads that share keys are no GPT-2's, whatever the file says; its positions are an embedding of their own.
    grouped = Circuit(GROUPED, "zero", frozenset(map(Edge.parse, ["embed->a0.h1.k"])))
    write_edge_pruning(grouped, tmp_path / "edges.json", family=family)
    assert json.loads((tmp_path / "edges.json").read_text()) == [["embeds", "a0.h1.k"]]
    assert needs_family(EMBED) and not needs_family(grouped)


def test_the_family_is_what_the_file_or_the_models_folder_says(tmp_path):
    assert family_of(SavedCircuit(EMBED)) is None
    assert family_of(SavedCircuit(EMBED, model=str(tmp_path), family="llama")) == "llama"
    assert family_of(SavedCircuit(EMBED, model="no/such/model at all")) is None
    for text, family in [('{"model_type": "gpt2"}', "gpt2"), ('{"model_type": 3}', None), ("[]", None), ("{", None)]:
        (tmp_path / "config.json").write_text(text)
        assert family_of(SavedCircuit(EMBED, model=str(tmp_path))) == family


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
    with pytest.raises(
        CircuitFileError, match=f"up to 1000 layers of 1 to 1000 heads in '.*graph.json'; got {layers} of {heads}"
    ):
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


@pytest.mark.parametrize(("read", "text", "message"), BAD, ids=map(str, range(len(BAD))))
def test_a_file_of_another_kind_is_refused(tmp_path, read, text, message):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(CircuitFileError, match=message):
        read(path, ONE, "zero") if read is read_edge_pruning else read(path, "zero")
    with pytest.raises(CircuitFileError, match="No such file"):
        read(tmp_path / "none", ONE, "zero") if read is read_edge_pruning else read(tmp_path / "none", "zero")


def graph_file(tmp_path, **changed):
    """A graph of one layer of one head, as EAP-IG writes it, with one edge's entry changed."""
    small = Graph.transformer(embeddings=("embed",), layers=1, heads=1)
    write_eap_ig(Circuit(small, "resample", frozenset(small.edges)), tmp_path / "graph.json")
    content = json.loads((tmp_path / "graph.json").read_text())
    content["edges"]["m0->logits"] |= changed
    (tmp_path / "graph.json").write_text(json.dumps(content))
    return tmp_path / "graph.json"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"score": 1e308}, r"score of m0->logits: up to 3.4e\+38 in size, not 1e\+308"),
        ({"score": -1e39}, "score of m0->logits: up to"),
        ({"score": 10**400}, "a whole number of 401 characters is too large"),
        ({"score": float("nan")}, "NaN is no number"),
        ({"score": float("inf")}, "Infinity is no number"),
        ({"score": None}, "score of m0->logits: a number, not None"),
        ({"score": "0.5"}, "score of m0->logits: a number, not '0.5'"),
        ({"score": True}, "score of m0->logits: a number, not True"),
        ({"in_graph": "false"}, "in_graph of m0->logits: true or false, not 'false'"),
        ({"in_graph": 0}, "in_graph of m0->logits: true or false, not 0"),
    ],
)
def test_an_edge_that_is_no_edge_of_eap_ig_is_named(tmp_path, changed, message):
    path = graph_file(tmp_path, **changed)
    with pytest.raises(CircuitFileError, match=message) as error:
        read_eap_ig(path, "resample")
    assert "\n" not in str(error.value)


def test_the_largest_score_of_single_precision_is_read_and_a_larger_one_is_not_written(tmp_path):
    largest = torch.finfo(torch.float32).max
    read = read_eap_ig(graph_file(tmp_path, score=-largest), "resample")
    assert float(read.scores.min()) == -largest
    scores = {Edge.parse("m0->logits"): 2 * largest}
    for score in (2 * largest, float("nan"), -float("inf")):
        scores = {Edge.parse("m0->logits"): score}
        with pytest.raises(GraphError, match=r"Expected scores up to .* m0->logits has"):
            write_eap_ig(Circuit(ONE, "zero", frozenset()), tmp_path / "other.json", scores=scores)
    assert not (tmp_path / "other.json").exists()
    write_eap_ig(
        Circuit(ONE, "zero", frozenset()), tmp_path / "other.json", scores={Edge.parse("m0->logits"): -largest}
    )
    assert json.loads((tmp_path / "other.json").read_text())["edges"]["m0->logits"]["score"] == -largest


@pytest.mark.parametrize(("layers", "heads"), [(1, 2), (2, 1), (3, 2), (2, 3)])
def test_a_graph_of_another_model_is_refused(tmp_path, layers, heads):
    """Though all its edges may be edges of ours."""
    other = Graph.transformer(embeddings=("embed",), layers=layers, heads=heads)
    write_eap_ig(Circuit(other, "zero", frozenset()), tmp_path / "graph.json")
    message = (
        "Expected a graph of 2 layers of {} heads in '.*graph.json', as the model has; got " + f"{layers} of {heads}"
    )
    wide = Graph.transformer(embeddings=("embed",), layers=2, heads=4)
    with pytest.raises(CircuitFileError, match=message.format(4)):
        read_eap_ig(tmp_path / "graph.json", "zero", graph=wide)
    message = message.format(2)
    for graph in (ONE, TWO):
        with pytest.raises(CircuitFileError, match=message):
            read_eap_ig(tmp_path / "graph.json", "zero", graph=graph)


def test_heads_that_share_keys_are_not_read_as_heads_that_do_not(tmp_path):
    own = Graph.transformer(embeddings=("embed",), layers=1, heads=4)
    write_eap_ig(Circuit(own, "zero", frozenset()), tmp_path / "graph.json")
    with pytest.raises(GraphError, match="as many key-value heads as heads"):
        read_eap_ig(tmp_path / "graph.json", "zero", graph=GROUPED)


def test_edges_that_a_graph_leaves_out_are_said_to_be_missing(tmp_path):
    path = graph_file(tmp_path)
    content = json.loads(path.read_text())
    del content["edges"]["m0->logits"]
    path.write_text(json.dumps(content))
    read = read_eap_ig(path, "zero")
    assert read.losses == (NO_ABLATION, SOME_EDGES) and len(read.circuit) == read.circuit.graph.total - 1


def test_of_two_embeddings_the_larger_score_in_size_counts_with_its_sign(tmp_path):
    scores = dict.fromkeys(TWO.edges, 0.0) | {Edge.parse("tok->m0"): 0.25, Edge.parse("pos->m0"): -0.5}
    for ablation, expected in (("zero", -0.5), ("resample", 0.25)):
        write_eap_ig(Circuit(TWO, ablation, frozenset()), tmp_path / "graph.json", scores=scores)
        assert json.loads((tmp_path / "graph.json").read_text())["edges"]["input->m0"]["score"] == expected
        read = read_eap_ig(tmp_path / "graph.json", ablation, graph=TWO)
        assert read.scores[TWO.position(Edge.parse("tok->m0"))] == expected


# What is written, to the letter; and what is said of it


def test_files_are_indented_by_one_and_end_with_a_line(tmp_path):
    circuit = Circuit(TWO, "zero", frozenset([Edge.parse("tok->m0")]))
    write_edge_pruning(circuit, tmp_path / "edges.json")
    assert (tmp_path / "edges.json").read_text() == '[\n [\n  "tok_embeds",\n  "m0"\n ]\n]\n'
    write_eap_ig(circuit, tmp_path / "graph.json")
    text = (tmp_path / "graph.json").read_text()
    assert text == json.dumps(json.loads(text), indent=1) + "\n"


@pytest.mark.parametrize("score", [1e39, math.nan])
def test_a_score_that_is_not_written_is_said_with_its_edge(tmp_path, score):
    with pytest.raises(GraphError) as error:
        write_eap_ig(Circuit(ONE, "zero", frozenset()), tmp_path / "g", scores={Edge.parse("embed->a0.h1.k"): score})
    assert str(error.value) == f"Expected scores up to 3.4e+38 in size; input->a0.h1<k> has {score}"


def test_nodes_of_edges_that_are_not_written_are_not_in_the_graph(tmp_path):
    """Under resample, those from positions; the logits always are, and each node has one entry."""
    circuit = Circuit(TWO, "resample", frozenset(map(Edge.parse, ["pos->m0", "pos->a0.h0.q", "a0.h1->m1"])))
    write_eap_ig(circuit, tmp_path / "graph.json")
    graph = json.loads((tmp_path / "graph.json").read_text())
    assert [name for name, node in graph["nodes"].items() if node["in_graph"]] == ["a0.h1", "m1", "logits"]
    assert list(graph["nodes"]) == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "logits"]
    assert [name for name, edge in graph["edges"].items() if edge["in_graph"]] == ["a0.h1->m1"]


def test_a_graph_without_layers_is_written_and_read_however_many_heads_it_says_that_they_have(tmp_path):
    none = Graph.transformer(embeddings=("embed",), layers=0, heads=0)
    circuit = Circuit(none, "zero", frozenset(none.edges))
    write_eap_ig(circuit, tmp_path / "graph.json")
    for into in (None, none):
        assert read_eap_ig(tmp_path / "graph.json", "zero", graph=into).circuit == circuit
    graph = json.loads((tmp_path / "graph.json").read_text())
    assert graph["cfg"] == {"n_layers": 0, "n_heads": 0, "parallel_attn_mlp": False, "d_model": 0}
    assert graph["edges"] == {"input->logits": {"score": 1.0, "in_graph": True}}
    graph["cfg"] = {"n_layers": 0, "n_heads": 1}
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    assert read_eap_ig(tmp_path / "graph.json", "zero").circuit == circuit


def test_as_many_layers_and_heads_are_read_as_the_largest_has_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(other_tools, "_LARGEST", 2)
    for layers, heads, fits in ((2, 2, True), (3, 2, False), (2, 3, False)):
        graph = Graph.transformer(embeddings=("embed",), layers=layers, heads=heads)
        write_eap_ig(Circuit(graph, "zero", frozenset()), tmp_path / "graph.json")
        if fits:
            assert read_eap_ig(tmp_path / "graph.json", "zero").circuit.graph == graph
        else:
            with pytest.raises(
                CircuitFileError, match=rf"up to 2 layers of 1 to 2 heads in .*; got {layers} of {heads}$"
            ):
                read_eap_ig(tmp_path / "graph.json", "zero")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_layers": 1.0}, "TypeError: cfg: n_layers: a whole number, not 1.0"),
        ({"n_layers": True}, "TypeError: cfg: n_layers: a whole number, not True"),
        ({"n_heads": "1"}, "TypeError: cfg: n_heads: a whole number, not '1'"),
        ({"n_heads": "1" * 99}, f"TypeError: cfg: n_heads: a whole number, not '{'1' * 59}"),
        ({"parallel_attn_mlp": 0}, "TypeError: cfg: parallel_attn_mlp: true or false, not 0"),
    ],
)
def test_settings_of_a_graph_of_another_type_are_named(tmp_path, changed, message):
    path = graph_file(tmp_path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"cfg": content["cfg"] | changed}))
    with pytest.raises(CircuitFileError) as error:
        read_eap_ig(path, "zero")
    assert str(error.value) == f"Expected a graph of EAP-IG in {str(path)!r}; {message}"


def test_a_graph_may_lack_nodes_and_what_it_says_of_parallel_layers(tmp_path):
    path = graph_file(tmp_path)
    content = json.loads(path.read_text())
    del content["nodes"], content["cfg"]["parallel_attn_mlp"]
    path.write_text(json.dumps(content))
    read = read_eap_ig(path, "zero")
    assert len(read.circuit) == read.circuit.graph.total and read.losses == (NO_ABLATION,)
    content["nodes"] = {"m0": 3}
    path.write_text(json.dumps(content))
    with pytest.raises(CircuitFileError, match="TypeError: 'int' object is not iterable"):
        read_eap_ig(path, "zero")


def test_messages_name_the_file_and_what_stands_in_it(tmp_path):
    path = tmp_path / "file.json"
    for text, message in (
        ("{}", f"Expected a JSON list in {str(path)!r}; got dict"),
        ('[["m0", 3]]', f"Expected a list of [writer, reader] in {str(path)!r}; got ['m0', 3] in it"),
        (f'["{"a" * 999}"]', f"Expected a list of [writer, reader] in {str(path)!r}; got '{'a' * 199} in it"),
        ('[["m1", "m0"]]', f"Expected edges of a graph of {ONE.total} in {str(path)!r}; Expected"),
    ):
        path.write_text(text)
        with pytest.raises(CircuitFileError) as error:
            read_edge_pruning(path, ONE, "zero")
        assert str(error.value)[: len(message)] == message and len(str(error.value)) < len(message) + 120
    path = graph_file(tmp_path)
    content = json.loads(path.read_text())
    content["edges"]["m0->a0.h0<q>"] = content["edges"]["m0->logits"]
    path.write_text(json.dumps(content))
    with pytest.raises(CircuitFileError, match=rf"^Expected edges of a graph of 8 in {str(path)!r}; .*m0->a0.h0.q"):
        read_eap_ig(path, "zero")
    content["cfg"]["parallel_attn_mlp"] = True
    path.write_text(json.dumps(content))
    with pytest.raises(CircuitFileError, match=rf"^Expected attention before MLPs; in {str(path)!r} they are side by"):
        read_eap_ig(path, "zero")


def test_which_files_depend_on_the_family():
    assert not needs_family(Circuit(ONE, "zero", frozenset([Edge.parse("m0->logits")])))
    assert not needs_family(Circuit(TWO, "zero", frozenset(TWO.edges)))
    assert needs_family(Circuit(ONE, "zero", frozenset(ONE.edges)))


def test_the_family_of_a_model_that_is_no_folder_is_that_of_its_settings_in_the_cache(tmp_path, monkeypatch):
    asked, config = [], tmp_path / "config.json"
    config.write_text('{"model_type": "llama"}')
    found = [str(config), None, object()]

    def cached(name, file):
        asked.append((name, file))
        return found[len(asked) - 1]

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    saved = SavedCircuit(EMBED, model="someone/model")
    assert [family_of(saved), family_of(saved), family_of(saved)] == ["llama", None, None]
    assert asked == [("someone/model", "config.json")] * 3
    assert family_of(SavedCircuit(EMBED, model=str(tmp_path))) == "llama" and len(asked) == 3


def test_scores_are_those_of_the_edges_by_name():
    scores = torch.arange(float(len(ONE.sources) * len(ONE.destinations))).view(len(ONE.sources), -1)
    by_edge = scores_by_edge(scores, ONE)
    assert list(by_edge) == list(ONE.edges)
    assert all(score == scores[ONE.position(edge)] for edge, score in by_edge.items())


def test_of_an_edge_that_stands_twice_in_a_file_the_larger_score_in_size_counts(tmp_path):
    """As from two embeddings, whichever comes first; a score of 0 is one."""
    for first, second, expected in ((0.5, -1.5, -1.5), (-1.5, 0.5, -1.5), (0.0, -0.25, -0.25)):
        edges = {"tok->m0": first, "pos->m0": second}
        content = {name: {"score": score, "in_graph": score == first} for name, score in edges.items()}
        text = json.dumps({"cfg": {"n_layers": 1, "n_heads": 1}, "edges": content})
        (tmp_path / "graph.json").write_text(text)
        read = read_eap_ig(tmp_path / "graph.json", "zero")
        assert float(read.scores[read.circuit.graph.position(Edge.parse("embed->m0"))]) == expected
        assert read.circuit.names() == ["embed->m0"] and read.losses == (NO_ABLATION, SOME_EDGES)
