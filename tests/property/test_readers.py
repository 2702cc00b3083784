"""Every reader of a file, given bytes, JSON of any shape, and its own file with one value changed: a value or a typed
error of one line. Devices, pipes, folders and files without end are refused, and nothing is waited for."""

import json
import math
import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from _edgeprune_pytest import _declares_programs
from edgeprune.errors import EdgePruneError
from edgeprune.evaluation.evaluate import Evaluation
from edgeprune.files.checkpoint import restore_from
from edgeprune.files.folders import circuit_file
from edgeprune.files.other_tools import read_eap_ig, read_edge_pruning
from edgeprune.files.schemas import load
from edgeprune.files.store import LARGEST, load_saved
from edgeprune.files.true_circuits import load_true
from edgeprune.graph import Graph
from edgeprune.methods.edge_pruning.configurations import MINIMAX, PAPER
from edgeprune.methods.edge_pruning.engine import Pruning, problem_of
from edgeprune.runs import compare
from edgeprune.runs import prune as pruning_run
from edgeprune.runs.compare_table import ComparedRow
from edgeprune.runs.config import RunConfig
from edgeprune.tasks.jsonl import read_examples
from tracr_bridge.bench.results import read_rows
from tracr_bridge.certify.trained_models import read_asked
from tracr_bridge.checkpoints.read_back import digest_of, digest_of_file, read_content

GRAPH = Graph.transformer(embeddings=("tok", "pos"), layers=1, heads=1)
EDGES = ["tok->a0.h0.q", "a0.h0->logits"]
CIRCUIT = {
    "format": "edgeprune circuit 1",
    "model": "m",
    "ablation": "zero",
    "edges": EDGES,
    "scores": {EDGES[0]: 0.5},
    "method": {"name": "eap", "seed": 0, "config": {"batch_size": 32}},
    "versions": {"torch": "2"},
    "graph": {"sources": list(map(str, GRAPH.sources)), "destinations": list(map(str, GRAPH.destinations))},
}
ASKED = RunConfig(model="m", task="gp", pruning=MINIMAX)
RUN = asdict(pruning_run._Asked(pruning_run.FORMAT, ASKED, {"weights": "w"}, {"a": "b"}))
ROW = ComparedRow("eap", 8, 0.5, 10, 1.5, 1, "cpu", Evaluation(0.1, 0.2, 0.3, 0.4, 10, 0.5))
COMPARISON = asdict(compare._Kept(compare._FORMAT, {"model": "m", "sizes": {"train": 1}}, {"weights": "w"}, [ROW]))
RESULT = {
    **{"program": "p", "text": "t", "ablation": "zero", "method": "m", "seed": 0, "code": "c", "outcome": "exact"},
    **{"seconds": {"discover": 2.0}, "versions": {"a": "b"}, "config": {}, "edges": 10, "true": 2, "auroc": None},
    **{"iou": 1.0, "constructs": ["Select"], "proof": "listed", "status": "unique"},
}
CERTIFICATE = {
    **{"status": "unique", "inputs": 2, "pairs": 2, "exhaustive": True, "criterion": "largest difference"},
    **{"atol": 0.01, "gap": {"kept": 1.0, "dropped": 0.0}, "margin": 0.009, "choices": 3, "circuits": [EDGES]},
}
EXPORT = {
    "format": "edgeprune export 3",
    "program": {"name": "p", "doc": "d", "vocabulary": {"a": "a"}},
    **{"family": "gpt2", "seed": 0, "files": {}, "structural": EDGES, "max_abs_diff": 1e-6, "versions": {"a": "b"}},
    "graph": {"sources": ["embed"], "destinations": ["logits"], "edges": ["embed->logits"]},
    "outputs": {"kind": "categorical", "columns": [0, "x", None]},
    "domain": {"exhaustive": True, "inputs": ["a", "a a"], "expected": [[1], [None, 2.5]]},
    "circuits": {
        "zero": {"edges": EDGES, "certificate": CERTIFICATE},
        "mean": {"edges": [], "refused": "nothing could fail"},
        "resample": {"edges": EDGES, "certificate": CERTIFICATE},
    },
}
ABOUT = {
    **{"model": "toy", "task": "task.jsonl", "tolerance": 0.1, "criterion": "mean", "check": True},
    **{
        "sha256": {"task": "0", "weights": "1", "configuration": "2", "tokens": "3"},
        "ablation": "zero",
        "versions": {"a": "b"},
    },
}
EAP_IG = {
    "cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": False, "d_model": 4},
    "nodes": {"input": {"in_graph": True}},
    "edges": {"input->a0.h0<q>": {"score": 0.5, "in_graph": True}, "m0->logits": {"score": -2, "in_graph": False}},
}
EXAMPLES = [
    {"clean": "2 + 2 =<predict> 4</predict>", "corrupted": "2 + 3 =<predict> 5</predict>", "split": "test"},
    {"clean": "( )", "corrupted": ") )", "places": [[1, 4], [2, 3]], "split": "every"},
]


