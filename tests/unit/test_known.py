"""What a truth, a recovery and a known model say of what they were made of, with stand-ins for all that takes time."""

import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_truth import nearly_cancelling

from edgeprune.errors import BrokenPromise, DegenerateProgram, MethodError, UnknownProgram, UnsupportedProgram
from edgeprune.graph import Circuit, CircuitMismatch, Edge, Graph
from edgeprune.methods import Discovery
from tracr_bridge.certify import truth as truth_module
from tracr_bridge.certify.trained_models import Trained
from tracr_bridge.certify.truth import Gap, derive_truth, gap_of, inert_edges, margin_of
from tracr_bridge.compile.catalogue import catalogue
from tracr_bridge.compile.compile import compile_program
from tracr_bridge.compile.constructs import constructs
from tracr_bridge.recovery import known_models as known_module
from tracr_bridge.recovery import recover as recover_module
from tracr_bridge.recovery.known_models import Known, certify, find, known
from tracr_bridge.recovery.recover import assess, methods_for, recover, recover_under

GRAPH = Graph.transformer(embeddings=("tok", "pos"), layers=1, heads=1)
ONE, TWO, THREE = (Edge.parse(name) for name in ("tok->m0", "pos->m0", "m0->logits"))


def judge_of(off: dict[frozenset[Edge], float], **more: Any) -> Any:
    """A judge to which a set of edges is off by what is said of it, and by 1 where nothing is."""
    kept = {tuple(sorted(edges)): value for edges, value in off.items()}

    def differences(masks):
        rows = [[edge for edge in GRAPH.edges if mask[GRAPH.position(edge)] > 0] for mask in masks]
        return torch.tensor([kept.get(tuple(sorted(row)), 1.0) for row in rows]).double()

    judge = SimpleNamespace(atol=0.01, margin=math.inf, ablation="zero", differences=differences)
    judge.reproduces = lambda masks: differences(masks) <= judge.atol
    judge.model = SimpleNamespace(graph=GRAPH, sources=lambda tokens: torch.tensor([2.0, -7.0]))
    judge.dataset = SimpleNamespace(tokens=None)
    return SimpleNamespace(**vars(judge) | more)


# Truths


@pytest.mark.fakes
def test_a_gap_is_of_the_edge_that_does_least_and_of_what_the_circuit_leaves_over():
    every = frozenset({ONE, TWO, THREE})
    off = {every: 0.001, every - {ONE}: 0.5, every - {TWO}: 0.2, every - {THREE}: 0.9}
    found = gap_of(judge_of(off), Circuit(GRAPH, "zero", every))
    assert (found.kept, found.dropped) == pytest.approx((0.2, 0.001))


@pytest.mark.fakes
@pytest.mark.parametrize(
    ("margin", "gap", "smallest"),
    [
        (0.003, Gap(kept=0.5, dropped=0.0), 0.003),
        (0.3, Gap(kept=0.5, dropped=0.0), 0.01),
        (0.3, Gap(kept=0.5, dropped=0.008), 0.002),
        (0.3, Gap(kept=0.014, dropped=0.0), 0.004),
        (0.3, Gap(kept=0.5, dropped=0.015), 0.005),
    ],
)
def test_a_margin_is_the_smallest_of_the_verdicts_and_of_both_ends_of_the_gap(margin, gap, smallest):
    assert margin_of(judge_of({}, margin=margin), gap) == pytest.approx(smallest)


@pytest.mark.fakes
@pytest.mark.parametrize(("off", "refused"), [(0.0025, False), (0.00251, True), (math.nan, True), (math.inf, True)])
def test_all_structural_edges_are_off_by_no_more_than_a_quarter_of_the_tolerance(off, refused):
    judge = judge_of({frozenset({ONE, THREE}): off})
    if not refused:
        truth_module._check_ends(judge, [ONE, THREE], "mine")
        return
    with pytest.raises(UnsupportedProgram) as caught:
        truth_module._check_ends(judge, [ONE, THREE], "mine")
    assert str(caught.value) == (
        f"Expected structural edges alone to give the outputs of mine to within 0.0025; they are off by {off:.3g} "
        "under zero ablation: values of up to 7 are too large for single precision, or for norms that read them all; "
        "make them smaller"
    )


