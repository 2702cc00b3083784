"""Certificates as folders: a checker that shares no code with us accepts them, and refuses planted faults."""

import hashlib
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeprune.cli.main import main
from edgeprune.errors import DegenerateProgram
from edgeprune.files.store import UnwritableFile, load_circuit
from edgeprune.graph import ABLATIONS, Circuit, Graph
from edgeprune.masks import mask_of
from tracr_bridge.certify import certificate_folder, check_certificate
from tracr_bridge.certify.certificate_folder import save_certificate
from tracr_bridge.compile.catalogue import catalogue

CHECKER = Path(certificate_folder.__file__).with_name("check_certificate.py")

ONLY_NUMPY = """
import runpy, sys

class OnlyNumpy:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy"}:
            raise ImportError(f"{name} is neither of Python nor NumPy")

sys.meta_path.insert(0, OnlyNumpy())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

HOLD = [
    *((name, ablation) for name in ("xproportion", "ignored_input", "cancels_out", "hist") for ablation in ABLATIONS),
    ("twin_heads", "zero"),
    ("end_pair", "zero"),
]
"""Programs with one true circuit and with several, with uniform heads, and a domain that is all there is."""


def check(*folders, options=()) -> tuple[int, str]:
    """The checker's exit code and output."""
    with redirect_stdout(StringIO()) as output:
        code = check_certificate.main([*options, *map(str, folders)])
    return code, output.getvalue()


