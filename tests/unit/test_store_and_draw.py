import json
import math
import os
import platform
import re
import stat
import tomllib
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import jsonschema
import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeprune.errors import RunError
from edgeprune.files.store import (
    LARGEST,
    SCHEMA,
    CircuitFileError,
    SavedCircuit,
    UnwritableFile,
    check_writable,
    load_circuit,
    load_json,
    load_saved,
    open_plain,
    parse_json,
    read_bytes,
    read_text,
    save_circuit,
    versions,
    write_atomically,
    write_json,
    write_text,
)
from edgeprune.graph import ABLATIONS, Circuit, Comparison, Edge, Graph, Node, compare_circuits
from edgeprune.pictures.draw import UnknownFormat, draw_comparison, save_figure

GRAPH = Graph.transformer(embeddings=("tok", "pos"), layers=2, heads=2)


def comparison() -> tuple[Circuit, Comparison]:
    def circuit(*names: str) -> Circuit:
        return Circuit(GRAPH, "zero", frozenset(map(Edge.parse, names)))

    found = circuit("tok->a0.h0.q", "a0.h0->m1", "m1->logits")
    return found, compare_circuits(found, circuit("tok->a0.h0.q", "pos->a0.h1.v", "m1->logits"))


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
    root = SCHEMA.parents[2]
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


@pytest.mark.fakes
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


# What is written, to the letter, and what is said of what is not


def test_a_circuit_alone_has_what_a_file_needs_and_no_more(tmp_path):
    circuit = Circuit(Graph((Node("tok"),), (Node("m", 0), Node("logits"))), "mean", frozenset([Edge.parse("tok->m0")]))
    save_circuit(circuit, tmp_path / "circuit.json")
    needed = {
        "format": "edgeprune circuit 1",
        "ablation": "mean",
        "edges": ["tok->m0"],
        "graph": {"sources": ["tok"], "destinations": ["m0", "logits"]},
    }
    assert (tmp_path / "circuit.json").read_text() == json.dumps(needed, indent=1) + "\n"
    more = {"model": "m", "family": "gpt2", "method": {"name": "eap"}, "versions": {"torch": "2"}}
    saved = SavedCircuit(
        circuit, {Edge.parse("tok->m0"): -0.5}, **more, certificate={"status": "unique", "circuits": [["tok->m0"]]}
    )
    save_circuit(saved, tmp_path / "circuit.json")
    written = json.loads((tmp_path / "circuit.json").read_text())
    assert written == needed | more | {
        "scores": {"tok->m0": -0.5},
        "certificate": {"status": "unique", "circuits": [["tok->m0"]]},
    }
    assert load_saved(tmp_path / "circuit.json") == saved and saved.true == (circuit,)
    assert SavedCircuit(circuit).true == (circuit,)
    save_circuit(replace(circuit, edges=frozenset()), tmp_path / "circuit.json")
    assert json.loads((tmp_path / "circuit.json").read_text())["edges"] == []


def test_all_circuits_of_a_certificate_are_true_and_what_was_certified_is_one_of_them(tmp_path):
    circuit = Circuit(GRAPH, "zero", frozenset([Edge.parse("tok->m0")]))
    listed = [["pos->m0", "m0->logits"], ["tok->m0"]]
    saved = SavedCircuit(circuit, certificate={"status": "minimal", "circuits": listed})
    assert saved.true == tuple(replace(circuit, edges=frozenset(map(Edge.parse, names))) for names in listed)
    save_circuit(replace(saved, certificate={"status": "minimal", "circuits": listed[:1]}), tmp_path / "circuit.json")
    with pytest.raises(CircuitFileError) as error:
        load_saved(tmp_path / "circuit.json")
    assert str(error.value) == (
        f"Expected a circuit in {str(tmp_path / 'circuit.json')!r}; it was certified, and is not among the circuits of "
        "its certificate"
    )
    found = replace(
        saved, certificate={"status": "minimal", "circuits": listed[:1]}, method={"name": "eap"}
    )  # which may be wrong
    save_circuit(found, tmp_path / "circuit.json")
    assert load_saved(tmp_path / "circuit.json") == found


def test_where_nothing_can_be_written_is_told_before():
    def refuses(path):
        with pytest.raises(UnwritableFile) as error:
            check_writable(path)
        assert str(error.value) == f"Expected a file in an existing, writable folder; got {str(path)!r}"

    with TemporaryDirectory() as name:
        folder = Path(name)
        check_writable(folder / "file")
        (folder / "file").touch()
        check_writable(folder / "file")
        for path in (folder, folder / "none" / "file", folder / "file" / "file", folder / ("n" * 256) / "file"):
            refuses(path)
        refuses(folder / ("n" * 5000))