@dataclass(frozen=True)
class Reader:
    """What reads a file, and a file that it reads."""

    file: str
    sample: Any
    """As JSON; of lines, a list of them."""

    read: Callable[[Path], object]
    lines: bool = False

    def text(self, content: Any) -> str:
        each = content if self.lines and isinstance(content, list) else [content]
        return "".join(json.dumps(one) + "\n" for one in each)


def _truth(path: Path) -> object:
    (path.parent / "circuit.json").write_text(json.dumps(CIRCUIT))
    return load_true(path.parent, "zero")


def _export(path: Path) -> object:
    """With a digest that fits, so that more than that is looked at."""
    if path.is_file() and path.stat().st_size < LARGEST:
        try:
            content = json.loads(path.read_bytes())
            if "digest" not in content:
                path.write_text(json.dumps(content | {"digest": digest_of(content)}))
        except (ValueError, TypeError, AttributeError, RecursionError):
            pass
    return read_content(path.parent)


READERS = {
    "circuit": Reader("circuit.json", CIRCUIT, load_saved),
    "run": Reader("run.json", RUN, lambda path: pruning_run.read_config(path.parent)),
    "stopped run": Reader("run.json", RUN, lambda path: circuit_file(path.parent)),
    "comparison": Reader(
        "compare.json", COMPARISON, lambda path: load(compare._Kept, path, "a comparison", EdgePruneError)
    ),
    "results": Reader("results.jsonl", [RESULT, RESULT | {"seed": 1}], read_rows, lines=True),
    "export": Reader("circuit.json", EXPORT, _export),
    "certificate": Reader("certificate.json", {"claims": {"circuits": [EDGES]}}, _truth),
    "truth": Reader("truth.json", {"certificate": {"circuits": [EDGES]}}, _truth),
    "truth of a trained model": Reader("truth.json", {"about": ABOUT}, lambda path: read_asked(path.parent)),
    "eap-ig": Reader("graph.json", EAP_IG, lambda path: read_eap_ig(path, "zero")),
    "edge-pruning": Reader(
        "edges.json", [["tok_embeds", "a0.h0.q"]], lambda path: read_edge_pruning(path, GRAPH, "zero")
    ),
    "task": Reader("own.jsonl", EXAMPLES, read_examples, lines=True),
}
every_reader = pytest.mark.parametrize("name", READERS)
quick = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 10**18, 10**30, 10**4000, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf])
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["../secret", "/dev/zero", "\ud800", "tok->logits", "zero", "a" * 5000])
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
)


@st.composite
def one_changed(draw, sample):
    """The same with one value, however deep, changed, gone, or beside another."""
    content = deepcopy(sample)
    within, place = None, content
    while isinstance(place, dict | list) and place and (within is None or draw(st.integers(0, 3))):
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        within, key = place, draw(st.sampled_from(keys))
        place = within[key]
    how = draw(st.sampled_from(["change", "change", "remove", "add"]))
    if how == "remove":
        del within[key]
    elif how == "add" and isinstance(within, dict):
        within[draw(st.text(max_size=9))] = draw(anything)
    else:
        within[key] = draw(anything)
    return content


def prepared(tmp_path: Path, name: str) -> Path:
    """An empty folder, but for the files that an export is about."""
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    if name == "export":
        files = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
        for file in files:
            (folder / file).write_text(file)
        EXPORT["files"] = {file: digest_of_file(folder / file) for file in files}
    return folder / READERS[name].file


def read(name: str, path: Path) -> None:
    """A value, or a typed error of one line that is not endless."""
    try:
        READERS[name].read(path)
    except EdgePruneError as error:
        assert "\n" not in (said := str(error)), said
        assert len(said) < 2000


