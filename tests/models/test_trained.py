"""True circuits of trained models: all subsets that are run, beside running all there are by the naive model."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_pruning_run import save_model
from tiny import FAMILIES, families, tokens

import edgeprune as ep
from edgeprune.cli.main import main
from edgeprune.cli.tables import as_json
from edgeprune.data import Dataset
from edgeprune.errors import DegenerateProgram, ModelError, TaskError
from edgeprune.files.store import load_saved
from edgeprune.graph import Circuit, Edge, Graph
from edgeprune.masks import edge_exists, edges_of, live, mask_of
from edgeprune.methods.settings import with_settings
from tracr_bridge.certify import subsets
from tracr_bridge.certify import trained_models as trained
from tracr_bridge.certify.subsets import LossJudge, live_subsets
from tracr_bridge.certify.summary import truth_json
from tracr_bridge.certify.trained_models import Loaded, Trained
from tracr_bridge.certify.truth import Gap
from tracr_bridge.compile.catalogue import load_program
from tracr_bridge.recovery.recover import assess, methods_for

INPUTS, UNSCORED, LENGTH = 3, 2, 4
DIGESTS = {"weights": "digest of the weights", "task": "digest of what was read"}
TASK = '{"clean": "John gave<predict> John</predict>", "corrupted": "Mark gave"}\n'


def small(family, seed, *, asked=None):
    """A random model of one layer and one head, its eight edges, and a task."""
    heads = {"gpt2": {"n_head": 1}, "llama": {"num_attention_heads": 1, "num_key_value_heads": 1}}[family.name]
    weights = family.make(family.config(num_hidden_layers=1, **heads), seed)
    model, clean = family.adapter(weights), tokens(INPUTS + UNSCORED, LENGTH, seed=seed)
    positions = torch.full((len(clean), 1), LENGTH - 1)
    dataset = Dataset(
        tokens=clean,
        scored=torch.tensor([[number < INPUTS] for number in range(INPUTS + UNSCORED)]),
        target=model(clean, positions=positions),
        group=torch.full((len(clean),), LENGTH),
        positions=positions,
        counterparts=tokens(len(clean), LENGTH, seed=seed + 99),
    )
    return Loaded(asked or Trained(model="none", task="none.jsonl", tolerance=0.05), model, dataset, DIGESTS)


def brute_force(family, given, ablation):
    """Every subset of the edges with its divergence on each input that counts, in double precision."""
    weights, graph, data = given.model.weights.double(), given.model.graph, given.dataset
    edges = sorted(edges_of(graph, edge_exists(graph)))

    def run(row, mask, ablated):
        written, logits = family.naive(weights, graph, row.tolist(), mask, ablated)
        return written, logits[-1].log_softmax(-1)

    found = {}
    ones, zeros = torch.ones(edge_exists(graph).shape).double(), torch.zeros(len(graph.sources), LENGTH, 8).double()
    mean = torch.stack([run(clean, ones, zeros)[0] for clean in data.tokens]).mean(0)
    for bits in itertools.product((0, 1), repeat=len(edges)):
        kept = frozenset(edge for edge, bit in zip(edges, bits, strict=True) if bit)
        losses = []
        for clean, other in zip(data.tokens[:INPUTS], data.counterparts[:INPUTS], strict=True):
            ablated = {"resample": run(other, ones, zeros)[0], "mean": mean, "zero": zeros}[ablation]
            full, masked = run(clean, ones, zeros)[1], run(clean, mask_of(graph, kept).double(), ablated)[1]
            losses.append(float((full.exp() * (full - masked)).sum()))
        found[kept] = losses
    given.model.weights.float()
    return found


@families
@pytest.mark.parametrize(("ablation", "seed"), [("zero", 0), ("mean", 0), ("resample", 0), ("resample", 1)])
def test_true_circuits_are_those_of_running_all_subsets(family, ablation, seed, monkeypatch):
    monkeypatch.setattr(trained, "_BATCH", 1)  # so that subsets are given up before all inputs were run
    given = small(family, seed)
    by_set = brute_force(family, given, ablation)
    assert len(by_set) == 2**8
    cases = 0
    for criterion, over in (("mean", np.mean), ("worst", np.max)):
        losses = {kept: float(over(each)) for kept, each in by_set.items()}
        ordered = sorted({round(loss, 9) for loss in losses.values() if loss > 1e-4})
        for share in (0.02, 0.1, 0.3):
            number = int(share * len(ordered))
            tolerance = (ordered[number] + ordered[number + 1]) / 2
            faithful = [kept for kept, loss in losses.items() if loss <= tolerance]
            true = {kept for kept in faithful if not any(other < kept for other in faithful)}
            asked = replace(given.asked, tolerance=tolerance, criterion=criterion)
            if true == {frozenset()}:
                with pytest.raises(DegenerateProgram, match="with every edge ablated"):
                    replace(given, asked=asked).truth(ablation)
                continue
            found = replace(given, asked=asked).truth(ablation)
            certificate = found.certificate
            assert {circuit.edges for circuit in certificate.circuits} == true
            assert certificate.status == ("unique" if len(true) == 1 else "ambiguous") and certificate.complete
            assert certificate.criterion == {"mean": "mean KL", "worst": "largest KL"}[criterion]
            # Run were those that hold no true circuit. Rotations of Llama's heads are of single precision.
            run = [loss for kept, loss in losses.items() if not any(other < kept for other in true)]
            closest = min(tolerance, *(abs(loss - tolerance) for loss in run))
            assert certificate.margin == pytest.approx(closest, abs=1e-6)
            smallest = found.circuit.edges
            without = min(losses[smallest - {edge}] for edge in smallest)
            assert (certificate.gap.kept, certificate.gap.dropped) == pytest.approx(
                (without, losses[smallest]), abs=1e-6
            )
            assert len(smallest) == min(map(len, true))
            assert (certificate.inputs, certificate.pairs, certificate.exhaustive) == (INPUTS, INPUTS, False)
            cases += 1
    assert cases >= 3


@pytest.mark.parametrize("heads", [(1, 1), (2, 1)])
def test_live_subsets_are_those_without_dead_edges(heads):
    graph = Graph.transformer(embeddings=("embed",), layers=1, heads=heads[0], kv_heads=heads[1])
    edges = sorted(edges_of(graph, edge_exists(graph)))
    codes = np.arange(2 ** len(edges))
    kept = torch.zeros(len(codes), *edge_exists(graph).shape, dtype=torch.bool)
    for number, edge in enumerate(edges):
        row, column = graph.position(edge)
        kept[:, row, column] = torch.from_numpy(codes >> number & 1 > 0)
    alive = (live(graph, kept) == kept).flatten(1).all(1).numpy()
    found = live_subsets(graph, edges)
    assert sorted(found.tolist()) == codes[alive].tolist() and len(found) < len(codes)
    assert len(live_subsets(graph, edges, most=len(found))) == len(found)
    with pytest.raises(ModelError, match=rf"at most {len(found) - 1:,} without dead edges; this one has {len(edges)}"):
        live_subsets(graph, edges, most=len(found) - 1)


def test_a_graph_of_more_edges_than_codes_have_bits_is_refused():
    graph = Graph.transformer(embeddings=("embed",), layers=4, heads=4)
    with pytest.raises(ModelError, match=r"Expected a graph of which all .* --polish"):
        live_subsets(graph, sorted(edges_of(graph, edge_exists(graph))))


def test_a_loss_at_the_tolerance_is_within_it_and_one_above_is_not():
    given = small(FAMILIES[0], 0)
    found = given.truth("resample")
    (loss,) = found.judge.differences_of([found.circuit.edges])
    assert loss > 0

    def listed(tolerance):
        truth = replace(given, asked=replace(given.asked, tolerance=tolerance)).truth("resample")
        return found.circuit.edges in {circuit.edges for circuit in truth.certificate.circuits}

    assert listed(loss * (1 + 1e-9)) and not listed(loss * (1 - 1e-9))


@families
def test_mlps_that_write_nothing_have_no_structural_edges(family):
    given = small(family, 0)
    m0 = next(node for node in given.model.graph.sources if node.kind == "m")
    assert given.model.silent == frozenset()
    (layer,) = given.model.weights.transformer.h if family.name == "gpt2" else given.model.weights.model.layers
    last = layer.mlp.c_proj if family.name == "gpt2" else layer.mlp.down_proj
    last.weight.data.zero_()
    if last.bias is not None:
        assert family.adapter(given.model.weights).silent == frozenset()  # as its bias writes
        last.bias.data.zero_()
    silent = replace(given, model=family.adapter(given.model.weights))
    assert silent.model.silent == {m0}
    structural = silent.truth("resample").structural
    assert len(structural) == 5 and not any(m0 in (edge.source, edge.destination) for edge in structural)


def test_outputs_that_are_no_numbers_are_refused():
    given = small(FAMILIES[0], 0)
    given.model.weights.lm_head.weight.data[3] = torch.nan
    with pytest.raises(ModelError, match="and outputs that are numbers; all edges of none together are off by inf"):
        given.truth("resample")


def test_a_tolerance_below_rounding_is_refused_as_one():
    given = small(FAMILIES[0], 0)
    with pytest.raises(ModelError, match="Expected a tolerance well above rounding"):
        replace(given, asked=replace(given.asked, tolerance=1e-40)).truth("resample")


def test_a_gap_that_is_no_number_is_none_in_json():
    found = small(FAMILIES[0], 0).truth("resample")
    endless = replace(found, certificate=replace(found.certificate, gap=Gap(kept=float("inf"), dropped=0.0)))
    assert json.loads(as_json(truth_json(endless, "none")))["certificate"]["gap"] == {"kept": None, "dropped": 0.0}


def test_methods_that_take_a_tolerance_are_told_it_and_find_a_true_circuit():
    given = small(FAMILIES[0], 0)
    truth = given.truth("resample")
    true = [circuit.edges for circuit in truth.certificate.circuits]
    methods, found = methods_for(given.asked), None
    assert list(methods) == ["edge-pruning-tolerance", "edge-pruning-tolerance-polished"]
    assert methods_for(load_program("reverse")) == {}
    for method in methods.values():
        quick = with_settings(method.keywords["config"], {"steps": 60, "batch_size": 3, "learning_rate": 0.5})
        assert quick.pressure.tolerance == given.asked.tolerance and quick.loss.criterion == given.asked.criterion
        found = method.func(given.model, given.dataset, "resample", seed=0, config=quick).circuit
        (loss,) = truth.judge.differences_of([found.edges])
        assert loss <= given.asked.tolerance
    assert found.edges in true


def test_a_circuit_that_is_found_is_compared_with_the_nearest_true_one():
    given = small(FAMILIES[0], 0)
    truth = given.truth("resample")
    true = truth.certificate.circuits[-1]
    assert assess(truth, true).comparison.exact and assess(truth, true).proof == "listed"
    gone = min(true.edges)
    found = assess(truth, Circuit(true.graph, "resample", true.edges - {gone}))
    assert not found.comparison.exact and found.proof is None


# The command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("trained")
    save_model(where / "model")
    (where / "task.jsonl").write_text(TASK)
    return where


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--task", "ioi", "--tolerance", "1"], "Expected a file of examples, all of which are run; got 'ioi'"),
        (["--task", "FILE"], "Expected --task and --tolerance together, as of a trained model; got --task alone"),
        (["--tolerance", "1"], "Expected --task and --tolerance together, as of a trained model; got --tolerance"),
        (["--criterion", "worst"], "Expected --task and --tolerance too; got --criterion worst alone"),
        (["--task", "FILE", "--tolerance", "0"], "Expected 0 < tolerance"),
        (["--task", "FILE", "--tolerance", "-1"], "Expected 0 < tolerance"),
        (["--task", "FILE", "--tolerance", "nan"], "Expected 0 < tolerance"),
        (["--task", "none.jsonl", "--tolerance", "1"], "Expected a file of examples, one JSON object a line"),
        (["--task", "FILE", "--tolerance", "1"], "this one has 46 edges that can carry something, and more subsets"),
    ],
)
@pytest.mark.parametrize("command", ["truth", "recover"])
def test_what_cannot_be_known_is_one_line(folder, capsys, command, options, says):
    given = [str(folder / "task.jsonl") if each == "FILE" else each for each in options]
    assert main([command, str(folder / "model"), *given]) == 2
    output, errors = capsys.readouterr()
    assert output == "" and says in errors and errors.count("\n") == 1


def test_a_task_that_is_drawn_is_refused():
    with pytest.raises(TaskError, match="Expected a file of examples, all of which are run; got 'gp'"):
        Trained(model="none", task="gp", tolerance=1.0)


def test_the_command_says_what_the_truth_says(capsys, tmp_path, monkeypatch):
    given = small(FAMILIES[0], 0)
    monkeypatch.setattr(trained, "load_trained", lambda asked: replace(given, asked=asked))
    task = tmp_path / "t.jsonl"
    task.write_text(TASK)
    asked = ["truth", "none", "--task", str(task), "--tolerance", "0.05", "--ablation", "resample", "--save"]
    assert main([*asked, str(tmp_path / "saved"), "--json"]) == 0
    said, expected = json.loads(capsys.readouterr().out), given.truth("resample")
    assert said["edges"] == expected.circuit.names() and said["certificate"]["criterion"] == "mean KL"
    assert said["certificate"]["atol"] == 0.05 and said["certificate"]["choices"] == expected.certificate.choices
    written = json.loads((tmp_path / "saved" / "truth.json").read_text())
    about = written.pop("about")
    assert written == said and about["tolerance"] == 0.05
    assert about["sha256"] == DIGESTS  # and not that of the file as it is by now
    assert about["task"] == str(task) and about["model"] == "none"
    saved = load_saved(tmp_path / "saved" / "circuit.json").circuit
    assert saved.edges == frozenset(map(Edge.parse, said["edges"]))
    against = ["draw", str(tmp_path / "saved" / "circuit.json"), "--against", str(tmp_path / "saved")]
    assert main([*against, "-o", str(tmp_path / "picture.svg"), "--json"]) == 0
    capsys.readouterr()
    (tmp_path / "nowhere").symlink_to(tmp_path / "nothing")
    for taken in ("saved", "nowhere"):
        assert main([*asked, str(tmp_path / taken)]) == 2
        assert "does not exist yet" in capsys.readouterr().err
    assert main([*asked, str(tmp_path / ("a" * 300))]) == 2
    assert "Expected a file in an existing, writable folder" in capsys.readouterr().err
    assert main(asked[:-1]) == 0
    shown = capsys.readouterr().out
    assert "subsets run" in shown and "mean KL of at most 0.05 nats on t.jsonl" in " ".join(shown.split())


@pytest.mark.parametrize("criterion", ["mean", "worst"])
def test_python_certifies_what_it_is_asked_for(tmp_path, monkeypatch, criterion):
    given, seen = small(FAMILIES[0], 0), list[Trained]()
    monkeypatch.setattr(trained, "load_trained", lambda asked: seen.append(asked) or replace(given, asked=asked))
    (tmp_path / "t.jsonl").write_text(TASK)
    about = {"task": str(tmp_path / "t.jsonl"), "tolerance": 0.05, "criterion": criterion}
    found = ep.certify("somewhere", ablation="resample", **about)
    asked = Trained(model="somewhere", **about)
    expected = replace(given, asked=asked).truth("resample")
    assert seen == [asked] and found.circuit == expected.circuit
    assert found.certificate.criterion == expected.certificate.criterion and found.certificate.atol == 0.05


def test_more_subsets_at_once_are_the_same(monkeypatch):
    given = small(FAMILIES[0], 1)
    whole = given.truth("zero").certificate
    monkeypatch.setattr(subsets, "_AT_ONCE", 3)
    assert given.truth("zero").certificate.circuits == whole.circuits


@pytest.mark.parametrize(("share", "refused"), [(0.49, False), (0.51, True)])
def test_all_edges_together_may_be_off_by_half_the_tolerance(monkeypatch, share, refused):
    given = small(FAMILIES[0], 0)
    monkeypatch.setattr(LossJudge, "differences_of", lambda *_: [share * given.asked.tolerance])
    if refused:
        with pytest.raises(ModelError, match="Expected a tolerance well above rounding"):
            given.truth("resample")
    else:
        assert given.truth("resample").certificate.complete


def test_every_example_is_run_and_those_of_a_file_are_not_said_to_be_all_that_there_are(monkeypatch):
    given = small(FAMILIES[0], 0)
    whole = given.truth("resample").certificate
    monkeypatch.setattr(trained, "_BATCH", 2)
    parts = given.truth("resample").certificate
    for certificate in (whole, parts):
        assert (certificate.inputs, certificate.pairs, certificate.exhaustive) == (INPUTS, INPUTS, False)
    assert parts.circuits == whole.circuits and parts.margin == pytest.approx(whole.margin)
