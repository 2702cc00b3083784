"""All true circuits and their certificate in one file: written, read, drawn against, scored and converted."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgeprune.cli.main import main
from edgeprune.errors import EdgePruneError
from edgeprune.files.other_tools import NO_CERTIFICATE, ONE_CIRCUIT
from edgeprune.files.store import CircuitFileError, SavedCircuit, load_saved, save_circuit
from edgeprune.files.true_circuits import load_true, nearest
from edgeprune.graph import Circuit, CircuitMismatch, Edge, Graph
from tracr_bridge.certify.summary import certificate_json, saved_truth
from tracr_bridge.certify.truth import Gap
from tracr_bridge.checkpoints.read_back import _certificate

SCORE = Path(__file__).parents[2] / "examples" / "verify_your_tool" / "score.py"


@pytest.fixture
def written(truth, tmp_path):
    """The truth of a program with two true circuits, of other sizes, in one file."""
    save_circuit(saved_truth(truth("shuffle_dyck1", "zero"), "shuffle_dyck1"), tmp_path / "true.json")
    return tmp_path / "true.json"


def listed(path: Path) -> list[list[str]]:
    return json.loads(path.read_text())["certificate"]["circuits"]


def test_the_command_writes_the_truth_into_one_file_in_place_of_what_was_there(truth, tmp_path, capsys):
    file = tmp_path / "true.json"
    file.write_text("what was there before")
    assert main(["truth", "shuffle_dyck1", "--save", str(file), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    content, certified = json.loads(file.read_text()), truth("shuffle_dyck1", "zero")
    assert content["certificate"].items() >= said["certificate"].items()
    assert said["certificate"] == certificate_json(certified.certificate)
    assert content["certificate"]["structural"] == said["structural_edges"]
    assert [len(circuit) for circuit in listed(file)] == [19, 24]
    assert content["edges"] == listed(file)[0]
    assert [file] == list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [0, 1])
def test_any_of_several_true_circuits_is_drawn_as_exact(written, truth, tmp_path, capsys, number):
    circuit = truth("shuffle_dyck1", "zero").certificate.circuits[number]
    save_circuit(circuit, tmp_path / "found.json")
    command = ["draw", str(tmp_path / "found.json"), "-o", str(tmp_path / "p.svg"), "--against", str(written), "--json"]
    assert main(command) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["exact"], said["missing"], said["extra"], said["true_circuits"]) == (True, [], [], 2)
    one = sorted(circuit.edges)[0]
    save_circuit(Circuit(circuit.graph, "zero", circuit.edges - {one}), tmp_path / "found.json")
    assert main(command) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["exact"], said["missing"], said["extra"]) == (False, [str(one)], [])


def test_a_recovery_is_saved_with_the_truth_that_it_was_compared_with(tmp_path, capsys):
    found = tmp_path / "found.json"
    assert main(["recover", "first_token", "--method", "random", "--save", str(found), "--json"]) == 1
    said, saved = json.loads(capsys.readouterr().out), load_saved(found)
    assert saved.circuit.names() == said["found"] != said["truth"]
    assert [circuit.names() for circuit in saved.true] == said["certificate"]["circuits"] == [said["truth"]]
    assert main(["draw", str(found), "-o", str(tmp_path / "p.svg"), "--against", str(found), "--json"]) == 1
    drawn = json.loads(capsys.readouterr().out)
    assert (drawn["missing"], drawn["extra"]) == (said["missing"], said["extra"])
    # What was converted from it has the circuit found, and no certificate: it counts as true itself.
    assert main(["convert", str(found), str(tmp_path / "theirs.json"), "--to", "eap-ig", "--json"]) == 0
    losses = json.loads(capsys.readouterr().out)["losses"]
    assert NO_CERTIFICATE in losses and ONE_CIRCUIT not in losses


def test_what_a_file_of_another_tool_does_not_hold_is_said(written, tmp_path, capsys):
    copy = tmp_path / "copy.json"
    assert main(["convert", str(written), str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["losses"] == [] and copy.read_text() == written.read_text()
    assert main(["convert", str(written), str(tmp_path / "edges.json"), "--to", "edge-pruning", "--json"]) == 0
    assert {ONE_CIRCUIT, NO_CERTIFICATE} <= {*json.loads(capsys.readouterr().out)["losses"]}
    assert len(json.loads((tmp_path / "edges.json").read_text())) == len(listed(written)[0])


def score(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What the script says, without any package."""
    command = [sys.executable, "-I", "-S", str(SCORE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_scores_against_the_nearest_and_takes_circuits_as_files(written, truth, tmp_path):
    for circuit in truth("shuffle_dyck1", "zero").certificate.circuits:
        save_circuit(circuit, tmp_path / "found.json")
        (tmp_path / "found.txt").write_text("\n".join(circuit.names()))
        for name in ("found.json", "found.txt"):
            ran = score(written, "--edges", tmp_path / name)
            assert ran.returncode == 0 and f"{len(circuit)} true edges" in ran.stdout, ran.stderr
    (tmp_path / "found.txt").write_text("\n".join(circuit.names()[1:]))
    ran = score(written, "--edges", tmp_path / "found.txt")
    assert ran.returncode == 1 and f"missing: {circuit.names()[0]}\nextra: none" in ran.stdout


def test_the_script_refuses_what_it_could_only_score_wrongly(written, tmp_path):
    found = tmp_path / "found.txt"
    for text, more, said in (
        ("", (), "it has none"),
        ("\n\n", (), "it has none"),
        ('{"edges": []}', (), "it has none"),
        ("m5->tok", (), "the model has no 'm5->tok'"),
        ("m1->m0", (), "the model has no 'm1->m0'"),
        ("tok->m0", ("--ablation", "resample"), "expected --ablation zero"),
    ):
        found.write_text(text)
        ran = score(written, "--edges", found, *more)
        assert ran.returncode == 2 and said in ran.stderr, (text, ran)
    save_circuit(load_saved(written).circuit, tmp_path / "alone.json")  # nobody says that it is true
    assert score(tmp_path / "alone.json", "--edges", found).returncode == 2
    assert score(written, "--check").returncode == 2


GRAPH = Graph.transformer(embeddings=("tok", "pos"), layers=1, heads=1)


def circuit(*names: str) -> Circuit:
    return Circuit(GRAPH, "zero", frozenset(map(Edge.parse, names)))


ONE = circuit("tok->m0", "m0->logits")


def test_a_circuit_saved_alone_is_the_one_that_is_true(tmp_path):
    save_circuit(ONE, tmp_path / "one.json")
    assert load_true(tmp_path / "one.json", "zero") == (ONE,)
    assert nearest(ONE, load_true(tmp_path / "one.json", "zero")).exact


@pytest.mark.parametrize(
    ("certificate", "message"),
    [
        ({}, "'status' is a required property"),
        ({"status": "unique", "circuits": []}, "in certificate/circuits: .* should be non-empty"),
        ({"status": "sure", "circuits": [ONE.names()]}, "in certificate/status: 'sure' is not one of"),
        ({"status": "unique", "circuits": [["tok->nowhere"]]}, "in certificate/circuits/0/0: .* does not match"),
        ({"status": "unique", "circuits": [["tok->m7"]]}, "got tok->m7"),
        ({"status": "unique", "circuits": [["tok->logits"]]}, "is not among the circuits of its certificate"),
    ],
)
def test_a_damaged_certificate_is_refused(tmp_path, certificate, message):
    save_circuit(ONE, tmp_path / "one.json")
    content = json.loads((tmp_path / "one.json").read_text())
    (tmp_path / "one.json").write_text(json.dumps(content | {"certificate": certificate}))
    with pytest.raises(CircuitFileError, match=message):
        load_true(tmp_path / "one.json", "zero")


def test_a_circuit_that_was_found_need_not_be_true(tmp_path):
    certificate = {"status": "unique", "circuits": [["tok->logits"]]}
    save_circuit(SavedCircuit(ONE, method={"name": "acdc"}, certificate=certificate), tmp_path / "found.json")
    assert load_true(tmp_path / "found.json", "zero") == (circuit("tok->logits"),)


def test_an_exported_checkpoint_is_known_by_its_file(tmp_path):
    graph = {"sources": list(map(str, GRAPH.sources)), "destinations": list(map(str, GRAPH.destinations))}
    proved = {"zero": {"certificate": {"circuits": [ONE.names(), ["tok->logits"]]}}, "mean": {"refused": "it is flat"}}
    content = {"format": "edgeprune export 3", "graph": graph, "circuits": proved}
    (tmp_path / "circuit.json").write_text(json.dumps(content))
    assert load_true(tmp_path, "zero") == (ONE, circuit("tok->logits"))
    with pytest.raises(CircuitFileError, match="it is flat"):
        load_true(tmp_path, "mean")
    with pytest.raises(EdgePruneError, match="it is damaged"):
        load_true(tmp_path, "resample")


OTHER = circuit("tok->logits")


def folder_of(path: Path, first: Circuit, **listed) -> Path:
    """A folder with a circuit and files of a name that list some, as under their entry."""
    save_circuit(first, path / "circuit.json")
    for name, content in listed.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def test_a_folder_has_the_circuits_that_its_certificate_lists_or_else_its_truth(tmp_path):
    both = {"circuits": [ONE.names(), OTHER.names()]}
    assert load_true(folder_of(tmp_path, ONE), "zero") == (ONE,)
    truth = {"certificate": {"circuits": [ONE.names()]}, "claims": both}
    assert load_true(folder_of(tmp_path, ONE, truth=truth), "zero") == (ONE,)
    certificate = {"claims": both, "certificate": {"circuits": [OTHER.names()]}}
    assert load_true(folder_of(tmp_path, ONE, certificate=certificate), "zero") == (ONE, OTHER)
    assert load_true(folder_of(tmp_path, OTHER, certificate=certificate), "zero") == (ONE, OTHER)


def test_a_circuit_beside_a_list_that_lacks_it_is_refused(tmp_path):
    folder = folder_of(tmp_path, ONE, truth={"certificate": {"circuits": [OTHER.names()]}})
    with pytest.raises(CircuitFileError) as caught:
        load_true(folder, "zero")
    said = f"Expected circuits in {str(tmp_path / 'truth.json')!r}; that of circuit.json is not among them"
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("certificate", "wrong"),
    [
        ([], "list indices must be integers or slices, not str"),
        ({}, "'claims'"),
        ({"claims": None}, "'NoneType' object is not subscriptable"),
        ({"claims": {"circuits": ["tok->m0"]}}, "in 0: Input should be a valid array"),
        ({"claims": {"circuits": [["tok->m9"]]}}, "tok->m9"),
        ({"claims": {"circuits": [["nowhere"]]}}, "nowhere"),
    ],
)
def test_a_damaged_list_beside_a_circuit_is_refused(tmp_path, certificate, wrong):
    with pytest.raises(CircuitFileError) as caught:
        load_true(folder_of(tmp_path, ONE, certificate=certificate), "zero")
    start = f"Expected circuits in {str(tmp_path / 'certificate.json')!r}; it is damaged: "
    assert str(caught.value).startswith(start) and wrong in str(caught.value).removeprefix(start)


def test_what_stands_in_place_of_a_list_and_is_no_file_is_refused(tmp_path):
    folder_of(tmp_path, ONE)
    (tmp_path / "certificate.json").symlink_to(tmp_path / "nowhere.json")
    with pytest.raises(EdgePruneError, match=r"certificate\.json"):
        load_true(tmp_path, "zero")


EXPORT = {
    "format": "edgeprune export 3",
    "graph": {"sources": list(map(str, GRAPH.sources)), "destinations": list(map(str, GRAPH.destinations))},
}


@pytest.mark.parametrize(
    ("known", "wrong"),
    [
        ({}, "KeyError('zero')"),
        ({"zero": {}}, "KeyError('certificate')"),
        ({"zero": None}, "TypeError("),
        ({"zero": {"certificate": {"circuits": [["tok->m9"]]}}}, "tok->m9"),
        ({"zero": {"certificate": {"circuits": "all"}}}, "ValueError("),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, known, wrong):
    (tmp_path / "circuit.json").write_text(json.dumps(EXPORT | {"circuits": known}))
    with pytest.raises(CircuitFileError) as caught:
        load_true(tmp_path, "zero")
    start = f"Expected circuits in {str(tmp_path / 'circuit.json')!r}; it is damaged: "
    assert str(caught.value).startswith(start) and wrong in str(caught.value)


def test_an_ablation_under_which_a_checkpoint_has_no_circuit_is_refused_with_the_reason(tmp_path):
    (tmp_path / "circuit.json").write_text(json.dumps(EXPORT | {"circuits": {"mean": {"refused": "it is flat"}}}))
    with pytest.raises(CircuitFileError) as caught:
        load_true(tmp_path, "mean")
    assert str(caught.value) == (f"Expected true circuits under mean in {str(tmp_path / 'circuit.json')!r}; it is flat")


def test_the_nearest_circuit_differs_in_the_fewest_edges_whichever_side_has_them():
    found = circuit("tok->m0", "pos->m0", "m0->logits")
    far, near = circuit("tok->logits", "pos->logits"), circuit("tok->m0", "tok->logits", "pos->m0", "m0->logits")
    assert nearest(found, (far, near)) == nearest(found, (near, far))
    assert nearest(found, (far, near)).missing == {Edge.parse("tok->logits")}
    assert nearest(found, (far, ONE)).extra == {Edge.parse("pos->m0")}
    assert nearest(found, (circuit("tok->m0"), near)).missing == {Edge.parse("tok->logits")}
    assert nearest(found, (circuit(*found.names(), "tok->logits", "pos->logits"), ONE)).extra == {Edge.parse("pos->m0")}
    assert nearest(found, (near, ONE)).missing  # the first of two that differ in as many
    with pytest.raises(CircuitMismatch):
        nearest(found, (Circuit(GRAPH, "mean", found.edges),))


def test_what_circuits_have_in_common_has_the_certificate_of_none(tmp_path, capsys):
    files = [tmp_path / f"{seed}.json" for seed in (0, 1)]
    for seed, file in enumerate(files):
        assert main(["recover", "shuffle_dyck1", "--seed", str(seed), "--save", str(file)]) == 0
        assert load_saved(file).certificate
    both = tmp_path / "both.json"
    assert main(["circuits", "intersect", *map(str, files), "-o", str(both)]) == 0
    saved = load_saved(both)
    assert not saved.certificate and saved.true == (saved.circuit,)
    assert load_true(both, "zero") == (saved.circuit,)


@pytest.mark.parametrize("kept", [0.5, math.inf])
def test_the_certificate_of_a_checkpoint_is_read_back_as_it_was_written(truth, kept):
    """Without some edge outputs may be no numbers, of which JSON has no infinite one."""
    found = truth("hist", "zero")
    written = replace(found.certificate, gap=Gap(kept=kept, dropped=0.25))
    entry = json.loads(json.dumps(certificate_json(written), allow_nan=False))
    assert _certificate(entry, found.circuit.graph, "zero") == written
