import json
import math
import os
import tomllib
from xml.etree import ElementTree

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeprune.draw import UnknownFormat, draw_comparison, save_figure
from edgeprune.graph import ABLATIONS, Circuit, Comparison, Edge, Graph, Node, compare
from edgeprune.store import (
    SCHEMA,
    CircuitFileError,
    SavedCircuit,
    UnwritableFile,
    load_circuit,
    load_json,
    load_saved,
    save_circuit,
    write_atomically,
    write_json,
)

GRAPH = Graph.transformer(embeddings=("tok", "pos"), layers=2, heads=2)


def comparison() -> tuple[Circuit, Comparison]:
    def circuit(*names: str) -> Circuit:
        return Circuit(GRAPH, "zero", frozenset(map(Edge.parse, names)))

    found = circuit("tok->a0.h0.q", "a0.h0->m1", "m1->logits")
    return found, compare(found, circuit("tok->a0.h0.q", "pos->a0.h1.v", "m1->logits"))


@pytest.mark.parametrize(("ending", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_a_circuit_is_drawn_in_every_format(tmp_path, ending, start):
    found, against = comparison()
    file = tmp_path / f"circuit.{ending}"
    save_figure(draw_comparison(GRAPH, found.edges, against, "two layers"), file)
    assert file.read_bytes().startswith(start)


def test_true_missing_and_extra_edges_are_told_apart_by_line_as_by_colour():
    found, against = comparison()
    (axes,) = draw_comparison(GRAPH, found.edges, against, "two layers").axes
    drawn = sorted((patch.get_linestyle(), patch.get_edgecolor()) for patch in axes.patches)
    assert len({line for line, _ in drawn}) == 3
    assert len({colour for _, colour in drawn}) == 3
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["true", "missing", "extra"]
    assert {"tok", "pos", "a0.h0", "a1.h1", "m1", "logits"} <= {text.get_text() for text in axes.texts}


def test_another_format_is_refused(tmp_path):
    found, against = comparison()
    with pytest.raises(UnknownFormat, match=r"ending in svg, png, pdf; got 'circuit\.bmp'"):
        save_figure(draw_comparison(GRAPH, found.edges, against, ""), tmp_path.__class__("circuit.bmp"))


def test_a_failed_write_leaves_what_stood_there_and_nothing_else(tmp_path):
    file = tmp_path / "kept.txt"
    file.write_text("before")

    def fail(stream):
        stream.write(b"half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_atomically(file, fail)
    assert file.read_text() == "before"
    assert os.listdir(tmp_path) == ["kept.txt"]


def test_a_name_may_be_as_long_as_the_system_has_it_and_no_longer(tmp_path):
    write_atomically(tmp_path / ("n" * 255), lambda stream: stream.write(b"whole"))
    assert os.listdir(tmp_path) == ["n" * 255]
    with pytest.raises(UnwritableFile, match="File name too long"):
        write_atomically(tmp_path / ("n" * 256), lambda stream: stream.write(b""))


def test_files_that_are_no_code_come_with_the_package():
    root = SCHEMA.parents[1]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    for package in ("edgeprune", "tracr_bridge", "programs"):
        for file in (root / package).rglob("*"):
            if file.is_file() and file.suffix not in (".py", ".pyc"):
                assert any(file.match(pattern) for pattern in patterns), file


def test_a_part_of_a_graph_is_drawn_with_all_its_nodes(tmp_path):
    graph = Graph((Node("tok"),), (Node("m", 0), Node("a", 1, 2, "k"), Node("logits")))
    save_figure(draw_comparison(graph, graph.edges, None, "a part"), tmp_path / "p.svg")
    drawn = (tmp_path / "p.svg").read_text()
    assert all(f"<!-- {name} -->" in drawn for name in ("tok", "m0", "a1.h2", "logits"))


def test_a_picture_larger_than_its_format_is_refused(tmp_path):
    graph = Graph((Node("tok"), Node("a", 0, 99_999)), (Node("logits"),))
    with pytest.raises(UnwritableFile, match=r"Expected a picture that png can hold; .*draw it as svg"):
        save_figure(draw_comparison(graph, graph.edges, None, "wide"), tmp_path / "p.png")
    assert not any(tmp_path.iterdir())


def test_a_title_of_any_characters_makes_a_picture_that_is_xml(tmp_path):
    save_figure(draw_comparison(GRAPH, [], None, "a\x01b\ud800"), tmp_path / "p.svg")
    ElementTree.parse(tmp_path / "p.svg")


def test_a_link_stays_one_and_what_is_no_file_is_written_to(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    for content in (b"first", b"second"):
        write_atomically(tmp_path / "link", lambda file, content=content: file.write(content))
        assert (tmp_path / "folder" / "file").read_bytes() == content
    assert (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / "pipe", lambda file: file.write(b"through"))
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_a_title_is_no_mathematics(tmp_path):
    found, _ = comparison()
    save_figure(draw_comparison(GRAPH, found.edges, None, r"a$\frac$"), tmp_path / "circuit.svg")


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(UnwritableFile, match="Expected a file that can be written"):
        write_atomically(tmp_path / "no" / "file.txt", lambda stream: stream.write(b""))


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, "task\udcff.jsonl"], ids=["nan", "inf", "-inf", "half a character"]
)
def test_nothing_is_written_as_json_that_could_not_be_read_again(tmp_path, value):
    file = tmp_path / "run.json"
    write_json(file, before := {"task": "Ł", "losses": [0.1, 1e-300]})
    assert load_json(file, CircuitFileError) == before
    with pytest.raises(UnwritableFile, match=r"Expected text in UTF-8 and finite numbers for '.*run\.json'; got "):
        write_json(file, {"task": {"nested": [value]}})
    assert load_json(file, CircuitFileError) == before and os.listdir(tmp_path) == ["run.json"]


def test_a_circuit_is_read_back_as_it_was_saved(tmp_path):
    found, _ = comparison()
    save_circuit(found, tmp_path / "circuit.json")
    assert load_circuit(tmp_path / "circuit.json") == found
    assert len(found) == 3


edges = st.sampled_from(GRAPH.edges)
words = st.text(max_size=9)
saved_circuits = st.builds(
    SavedCircuit,
    st.builds(Circuit, st.just(GRAPH), st.sampled_from(ABLATIONS), st.frozensets(edges)),
    scores=st.dictionaries(edges, st.floats(allow_nan=False, allow_infinity=False)),
    model=words,
    method=st.just({})
    | st.fixed_dictionaries(
        {"name": words, "seed": st.integers(0, 9)}, optional={"config": st.dictionaries(words, st.booleans())}
    ),
    versions=st.dictionaries(words, words),
)


@given(saved_circuits)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_all_that_is_saved_is_read_back_and_is_as_the_schema_has_it(tmp_path, saved):
    save_circuit(saved, tmp_path / "circuit.json")
    assert load_saved(tmp_path / "circuit.json") == saved
    jsonschema.validate(json.loads((tmp_path / "circuit.json").read_text()), json.loads(SCHEMA.read_text()))


def test_a_score_that_is_no_number_is_not_written(tmp_path):
    found, _ = comparison()
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_circuit(SavedCircuit(found, {GRAPH.edges[0]: float("nan")}), tmp_path / "circuit.json")
    assert os.listdir(tmp_path) == []


def test_a_circuit_alone_is_drawn_without_a_verdict():
    found, _ = comparison()
    (axes,) = draw_comparison(GRAPH, found.edges, None, "two layers").axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["kept"]
    assert len(axes.patches) == len(found)


SMALL = {
    "format": "edgeprune circuit 1",
    "ablation": "zero",
    "graph": {"sources": ["tok"], "destinations": ["m0", "logits"]},
    "edges": ["tok->m0"],
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", r"\[\] is not of type 'object'"),
        ("{}", "is a required property"),
        (SMALL | {"format": 3}, "in format: 'edgeprune circuit 1' was expected"),
        ({k: v for k, v in SMALL.items() if k != "ablation"}, "'ablation' is a required property"),
        (SMALL | {"graph": {"sources": []}}, "in graph: 'destinations' is a required property"),
        (SMALL | {"ablation": "noise"}, r"'noise' is not one of \['zero', 'mean', 'resample'\]"),
        (SMALL | {"edges": ["m0->logits"]}, "m0->logits"),
        (SMALL | {"edges": ["tok->m0", "tok->m0"]}, "in edges: .* has non-unique elements"),
        (SMALL | {"graph": {"sources": [], "destinations": ["logits"]}, "edges": []}, "should be non-empty"),
        (SMALL | {"graph": {"sources": ["tok"], "destinations": []}, "edges": []}, "should be non-empty"),
        (
            SMALL | {"graph": {"sources": ["tokens"], "destinations": ["logits"]}},
            "sources/0: 'tokens' does not match",
        ),
        (SMALL | {"graph": {"sources": ["a0.h0.q"], "destinations": ["logits"]}}, "'a0.h0.q' does not match"),
        (SMALL | {"graph": {"sources": 3, "destinations": ["logits"]}}, "3 is not of type 'array'"),
        (SMALL | {"score": {}}, "Additional properties are not allowed"),
        (SMALL | {"scores": {"m0->logits": 1}}, "got m0->logits"),
        (SMALL | {"scores": {"tok->m0": "0.5"}}, "in scores/tok->m0: '0.5' is not of type 'number'"),
        (json.dumps(SMALL | {"scores": {"tok->m0": float("nan")}}), "NaN is no number"),
        (json.dumps(SMALL | {"scores": {"tok->m0": 3}}).replace("3}", "1e999}"), "1e999 is no number"),
        (SMALL | {"scores": {"tok->m0": 10**400}}, "too large"),
        (SMALL | {"model": "\ud800"}, "surrogates not allowed"),
        (
            SMALL | {"graph": {"sources": ["tok", f"m{5000 * '9'}"], "destinations": ["logits"]}},
            "Expected a node such as",
        ),
        (SMALL | {"model": None}, "in model: None is not of type 'string'"),
        (SMALL | {"method": {"seed": 1}}, "in method: 'name' is a required property"),
        (SMALL | {"method": {"name": 5}}, "5 is not of type 'string'"),
    ],
)
def test_a_file_that_holds_no_circuit_is_refused(tmp_path, text, message):
    (tmp_path / "circuit.json").write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(CircuitFileError, match=message):
        load_circuit(tmp_path / "circuit.json")


def test_a_missing_circuit_is_refused(tmp_path):
    with pytest.raises(CircuitFileError, match="No such file"):
        load_circuit(tmp_path / "none.json")