@pytest.mark.fakes
def test_a_program_that_no_edge_matters_to_is_refused():
    judge = judge_of({frozenset({ONE}): 0.0, frozenset(): 0.009})
    with pytest.raises(DegenerateProgram) as caught:
        truth_module._check_ends(judge, [ONE], "mine")
    assert str(caught.value) == (
        "Expected a program with a circuit under zero ablation; mine gives the same output with every edge ablated "
        "(difference 0.009), so nothing could fail on it: choose another ablation, or a domain on which the output "
        "depends on more than the length"
    )


A, B, C = frozenset({ONE, THREE}), frozenset({TWO, THREE}), frozenset({ONE, TWO, THREE})


def searched(monkeypatch, found: dict[frozenset[Edge], list[frozenset[Edge]] | None], ends=(), **more: Any) -> Any:
    """What a search gives where those within each set are known, and elimination ends at some."""
    asked = list[Any]()

    def minimal_circuits(judge, edges):
        asked.append(edges)
        circuits = found[frozenset(edges)]
        return None if circuits is None else SimpleNamespace(circuits=circuits, choices=17)

    def eliminate(judge, edges, *, seed):
        asked.append(seed)
        return list(ends)

    monkeypatch.setattr(truth_module, "minimal_circuits", minimal_circuits)
    monkeypatch.setattr(truth_module, "eliminate", eliminate)
    return truth_module._search(judge_of({}, **more), sorted(C), 5), asked


@pytest.mark.fakes
def test_all_circuits_are_unique_or_ambiguous(monkeypatch):
    assert searched(monkeypatch, {C: [A]})[0] == ("unique", [A], 17)
    assert searched(monkeypatch, {C: [A, B]})[0] == ("ambiguous", [A, B], 17)
    with pytest.raises(BrokenPromise, match="a faithful set has a subset-minimal one inside"):
        searched(monkeypatch, {C: []})


@pytest.mark.fakes
def test_where_elimination_ends_some_are_proved_or_none(monkeypatch):
    (status, circuits, choices), asked = searched(monkeypatch, {C: None, A: [A], B: None}, ends=[A, B])
    assert (status, circuits, choices) == ("minimal", [A], 0)
    assert asked == [sorted(C), 5, sorted(A), sorted(B)]
    status, circuits, choices = searched(monkeypatch, {C: None, A: [A], B: [B, A]}, ends=[A, B])[0]
    assert (status, set(circuits), len(circuits), choices) == ("minimal", {A, B}, 2, 0)


@pytest.mark.fakes
def test_where_nothing_is_proved_ends_within_others_are_handed_back_and_each_removal_is_measured(monkeypatch):
    run = list[torch.Tensor]()
    moves = torch.tensor([[True, False, False], [False, True, False], [True, False, True]])
    monkeypatch.setattr(truth_module, "removals", lambda graph, edges: moves)
    found = dict.fromkeys((A, B, C))
    (status, circuits, choices), _ = searched(
        monkeypatch, found, ends=[A, C, B], reproduces=lambda masks: run.append(masks)
    )
    assert (status, circuits, choices) == ("locally-minimal", [A, B], 0)
    edges = sorted(C)
    without = [{frozenset(edge for edge in edges if mask[GRAPH.position(edge)] > 0) for mask in masks} for masks in run]
    groups = [frozenset(edge for edge, out in zip(edges, move, strict=True) if out) for move in moves.tolist()]
    assert without == [{end - group for group in groups if end & group} for end in (A, B)]


def test_a_certificate_says_what_it_is_of(monkeypatch):
    model, dataset = nearly_cancelling()
    read = list(model.read)
    found = derive_truth(model, dataset, model.structural, read, "zero", atol=0.02, whole_domain=False, seed=3)
    certificate = found.certificate
    assert (certificate.inputs, certificate.pairs, certificate.exhaustive, certificate.atol) == (2, 2, False, 0.02)
    assert certificate.criterion == "largest difference" and not found.others_matter
    assert found.circuit is certificate.circuits[0] and found.structural == model.structural
    assert (found.judge.model, found.judge.dataset, found.judge.ablation) == (model, dataset, "zero")
    plain = derive_truth(model, dataset, model.structural, read, "zero").certificate
    assert (plain.atol, plain.exhaustive) == (0.01, True)
    assert plain.gap == gap_of(found.judge, plain.circuits[0])
    monkeypatch.setattr(truth_module, "_search", lambda judge, edges, seed: ("ambiguous", [C, B, A], 9))
    monkeypatch.setattr(truth_module, "gap_of", lambda judge, circuit: Gap(kept=0.5, dropped=0.0))
    several = derive_truth(model, dataset, model.structural, read, "mean").certificate
    assert [circuit.edges for circuit in several.circuits] == [*sorted((A, B), key=sorted), C]
    assert {circuit.ablation for circuit in several.circuits} == {"mean"}
    assert (several.status, several.choices, several.gap) == ("ambiguous", 9, Gap(kept=0.5, dropped=0.0))