def check_with_numpy_alone(*folders, options=()) -> tuple[int, str]:
    """The same, from a Python that can import NumPy alone."""
    command = [sys.executable, "-I", "-c", ONLY_NUMPY, str(CHECKER), *options, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def change(folder, *, said=None, domain=None, weights=None, of_circuit=None) -> None:
    """Change what a folder says, its domain, weights and circuit file in place, and make all digests anew."""
    content = json.loads((folder / "certificate.json").read_text())
    if said is not None:
        said(content)
    circuit = json.loads((folder / "circuit.json").read_text())
    circuit |= {"edges": content["claims"]["circuits"][0], "ablation": content["ablation"]} | (of_circuit or {})
    (folder / "circuit.json").write_text(json.dumps(circuit))
    for name, act in (("domain.npz", domain), ("weights.npz", weights)):
        if act is not None:
            with np.load(folder / name) as packed:
                arrays = dict(packed)
            act(arrays)
            np.savez_compressed(folder / name, **arrays)
    content["files"] = {name: digest((folder / name).read_bytes()) for name in content["files"]}
    del content["digest"]
    content["digest"] = digest(json.dumps(content, sort_keys=True).encode())
    (folder / "certificate.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def saved(compiled, truth, tmp_path_factory):
    """`saved(program, ablation)`: a folder, written once."""
    made = {}

    def save(name, ablation):
        if (name, ablation) not in made:
            made[name, ablation] = tmp_path_factory.mktemp("saved") / f"{name}-{ablation}"
            save_certificate(truth(name, ablation), compiled(name), made[name, ablation])
        return made[name, ablation]

    return save


@pytest.fixture
def planted(saved, tmp_path):
    """`planted(program, ablation, **changes)`: what the checker says of a changed copy, which it refuses."""

    def plant(name, ablation, **changes):
        copy = tmp_path / "copy"
        shutil.copytree(saved(name, ablation), copy)
        change(copy, **changes)
        code, output = check(copy)
        assert code == 1, output
        return output

    return plant


def test_the_checker_is_one_short_file():
    assert len(CHECKER.read_text().splitlines()) < 300


@pytest.mark.parametrize("options", [(), ("--json", "--tolerance", "0.02")])
def test_the_checker_needs_numpy_alone_and_no_code_of_ours(saved, tmp_path, options):
    folders = [saved("hist", "resample"), tmp_path / "missing"]
    assert check_with_numpy_alone(*folders, options=options) == check(*folders, options=options)


@pytest.mark.parametrize("case", HOLD, ids="-".join)
def test_what_we_certify_holds(saved, case):
    folder = saved(*case)
    status = json.loads((folder / "certificate.json").read_text())["claims"]["status"]
    lines = [f"{folder}: holds: {status}"]
    if case[0] in ("ignored_input", "end_pair"):  # shifts are None somewhere
        lines = [f"{lines[0]} in what was checked", f"{folder}: unchecked: positions that are not scored"]
    assert check(folder) == (0, "\n".join(lines) + "\n")


def test_several_folders_are_checked_in_their_order(saved, tmp_path):
    one, other = saved("hist", "zero"), saved("xproportion", "zero")
    missing = tmp_path / "missing"
    code, output = check(other, one)
    assert (code, [line.partition(": ")[0] for line in output.splitlines()]) == (0, [str(other), str(one)])
    code, output = check(one, missing, other)
    assert code == 2
    assert [line.split(": ")[:2] for line in output.splitlines()] == [
        [str(one), "holds"], [str(missing), "unusable"], [str(other), "holds"],
    ]  # fmt: skip


@pytest.mark.parametrize(("ablation", "room", "most"), [("zero", 1, 1), ("zero", 2**12, 200), ("resample", 2**12, 200)])
def test_no_more_is_run_at_a_time_than_there_is_room_for(saved, monkeypatch, ablation, room, most):
    sizes, run = list[int](), check_certificate.Check.run

    def noted(self, codes, tokens, ablated):
        sizes.append(len(codes) * len(tokens) if ablated is not self.clean else 0)
        return run(self, codes, tokens, ablated)

    monkeypatch.setattr(check_certificate.Check, "run", noted)
    monkeypatch.setattr(check_certificate, "ROOM", room)
    assert check(saved("hist", ablation), options=["--subsets", "2"])[0] == 0
    assert 0 < max(sizes) <= most


@pytest.mark.sweep
@pytest.mark.parametrize("name", catalogue())
def test_certificates_of_all_programs_hold(compiled, truth, tmp_path, name):
    for ablation in ABLATIONS:
        try:
            found = truth(name, ablation)
        except DegenerateProgram:
            continue
        assert found.certificate.complete == ((name, ablation) != ("mix_seven_times", "zero"))
        save_certificate(found, compiled(name), tmp_path / ablation)
    code, output = check(*tmp_path.iterdir())
    assert code == 0, output


def test_a_copy_that_nobody_changed_but_for_its_digests_holds(saved, tmp_path):
    shutil.copytree(saved("xproportion", "zero"), tmp_path / "copy")
    change(tmp_path / "copy")
    assert check(tmp_path / "copy") == (0, f"{tmp_path / 'copy'}: holds: unique\n")


def test_an_edge_too_many_is_refused(planted):
    def say(content):
        circuit = content["claims"]["circuits"][0]
        circuit.append(next(name for name in content["structural"] if name not in circuit))
        say.extra = circuit[-1]

    output = planted("xproportion", "zero", said=say)
    assert f"circuit 1 is faithful without some edges: {say.extra} (" in output


def test_an_edge_too_few_is_refused(planted):
    output = planted("xproportion", "zero", said=lambda content: content["claims"]["circuits"][0].pop())
    assert "circuit 1 is not faithful: " in output
    assert " off on [" in output


def test_a_pair_left_out_is_refused(planted):
    def leave_out(domain):
        domain["pairs"] = domain["pairs"][:, 1:]

    def say(content):
        content["domain"]["pairs"] -= 1

    output = planted("hist", "resample", domain=leave_out, said=say)
    assert "pairs are 7379, 7379 are stated, 7380 are all" in output


def test_a_pair_that_is_there_twice_in_place_of_another_is_refused(planted):
    def repeat(domain):
        domain["pairs"][:, 0] = domain["pairs"][:, 1]

    assert "7380 are all, each once" in planted("hist", "resample", domain=repeat)


def test_a_row_counted_from_the_end_is_refused(planted):
    def alias(domain):
        domain["pairs"][:, 0] = domain["pairs"][:, 1] - len(domain["tokens"])

    assert "a group, or a pair, is not of one length" in planted("hist", "resample", domain=alias)


def test_another_tolerance_is_refused_unless_it_is_asked_for(planted, saved, tmp_path):
    def say(content):
        content["criterion"]["tolerance"] = 0.02
        content["claims"]["margin"] = 0.0

    assert "the tolerance is not 0.01" in planted("hist", "zero", said=say)
    assert check(tmp_path / "copy", options=["--tolerance", "0.02"])[0] == 0


@pytest.mark.parametrize(("name", "ablation"), [("cancels_out", "mean"), ("twin_heads", "zero")])
@pytest.mark.parametrize("dropped", [0, 1])
@pytest.mark.parametrize("status", ["ambiguous", "unique"])
def test_one_of_two_circuits_dropped_is_refused(planted, saved, name, ablation, dropped, status):
    gone = json.loads((saved(name, ablation) / "certificate.json").read_text())["claims"]["circuits"][dropped]

    def say(content):
        del content["claims"]["circuits"][dropped]
        content["claims"]["status"] = status

    output = planted(name, ablation, said=say)
    listed = next(line for line in output.splitlines() if "a true circuit is not listed: " in line)
    assert {*listed.partition("listed: ")[2].rpartition(" (")[0].split(", ")} == {*gone}
    assert ("does not list 1 circuits" in output) == (status == "ambiguous")


def test_a_status_raised_from_minimal_to_unique_is_refused(planted, saved, tmp_path):
    def minimal(content):
        content["claims"]["status"] = "minimal"
        del content["claims"]["circuits"][1]

    copy = tmp_path / "minimal"
    shutil.copytree(saved("cancels_out", "mean"), copy)
    change(copy, said=minimal)
    assert check(copy) == (0, f"{copy}: holds: minimal\n")
    change(copy, said=lambda content: content["claims"].update(status="unique"))
    code, output = check(copy)
    assert code == 1
    assert "a true circuit is not listed: " in output


@pytest.mark.parametrize("name", ["unembed.weight", "a0.value.weight", "m0.output.weight", "token.weight"])
def test_a_weight_changed_is_refused(planted, name):
    def alter(weights):
        weights[name] *= 1.1

    assert "the full model's outputs differ by " in planted("hist", "zero", weights=alter)


def larger_circuit(found) -> list[str]:
    """A faithful set from which no single edge can go, and yet no true circuit: an elimination ends there."""
    graph, judge = found.circuit.graph, found.judge
    for seed in range(50):
        kept = set(found.structural)
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed)).tolist()
        for edge in [sorted(found.structural)[index] for index in order] * 3:
            if edge in kept and bool(judge.reproduces(mask_of(graph, kept - {edge})[None])):
                kept.remove(edge)
        if len(kept) > len(found.circuit.edges):
            return Circuit(graph, found.circuit.ablation, frozenset(kept)).names()
    raise AssertionError("every order ends in a true circuit")