@every_reader
def test_the_sample_itself_is_read(tmp_path, name):
    path = prepared(tmp_path, name)
    path.write_text(READERS[name].text(READERS[name].sample))
    if name == "stopped run":
        with pytest.raises(EdgePruneError, match="stands at step 0 of"):
            circuit_file(path.parent)
        return
    READERS[name].read(path)


@every_reader
@given(data=st.data())
@quick
def test_bytes_are_a_value_or_a_typed_error(tmp_path, name, data):
    path = prepared(tmp_path, name)
    path.write_bytes(data.draw(st.binary(max_size=200) | st.text(max_size=50).map(str.encode)))
    read(name, path)


@every_reader
@given(data=st.data())
@quick
def test_json_of_any_shape_is_a_value_or_a_typed_error(tmp_path, name, data):
    path = prepared(tmp_path, name)
    path.write_text(READERS[name].text(data.draw(anything)))
    read(name, path)


@every_reader
@given(data=st.data())
@quick
def test_a_file_with_one_value_changed_is_a_value_or_a_typed_error(tmp_path, name, data):
    path = prepared(tmp_path, name)
    path.write_text(READERS[name].text(data.draw(one_changed(READERS[name].sample))))
    read(name, path)


@pytest.mark.sweep
@every_reader
@given(data=st.data())
@settings(quick, max_examples=1000)
def test_many_a_file_with_one_value_changed_is_a_value_or_a_typed_error(tmp_path, name, data):
    path = prepared(tmp_path, name)
    path.write_text(READERS[name].text(data.draw(one_changed(READERS[name].sample))))
    read(name, path)


@contextmanager
def soon():
    """Fail, and do not wait, where something is waited for or read without end."""

    def late(number, frame):
        pytest.fail("it is waited for, or read without end")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 20)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _pipe(path):
    os.mkfifo(path)


def _device(path):
    path.symlink_to("/dev/zero")


def _endless(path):
    with path.open("wb") as file:
        file.truncate(2**40)


ODD = {
    "a pipe": _pipe,
    "a device": _device,
    "a folder": Path.mkdir,
    "without end": _endless,
    "one byte too large": lambda path: os.truncate(path, LARGEST + 1) if path.touch() is None else None,
    "nested": lambda path: path.write_text(100_000 * "[" + "\n"),
    "nested objects": lambda path: path.write_text(100_000 * '{"a":' + "\n"),
}

NUMBERS = {
    "1e400": "(1e400|Infinity) is no number",
    "NaN": "NaN is no number",
    10_000 * "9": "10,000 characters is too large",
}
"""What stands for a number, and what is said of it."""


def with_number(content, literal):
    """JSON in which the first number is another; none where there is no number."""
    found = []

    def walk(value):
        if type(value) in (int, float) and not found:
            found.append(value)
            return "@number@"
        if isinstance(value, dict):
            return {key: walk(each) for key, each in value.items()}
        return [walk(each) for each in value] if isinstance(value, list) else value

    changed = walk(content)
    return json.dumps(changed).replace('"@number@"', literal) if found else None


@pytest.mark.parametrize("name", [name for name, reader in READERS.items() if with_number(reader.sample, "0")])
@pytest.mark.parametrize("literal", NUMBERS)
def test_a_number_without_end_in_the_place_of_one_is_refused_as_that(tmp_path, name, literal):
    path, reader = prepared(tmp_path, name), READERS[name]
    lines = reader.sample if reader.lines and isinstance(reader.sample, list) else [reader.sample]
    path.write_text("".join((with_number(line, literal) or json.dumps(line)) + "\n" for line in lines))
    with pytest.raises(EdgePruneError, match=NUMBERS[literal]):
        reader.read(path)


@every_reader
@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_file_or_has_no_end_is_refused_at_once(tmp_path, name, odd):
    path = prepared(tmp_path, name)
    ODD[odd](path)
    with soon(), pytest.raises(EdgePruneError) as error:
        READERS[name].read(path)
        if name == "stopped run" and not path.is_file():
            raise EdgePruneError("there is no run")
    assert len(str(error.value)) < 1000


def test_a_number_is_whole_up_to_the_size_of_64_bits(tmp_path):
    for number, fits in ((2**64 - 1, True), (-(2**63), True), (10**20, False)):
        path = tmp_path / "circuit.json"
        path.write_text(json.dumps(CIRCUIT | {"scores": {EDGES[0]: number}}))
        if fits:
            load_saved(path)
        else:
            with pytest.raises(EdgePruneError, match="a whole number of 21 characters is too large"):
                load_saved(path)