@pytest.mark.parametrize(
    ("status", "complete"),
    [("unique", True), ("ambiguous", True), ("minimal", False), ("locally-minimal", False)],
)
def test_a_list_is_complete_where_all_were_enumerated(truth, status, complete):
    assert replace(truth("hist", "zero").certificate, status=status).complete == complete


@pytest.mark.fakes
def test_an_edge_that_depends_on_what_varies_is_not_inert():
    agree = torch.zeros(len(GRAPH.sources), len(GRAPH.destinations), dtype=torch.bool)
    asked = list[Any]()
    judge: Any = SimpleNamespace(
        model=SimpleNamespace(graph=GRAPH), edges_agree=lambda read, edges: asked.append((read, edges)) or agree
    )
    for same, inert in (((ONE, TWO, THREE), C), ((ONE, THREE), {ONE}), ((THREE,), set()), ((ONE, TWO), {ONE, TWO})):
        agree[:] = False
        for edge in same:
            agree[GRAPH.position(edge)] = True
        assert inert_edges(judge, ["read"], iter(C)) == inert
    read, mask = asked[0]
    assert read == ["read"] and mask.dtype == torch.bool
    assert {edge for edge in GRAPH.edges if mask[GRAPH.position(edge)]} == C


# Known models


def test_a_folder_is_found_by_its_path_and_a_program_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hist").mkdir()
    (tmp_path / "mine").mkdir()
    assert find("hist") is catalogue()["hist"]
    assert find("./hist") == Path("hist") and find("mine") == Path("mine")
    with pytest.raises(UnknownProgram, match="no program 'other'"):
        find("other")


@pytest.mark.fakes
def test_a_known_program_is_what_was_compiled_and_certified(monkeypatch):
    program = catalogue()["first_token"]
    given = known(program)
    assert (given.name, given.doc) == ("first_token", program.doc)
    assert given.subject.program is program
    assert given.model is given.subject.model and given.dataset is given.subject.dataset
    assert given.constructs == tuple(sorted(constructs(program))) and given.constructs
    asked = list[Any]()
    monkeypatch.setattr(known_module, "derive_truth", lambda *given, **more: asked.append((given, more)))
    given.truth("mean")
    known(program, seed=4).truth("zero")
    (first, more), (_, other) = asked
    assert first == (given.model, given.dataset, given.model.structural, given.model.read, "mean")
    assert more == {"name": "first_token", "whole_domain": True, "seed": 0}
    assert other == {"name": "first_token", "whole_domain": True, "seed": 4}


def test_a_sample_of_a_domain_is_no_whole_one():
    assert not certify(compile_program(catalogue()["hist"], budget=20), "zero").certificate.exhaustive
    assert certify(compile_program(catalogue()["hist"]), "zero").certificate.exhaustive


@pytest.mark.fakes
def test_a_folder_is_loaded_with_the_truths_that_it_has(monkeypatch):
    asked = list[Any]()
    exported = SimpleNamespace(name="name", doc="doc", model="model", dataset="data", truth=lambda ablation: ablation)
    monkeypatch.setattr(
        "tracr_bridge.checkpoints.read_back.load_exported", lambda folder: asked.append(folder) or exported
    )
    given = known(Path("folder"))
    assert (given.name, given.doc, given.model, given.dataset) == ("name", "doc", "model", "data")
    assert given.subject is exported and given.truth("mean") == "mean" and given.constructs == ()
    assert asked == [Path("folder")]


@pytest.mark.fakes
def test_a_trained_model_is_loaded_and_shows_its_progress_where_it_is_asked_to(monkeypatch):
    asked = list[Any]()
    loaded = SimpleNamespace(model="model", dataset="data", truth=lambda ablation, progress: (ablation, progress))
    monkeypatch.setattr(
        "tracr_bridge.certify.trained_models.load_trained", lambda subject: asked.append(subject) or loaded
    )
    subject = Trained(model="somewhere", task="task.jsonl", tolerance=0.5)
    for progress in (False, True):
        given = known(subject, progress=progress)
        assert (given.name, given.doc) == ("somewhere", "mean KL of at most 0.5 nats on task.jsonl")
        assert (given.model, given.dataset, given.subject) == ("model", "data", loaded)
        assert given.truth("zero") == ("zero", progress)
    assert known(subject).truth("mean") == ("mean", False)
    assert asked == [subject] * 3