@pytest.mark.parametrize(
    ("name", "status"), [("ignored_input", "unique"), ("end_pair", "minimal"), ("end_pair", "locally-minimal")]
)
def test_a_superset_that_no_single_edge_can_leave_is_refused(planted, truth, name, status):
    """Where a head attends uniformly its queries and keys go together, and none of them alone."""
    names = larger_circuit(truth(name, "zero"))
    output = planted(name, "zero", said=lambda content: content["claims"].update(circuits=[names], status=status))
    refused = next(line for line in output.splitlines() if "circuit 1 is faithful without some edges: " in line)
    assert len(refused.partition("edges: ")[2].split(", ")) > 1


def test_a_circuit_beside_a_larger_one_that_holds_it_is_refused(planted):
    def say(content):
        circuits = content["claims"]["circuits"]
        circuits.append([*circuits[0], next(name for name in content["structural"] if name not in circuits[0])])
        content["claims"]["status"] = "ambiguous"

    assert "circuit 2 holds another one" in planted("xproportion", "zero", said=say)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_an_input_left_out_is_refused(planted, ablation):
    def leave_out(domain):
        for name in domain:
            domain[name] = domain[name][:-1]

    def say(content):
        content["domain"]["inputs"] -= 1
        content["domain"]["pairs"] -= 1

    output = planted("hist", ablation, domain=leave_out, said=say)
    assert "inputs are 119, 119 are stated, 120 are all" in output