# Files of an export


@pytest.mark.parametrize("odd", ["a pipe", "a device", "a folder", "without end"])
def test_a_file_of_an_export_that_is_no_file_is_refused(tmp_path, odd):
    path = prepared(tmp_path, "export")
    (path.parent / "config.json").unlink()
    ODD[odd](path.parent / "config.json")
    path.write_text(json.dumps(EXPORT))
    with soon(), pytest.raises(EdgePruneError, match=r"Expected the files that .* is about beside it"):
        _export(path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "a/../../secret", "sub/file", "", "a\0b"])
def test_a_file_elsewhere_is_no_file_of_an_export(tmp_path, name):
    path = prepared(tmp_path, "export")
    (tmp_path / "secret").write_text("mine")
    path.write_text(json.dumps(EXPORT | {"files": EXPORT["files"] | {name: digest_of_file(tmp_path / "secret")}}))
    with pytest.raises(EdgePruneError, match="files of the folder itself"):
        _export(path)


def test_a_link_out_of_the_folder_is_no_file_of_an_export(tmp_path):
    path = prepared(tmp_path, "export")
    (tmp_path / "secret").write_text("config.json")
    (path.parent / "config.json").unlink()
    (path.parent / "config.json").symlink_to(tmp_path / "secret")
    path.write_text(json.dumps(EXPORT))
    with pytest.raises(EdgePruneError, match=r"'config\.json' lies elsewhere"):
        _export(path)


# Checkpoints, and programs


@pytest.fixture(scope="module")
def run(compiled):
    given = compiled("length")
    return Pruning(problem_of(given.model, given.dataset, "zero", PAPER), PAPER)


@given(data=st.data())
@quick
def test_a_checkpoint_of_any_bytes_or_with_some_changed_is_damaged_or_whole(tmp_path, run, data):
    whole = bytearray(save({name: value.contiguous() for name, value in run.state().items()}))
    if data.draw(st.booleans()):
        whole = bytearray(data.draw(st.binary(max_size=200)))
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        del whole[data.draw(st.integers(0, len(whole)) | st.just(len(whole))) :]
    (tmp_path / "state").write_bytes(whole)
    try:
        restore_from(tmp_path / "state", run.restore)
    except EdgePruneError as error:
        assert "it is damaged" in str(error)
    assert bool(run.masks.log_alpha.isfinite().all())


@pytest.mark.parametrize("odd", ["a pipe", "a device", "a folder", "without end"])
def test_a_checkpoint_that_is_no_file_is_damaged(tmp_path, run, odd):
    ODD[odd](tmp_path / "state")
    with soon(), pytest.raises(EdgePruneError, match="it is damaged"):
        restore_from(tmp_path / "state", run.restore)


@given(st.binary(max_size=200) | st.text(max_size=50).map(lambda text: f"from tracr_bridge import {text}".encode()))
@quick
def test_whether_a_file_declares_programs_is_told_of_any_bytes(tmp_path, content):
    (tmp_path / "file.py").write_bytes(content)
    assert _declares_programs(tmp_path / "file.py") in (True, False)


@pytest.mark.parametrize("odd", ["a pipe", "a device", "a folder", "without end"])
def test_what_is_no_file_declares_no_programs(tmp_path, odd):
    ODD[odd](tmp_path / "file.py")
    with soon():
        assert not _declares_programs(tmp_path / "file.py")


@pytest.mark.parametrize("score", [1e308, -1e308, 3.5e38])
def test_a_score_beyond_single_precision_is_refused(tmp_path, score):
    graph = deepcopy(EAP_IG)
    graph["edges"]["m0->logits"]["score"] = score
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    with pytest.raises(EdgePruneError, match=r"up to 3.4e\+38 in size, not -?(1e\+308|3.5e\+38)"):
        read_eap_ig(tmp_path / "graph.json", "zero")
    graph["edges"]["m0->logits"]["score"] = 3.4e38
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    assert float(read_eap_ig(tmp_path / "graph.json", "zero").scores.max()) == pytest.approx(3.4e38)
    assert torch.isfinite(read_eap_ig(tmp_path / "graph.json", "zero").scores).all()