# Recoveries


@pytest.fixture
def fakes(truth, monkeypatch):
    """A method that returns the true circuit of `hist`, what it is called with, and how its subject was loaded."""
    found, called = truth("hist", "zero"), list[Any]()

    def discover(*given, **more):
        called.append((given, more))
        return Discovery(replace(found.circuit, ablation=given[2]), torch.zeros(0), ())

    def loaded(subject, *, progress):
        called.append((subject, progress))
        return Known("name", "doc", "model", "data", lambda ablation: certified(ablation), subject)  # pyright: ignore

    def certified(ablation):
        called.append(ablation)
        circuit = replace(found.circuit, ablation=ablation)
        return replace(found, circuit=circuit, certificate=replace(found.certificate, circuits=(circuit,)))

    def find_method(name, more):
        called.append((name, more))
        return discover

    monkeypatch.setattr(recover_module, "find_method", find_method)
    monkeypatch.setattr(recover_module, "known", loaded)
    return called


@pytest.mark.fakes
def test_all_ablations_are_certified_before_a_method_is_run_on_each(fakes):
    program = catalogue()["hist"]
    found = recover_under(program, ["zero", "mean"], method="mine", seed=4, progress=True)
    runs = [(("model", "data", ablation), {"seed": 4, "progress": True}) for ablation in ("zero", "mean")]
    assert fakes == [("mine", {}), (program, True), "zero", "mean", *runs]
    for each, ablation in zip(found, ("zero", "mean"), strict=True):
        assert (each.name, each.doc, each.method, each.seed) == ("name", "doc", "mine", 4)
        assert each.assessment.found.ablation == each.discovery.circuit.ablation == ablation
        assert each.exact and each.assessment.proof == "listed"
        assert each.seconds.keys() == {"compile", "truth", "discover"}


@pytest.mark.fakes
def test_a_recovery_without_more_is_of_our_method_at_seed_0_without_progress(fakes):
    program = catalogue()["hist"]
    for found in (recover(program, "zero"), *recover_under(program, ["zero"])):
        assert (found.method, found.seed) == ("edge-pruning-minimax", 0)
    one = [
        ("edge-pruning-minimax", {}),
        (program, False),
        "zero",
        (("model", "data", "zero"), {"seed": 0, "progress": False}),
    ]
    assert fakes == one * 2


@pytest.mark.fakes
def test_a_recovery_asks_for_all_that_it_is_asked(fakes):
    recover(catalogue()["hist"], "mean", method="mine", seed=3, progress=True)
    assert fakes[0] == ("mine", {}) and fakes[-1] == (("model", "data", "mean"), {"seed": 3, "progress": True})


@pytest.mark.fakes
def test_a_discovery_that_takes_longer_than_it_is_given_is_refused(fakes, monkeypatch):
    monkeypatch.setattr(recover_module, "find_method", lambda name, more: lambda *given, **asked: time.sleep(30))
    with pytest.raises(MethodError, match=r"mine ran longer than the 0\.1 s that it is given"):
        recover(catalogue()["hist"], "zero", method="mine", seconds=0.1)


def test_seconds_are_those_between_two_looks_at_the_clock(monkeypatch):
    clock = iter([3.0, 5.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert recover_module._timed(lambda: "result") == ("result", 2.5)


def test_methods_beside_those_of_the_registry_are_for_trained_models_alone():
    assert methods_for(catalogue()["hist"]) == {} == methods_for(Path("folder"))
    within = methods_for(Trained(model="model", task="task.jsonl", tolerance=0.25, criterion="worst"))
    assert within
    for method in within.values():
        config = method.keywords["config"]  # pyright: ignore
        assert (config.pressure.tolerance, config.loss.criterion) == (0.25, "worst")


def test_a_circuit_under_another_ablation_is_not_assessed(truth):
    found = truth("hist", "zero")
    with pytest.raises(CircuitMismatch):
        assess(found, replace(found.circuit, ablation="mean"))


def test_a_circuit_is_compared_with_the_true_one_that_differs_in_the_fewest_edges(truth):
    found = truth("shuffle_dyck1", "zero")
    one, other = found.certificate.circuits
    for true in (one, other):
        wrong = Circuit(true.graph, "zero", true.edges - {min(true.edges)})
        assessment = assess(found, wrong)
        assert assessment.reference == true and assessment.comparison.missing == {min(true.edges)}
        assert assessment.found is wrong and assessment.proof is None and assessment.truth is found