def test_an_input_that_is_there_twice_is_refused(planted):
    def repeat(domain):
        for name in domain:
            domain[name][-1] = domain[name][-2]

    assert "an input is there twice" in planted("hist", "zero", domain=repeat)


@pytest.mark.parametrize(("said", "renamed"), [("zero", "mean"), ("mean", "zero")])
def test_an_ablation_renamed_is_refused(planted, said, renamed):
    output = planted("hist", said, said=lambda content: content.update(ablation=renamed))
    assert ("circuit 1 is faithful without some edges" if said == "zero" else "circuit 1 is not faithful") in output


def test_an_ablation_that_there_is_none_of_is_refused(planted):
    assert "ablation 'none' is not known" in planted(
        "hist", "zero", said=lambda content: content.update(ablation="none")
    )


def test_a_structural_edge_left_out_is_refused(planted):
    def say(content):
        listed, circuit = content["structural"], content["claims"]["circuits"][0]
        say.gone = next(name for name in listed if name not in circuit)
        listed.remove(say.gone)

    output = planted("xproportion", "zero", said=say)
    assert f"{say.gone} carries something, but is unlisted" in output


@pytest.mark.parametrize(
    "changed",
    [{"ablation": "resample"}, {"model": "another"}, {"graph": {"sources": ["tok"], "destinations": ["logits"]}}],
)
def test_a_circuit_file_of_something_else_is_refused(planted, changed):
    assert "circuit.json is not circuit 1" in planted("hist", "zero", of_circuit=changed)


@pytest.mark.parametrize("changed", [{"distance": "KL"}, {"over": "one input"}])
def test_another_criterion_is_refused(planted, changed):
    output = planted("hist", "zero", said=lambda content: content["criterion"].update(changed))
    assert "the criterion is not known" in output


def test_an_edge_that_is_there_twice_is_refused(planted):
    def say(content):
        say.twice = content["claims"]["circuits"][0][0]
        content["claims"]["circuits"][0].append(say.twice)

    output = planted("hist", "zero", said=say)
    assert f"or that it has twice: {say.twice}, {say.twice}" in output


def test_an_edge_of_a_circuit_that_is_not_structural_is_refused(planted):
    def say(content):
        say.gone = content["claims"]["circuits"][0][0]
        content["structural"].remove(say.gone)

    output = planted("xproportion", "zero", said=say)
    assert f"a circuit has edges that are not structural, or that it has twice: {say.gone}" in output


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"margin": 0.02}, "the margin is no more than 0.01"),
        ({"margin": -1e9}, "the margin is no more than 0.01"),
        ({"gap": {"kept": 0.2, "dropped": 0.0}}, "not as stated"),
        ({"status": "ambiguous"}, "a certificate 'ambiguous' does not list 1 circuits"),
    ],
)
def test_claims_that_are_not_so_are_refused(planted, claims, message):
    assert message in planted("hist", "zero", said=lambda content: content["claims"].update(claims))


