"""All true circuits and their certificate in one file: written, read, drawn against, scored and converted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprune.errors import EdgePruneError
from edgeprune.formats import NO_CERTIFICATE, ONE_CIRCUIT
from edgeprune.graph import Circuit, Edge, Graph
from edgeprune.store import CircuitFileError, SavedCircuit, load_saved, save_circuit
from edgeprune.true_circuits import load_true, nearest
from tracr_bridge.cli import main
from tracr_bridge.report import certificate_json, saved_truth

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