def test_a_folder_that_may_not_be_written_to_is_told_before(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("os.access", lambda path, how: asked.append((path, how)))
    with pytest.raises(UnwritableFile, match="writable folder"):
        check_writable(tmp_path / "file")
    assert asked == [(tmp_path, os.W_OK)]


def test_a_file_that_cannot_be_written_is_named_with_the_reason_and_nothing_is_left(tmp_path):
    (tmp_path / "folder").mkdir()
    for path, why in (
        (tmp_path / "none" / "file", "No such file or directory"),
        (tmp_path / "folder", "Is a directory"),
    ):
        with pytest.raises(UnwritableFile) as error:
            write_text(path, "text")
        assert str(error.value) == f"Expected a file that can be written; got {str(path)!r}: {why}"
    assert os.listdir(tmp_path) == ["folder"]
    write_text(tmp_path / "file", "é\n")
    assert (tmp_path / "file").read_bytes() == "é\n".encode()


def test_what_is_written_stands_in_a_hidden_file_beside_until_it_is_whole(tmp_path):
    (tmp_path / "file").write_text("before")

    def write(file):
        file.write(b"after")
        (hidden,) = set(os.listdir(tmp_path)) - {"file"}
        assert re.fullmatch(r"\.[0-9a-f]{32}", hidden) and (tmp_path / "file").read_text() == "before"

    write_atomically(tmp_path / "file", write)
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "after"


@pytest.mark.parametrize(("count", "fits"), [(5, True), (6, False)])
def test_a_file_is_read_up_to_a_size_and_none_that_has_grown_beyond(tmp_path, monkeypatch, count, fits):
    path = tmp_path / "file"
    path.write_bytes(b"x" * count)
    if fits:
        assert read_bytes(path, most=5) == b"x" * count
    else:
        with pytest.raises(OSError, match=r"^it has more than 5 bytes$"):
            read_bytes(path, most=5)
    monkeypatch.setattr("os.fstat", lambda descriptor: os.stat_result([stat.S_IFREG, *[0] * 9]))
    if fits:
        assert read_bytes(path, most=5) == b"x" * count
    else:
        with pytest.raises(OSError, match=r"^it has more than 5 bytes$"):
            read_bytes(path, most=5)


def test_a_file_of_many_bytes_is_refused_with_their_number(tmp_path):
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", LARGEST + 1)
    with pytest.raises(RunError) as error:
        read_text(tmp_path / "large", "a run", RunError)
    path = str(tmp_path / "large")
    assert str(error.value) == f"Expected a run; cannot read {path!r}: it has more than 536,870,912 bytes"


def test_what_cannot_be_read_as_text_is_named_with_the_reason(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff" * 300)
    os.mkfifo(tmp_path / "pipe")
    for path, why in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "it is no plain file"),
        (tmp_path / "pipe", "it is no plain file"),
        (tmp_path / "bytes", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (tmp_path / "a\0b", "embedded null byte"),
    ):
        with pytest.raises(RunError) as error:
            read_text(path, "a thing", RunError)
        assert str(error.value) == f"Expected a thing; cannot read {str(path)!r}: {why}"
    (tmp_path / "text").write_text("é")
    assert read_text(tmp_path / "text", "a thing", RunError) == "é"


def test_files_that_are_opened_are_closed_whatever_they_are(tmp_path):
    (tmp_path / "file").touch()
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=r"^it is no plain file$"):
            open_plain(path)
    with open_plain(tmp_path / "file") as file:
        assert file.mode == "rb" and not os.get_inheritable(file.fileno())
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"a": 1, "b": 2, "a": 3, "a": 4}', "'a' stands in it 3 times"),
        (f'{{"{"n" * 300}": 1, "{"n" * 300}": 2}}', f"'{'n' * 199} stands in it 2 times"),
        ("[-Infinity]", "-Infinity is no number"),
        ("NaN", "NaN is no number"),
        ("-1e999", "-1e999 is no number"),
        (f"1{'0' * 60}e999", f"1{'0' * 39} is no number"),
        ("9" * 21, "a whole number of 21 characters is too large"),
        ("9" * 1234, "a whole number of 1,234 characters is too large"),
        (f"-{'9' * 20}", "a whole number of 21 characters is too large"),
        ("[" * 100_000, "it is nested too deeply"),
    ],
)
def test_json_that_says_what_no_number_or_object_is_is_refused(tmp_path, text, fault):
    with pytest.raises(ValueError, match=f"^{re.escape(fault)}$"):
        parse_json(text)
    (tmp_path / "file").write_text(text)
    path = str(tmp_path / "file")
    with pytest.raises(RunError) as error:
        load_json(tmp_path / "file", "a thing", RunError)
    assert str(error.value) == f"Expected a thing in {path!r}; it is none: {fault:.200}"
    with pytest.raises(CircuitFileError, match=r"^Expected a circuit's file in "):
        load_json(tmp_path / "file")


def test_json_of_numbers_of_any_size_that_they_may_have_is_read():
    text = '{"a": [1, -2.5, 1e308, true, null, "é"], "b": {"a": 99999999999999999999, "c": -9999999999999999999}}'
    assert parse_json(text) == json.loads(text)
    with pytest.raises(ValueError, match="surrogates not allowed"):
        parse_json('"\\ud800"')


def test_a_file_that_holds_no_circuit_is_named_with_the_place_of_the_fault(tmp_path):
    path = tmp_path / "circuit.json"
    for content, said in (
        (SMALL | {"edges": 3}, "in edges: 3 is not of type 'array'"),
        ([], "[] is not of type 'object'"),
        (SMALL | {"edges": ["x\n" * 300]}, ("in edges/0: '" + r"x\n" * 300)[:300]),
        (SMALL | {"scores": {"tok->a0.h0.q": 1.0}}, "Expected an edge of this graph of 2 edges; got tok->a0.h0.q"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(CircuitFileError) as error:
            load_saved(path)
        assert str(error.value).startswith(f"Expected a circuit in {str(path)!r}; {said}"), str(error.value)
        assert len(str(error.value)) <= len(f"Expected a circuit in {str(path)!r}; ") + 300


def test_versions_are_of_what_runs_and_of_what_is_not_installed_it_is_said(monkeypatch):
    found = versions()
    assert list(found) == [
        "python", "edgeprune", "tracr-pypi", "torch", "jax", "jaxlib", "dm-haiku", "numpy", "scikit-learn",
        "transformers",
    ]  # fmt: skip
    assert found["python"] == platform.python_version() and found["numpy"] == numpy.__version__

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("edgeprune.files.store.version", missing)
    again = versions.__wrapped__()
    assert again == {name: found["python"] if name == "python" else "not installed" for name in found}