@pytest.mark.parametrize("name", ["certificate.json", "circuit.json", "domain.npz", "weights.npz"])
def test_a_file_that_was_changed_is_refused_by_its_digest(saved, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(saved("hist", "zero"), copy)
    if name.endswith("json"):
        (copy / name).write_text((copy / name).read_text().replace('"hist"', '"other"'))
    else:
        with np.load(copy / name) as packed:
            np.savez(copy / name, **packed)  # the same arrays, packed otherwise
    code, output = check(copy)
    assert code == 1 and output.startswith(f"{copy}: refused: {name} was changed\n")


def test_what_cannot_be_afforded_is_said(saved):
    folder = saved("xproportion", "zero")
    code, output = check(folder, options=["--subsets", "4"])
    assert code == 0
    assert "holds: unique in what was checked" in output
    assert "unchecked: whether a true circuit is not listed: there are more than 4 sets without dead edges" in output
    code, output = check(folder, options=["--rows", "10"])
    assert code == 0
    assert "unchecked: whether circuit 1 is faithful without some edges: there are more than 10 masked inputs" in output


def changed_copy(saved, tmp_path, name, **changes):
    """What the checker says of a changed copy."""
    shutil.copytree(saved(name, "zero"), tmp_path / "copy")
    change(tmp_path / "copy", **changes)
    return check(tmp_path / "copy")


def test_positions_that_are_not_scored_are_told(saved, tmp_path):
    """Nothing in a folder says whether RASP has no output there."""

    def unscore(domain):
        domain["scored"][domain["scored"].sum(1) > 1, 1] = False

    output = changed_copy(saved, tmp_path, "hist", domain=unscore)[1]
    assert "unchecked: positions that are not scored" in output and "holds: unique\n" not in output


def test_what_else_could_leave_a_local_minimum_is_said_to_be_unchecked(saved, tmp_path):
    code, output = changed_copy(
        saved, tmp_path, "hist", said=lambda content: content["claims"].update(status="locally-minimal")
    )
    assert code == 0 and "holds: locally-minimal in what was checked" in output
    assert "unchecked: other sets than two edges or groups of a circuit" in output


COLUMN = np.eye(5)


def check_mlps(saved, tmp_path, weights: dict, circuit: list[str], *others: str, status: str) -> tuple[int, str]:
    """What the checker says of a circuit of MLPs. Column 0 is the token, column 4 the output, both 0 or 1."""
    layers = sum(name.endswith("hidden") for name in weights)
    weights |= {"token": np.outer([0, 0, 1, 0, 0], COLUMN[0]), "position": COLUMN[[3, 3]], "unembed": COLUMN[:, 4:]}
    for layer in range(layers):
        weights |= {f"a{layer}.{port}": np.zeros((5, 1)) for port in ("query", "key", "value")}
        weights[f"a{layer}.output"] = np.zeros((1, 5))
    tokens, scored = np.array([[0, 1], [0, 2]]), np.array([[False, True]] * 2)
    domain = {"tokens": tokens, "scored": scored, "group": [0, 0], "outputs": [[[0.0], [0.0]], [[0.0], [1.0]]]}
    graph = Graph.transformer(embeddings=("tok", "pos"), layers=layers, heads=1)
    graph = {"sources": list(map(str, graph.sources)), "destinations": list(map(str, graph.destinations))}

    def say(content):
        content |= {"graph": graph, "structural": [*circuit, *others]}
        content["model"] |= {"layers": layers, "heads": 1, "head_dim": 1, "bos": 0, "pad": 4}
        content["domain"] |= {"vocabulary": [1, 2], "lengths": [1, 1], "inputs": 2, "pairs": 2}
        content["claims"] |= {"circuits": [circuit], "status": status, "margin": 0.01}
        content["claims"]["gap"] = {"kept": 1.0, "dropped": 0.0}

    return changed_copy(
        saved,
        tmp_path,
        "hist",
        said=say,
        weights=lambda arrays: replace_all(arrays, {f"{name}.weight": array for name, array in weights.items()}),
        domain=lambda arrays: replace_all(arrays, domain),
        of_circuit={"graph": graph},
    )


def replace_all(arrays: dict, others: dict) -> None:
    arrays.clear()
    arrays.update(others)


@pytest.mark.parametrize("scale", [1, 1e-10])
def test_a_circuit_of_edges_that_are_read_with_small_weights_is_missed(saved, tmp_path, scale):
    """m1 reads the token from tok or, as m0 passes it on, from there; only the second way is listed."""
    reads = COLUMN[:, 0] + COLUMN[:, 1]
    weights = {
        "m0.hidden": COLUMN[:, :1],
        "m0.output": COLUMN[1:2],
        "m1.hidden": scale * np.stack([reads, reads - COLUMN[3]], 1),
        "m1.output": np.stack([COLUMN[4], -COLUMN[4]]) / scale,
    }
    circuit = ["tok->m0", "m0->m1", "pos->m1", "m1->logits"]
    code, output = check_mlps(saved, tmp_path, weights, circuit, "tok->m1", status="unique")
    assert code == 1
    assert "a true circuit is not listed: tok->m1, pos->m1, m1->logits" in output and output.count("refused") == 1


@pytest.mark.parametrize("status", ["minimal", "unique", "locally-minimal"])
def test_subsets_are_tried_that_lack_more_than_two_groups(saved, tmp_path, status):
    """Of m1, m2 and m3 two add 1 and one takes off 2, which only all of them together can leave undone."""
    weights = {f"m{layer}.hidden": COLUMN[:, :1] for layer in range(4)}
    weights |= {f"m{layer}.output": factor * COLUMN[4:] for layer, factor in enumerate([1, 1, 1, -2])}
    circuit = [edge for layer in range(4) for edge in (f"tok->m{layer}", f"m{layer}->logits")]
    code, output = check_mlps(saved, tmp_path, weights, circuit, status=status)
    assert code == (status != "locally-minimal")
    assert ("circuit 1 is faithful without some edges: " in output) == bool(code)
    assert ("unchecked: other sets than two edges or groups of a circuit" in output) == (not code)


def test_a_domain_of_valid_inputs_alone_is_said_to_be_one(saved):
    assert "unchecked: other inputs or pairs" in check(saved("induction", "zero"))[1]


def unusable(path, what):
    if what == "nothing":
        shutil.rmtree(path)
    elif what == "a link":
        (path / "domain.npz").rename(path.parent / "elsewhere.npz")
        (path / "domain.npz").symlink_to(path.parent / "elsewhere.npz")
    elif what == "a pickle":
        change(path, domain=lambda domain: domain.update(tokens=domain["tokens"].astype(object)))
    elif what == "no JSON":
        (path / "certificate.json").write_text("{")
    elif what == "a list":
        (path / "certificate.json").write_text("[]")
    elif what == "no archive":
        (path / "domain.npz").write_bytes(b"")
        change(path)
    elif what == "half an archive":
        (path / "domain.npz").write_bytes((path / "domain.npz").read_bytes()[:300])
        change(path)
    elif what == "an archive with other bytes in it":
        data = bytearray((path / "weights.npz").read_bytes())
        data[100:160] = bytes(byte ^ 0x55 for byte in data[100:160])
        (path / "weights.npz").write_bytes(data)
        change(path)
    elif what == "no end of lists":
        (path / "certificate.json").write_text("[" * 200_000)
    elif what == "more heads than weights":
        change(path, said=lambda content: content["model"].update(heads=10**8))
    elif what == "no weights":
        change(path, weights=lambda weights: weights.pop("unembed.weight"))
    else:
        change(path, said=lambda content: content["model"].update(layers=9))


@pytest.mark.parametrize(
    "what",
    [
        "nothing",
        "a link",
        "a pickle",
        "no JSON",
        "a list",
        "no end of lists",
        "no archive",
        "half an archive",
        "an archive with other bytes in it",
        "no weights",
        "more layers",
        "more heads than weights",
    ],
)
def test_an_unusable_folder_is_one_line(saved, tmp_path, what):
    copy = tmp_path / "copy"
    shutil.copytree(saved("hist", "zero"), copy)
    unusable(copy, what)
    code, output = check(copy)
    assert code == 2
    assert output.startswith(f"{copy}: unusable: ") and output.count("\n") == 1


def test_one_json_object_tells_all(saved, tmp_path):
    folder, missing = str(saved("hist", "zero")), str(tmp_path / "missing")
    code, output = check(folder, missing, options=["--json"])
    found = json.loads(output)["certificates"]
    assert code == 2
    assert found[folder] == {"refused": [], "unusable": [], "holds": ["unique"], "unchecked": []}
    assert found[missing]["unusable"]


# Writing


def test_a_folder_holds_no_more_than_is_said_and_can_be_drawn(saved, truth, tmp_path):
    folder = saved("hist", "zero")
    assert sorted(file.name for file in folder.iterdir()) == [
        "certificate.json",
        "circuit.json",
        "domain.npz",
        "weights.npz",
    ]
    assert load_circuit(folder / "circuit.json") == truth("hist", "zero").circuit
    assert main(["draw", str(folder / "circuit.json"), "-o", str(tmp_path / "hist.svg")]) == 0
    assert (tmp_path / "hist.svg").is_file()


def test_what_there_is_already_is_left_alone(compiled, truth, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    for path in (there, tmp_path / "no" / "folder"):
        with pytest.raises(UnwritableFile):
            save_certificate(truth("hist", "zero"), compiled("hist"), path)
    assert list(tmp_path.iterdir()) == [there]
    assert list(there.iterdir()) == []


def test_a_folder_that_cannot_be_finished_leaves_nothing(compiled, truth, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(UnwritableFile, match="No space left"):
        save_certificate(truth("hist", "zero"), compiled("hist"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def said_of(saved, tmp_path, **changes) -> tuple[int, str]:
    """What the checker says, in this process, of a changed copy of a certificate whose gap is 1 and margin .01."""
    copy = shutil.copytree(saved("xproportion", "zero"), tmp_path / f"copy-{len([*tmp_path.iterdir()])}")
    change(copy, **changes)
    with redirect_stdout(StringIO()) as output:
        return check_certificate.main([str(copy)]), output.getvalue()


@pytest.mark.parametrize(("off", "code"), [(0.0009, 0), (0.0013, 1)])
def test_outputs_may_be_stated_a_tenth_of_the_tolerance_off(saved, tmp_path, off, code):
    def alter(arrays):
        arrays["outputs"] = arrays["outputs"] + np.float32(off)

    assert said_of(saved, tmp_path, domain=alter)[0] == code


@pytest.mark.parametrize("which", ["kept", "dropped"])
def test_a_gap_may_be_stated_a_tenth_of_the_tolerance_off(saved, tmp_path, which):
    for off, code in ((0.0009, 0), (0.0025, 1)):

        def alter(content, off=off):
            content["claims"]["gap"][which] += off

        assert said_of(saved, tmp_path, said=alter)[0] == code


def test_a_margin_may_be_stated_no_larger_than_it_is(saved, tmp_path):
    for share, code in ((0.5, 0), (1.0, 0), (1.02, 1)):

        def alter(content, share=share):
            content["claims"]["margin"] *= share

        assert said_of(saved, tmp_path, said=alter)[0] == code


@pytest.mark.parametrize("tolerance", [0.009, 0.011, 0.1])
def test_a_certificate_of_another_tolerance_than_a_hundredth_is_refused(saved, tmp_path, tolerance):
    code, output = said_of(
        saved, tmp_path, said=lambda content: content["criterion"].__setitem__("tolerance", tolerance)
    )
    assert code == 1 and "the tolerance is not 0.01" in output
