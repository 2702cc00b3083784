"""Certified truths: golden edges and counts, and a search of all subsets by single plain runs."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tracr.compiler import lib
from tracr.rasp import rasp

from edgeprune.ablation import Ablator
from edgeprune.errors import DegenerateProgram
from edgeprune.graph import Circuit, Edge, Graph
from edgeprune.masks import mask_of
from tracr_bridge import rasp_program
from tracr_bridge import truth as truth_module
from tracr_bridge.catalogue import catalogue
from tracr_bridge.compile import compile_program
from tracr_bridge.judge import Judge
from tracr_bridge.known import certify
from tracr_bridge.recover import assess, effects
from tracr_bridge.truth import derive_truth, inert_edges, is_true_circuit

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "truth.json").read_text())


SLOW = {"sort_freq"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.sweep] * (name in SLOW)) for name in GOLDEN["counts"]]
)
def test_certified_edges_number_as_published(compiled, truth, name):
    expected = GOLDEN["counts"][name]
    model = compiled(name).model
    assert expected.get("total", model.graph.total) == model.graph.total
    assert expected.get("structural", len(model.structural)) == len(model.structural)
    for ablation in ("zero", "resample"):
        found = truth(name, ablation)
        assert len(found.circuit) == expected[ablation]
        assert found.certificate.status == "unique"
        assert found.certificate.exhaustive


@pytest.mark.parametrize(("name", "ablation"), [(n, a) for n, by in GOLDEN["edges"].items() for a in by])
def test_certified_edges_are_these(truth, name, ablation):
    assert truth(name, ablation).circuit.names() == GOLDEN["edges"][name][ablation]


@pytest.mark.parametrize(("length", "edges"), [(3, {"zero": 11, "resample": 2}), (5, {"zero": 9})])
def test_reverse_at_one_length_of_five(length, edges):
    @rasp_program(vocab=("a", "b", "c"), max_seq_len=5, min_seq_len=length, valid=lambda t: len(t) == length)
    def reverse() -> rasp.SOp:
        """The input backwards."""
        return lib.make_reverse(rasp.tokens)

    program = compile_program(reverse)
    for ablation, count in edges.items():
        assert len(certify(program, ablation).circuit) == count


def reproduces_alone(program, ablation, kept) -> bool:
    """One mask, one pair at a time, and no shortcut."""
    dataset, model = program.dataset, program.model
    mask = mask_of(model.graph, kept)
    ablator = Ablator(model, dataset, ablation)
    rows = range(len(dataset))
    pairs = itertools.product(rows, rows) if ablation == "resample" else zip(rows, rows, strict=True)
    for clean, corrupted in pairs:
        if dataset.group[clean] != dataset.group[corrupted]:
            continue
        batch = dataset.take(torch.tensor([clean]), torch.tensor([corrupted]))
        difference = (model(batch.clean, mask, ablator(batch)) - batch.target).abs().amax(-1)
        if float(difference[batch.scored].max()) > 1e-2:
            return False
    return True


@pytest.mark.parametrize("ablation", ["zero", "mean", pytest.param("resample", marks=pytest.mark.sweep)])
def test_enumeration_agrees_with_a_plain_search_of_all_structural_subsets(ablation):
    small = replace(catalogue()["xproportion"], max_seq_len=2)
    program = compile_program(small)
    structural = sorted(program.model.structural)
    subsets = [frozenset(s) for n in range(len(structural) + 1) for s in itertools.combinations(structural, n)]
    sufficient = {s for s in subsets if reproduces_alone(program, ablation, s)}
    expected = {s for s in sufficient if not any(s - {e} in sufficient for e in s)}
    found = certify(program, ablation)
    assert {circuit.edges for circuit in found.certificate.circuits} == expected
    assert found.certificate.status == ("unique" if len(expected) == 1 else "ambiguous")
    assert found.certificate.enumerated > 0


def eliminate(program, ablation, monkeypatch):
    """The certificate where enumeration is out of the question."""
    monkeypatch.setattr("tracr_bridge.truth.SUBSET_BUDGET", 1)
    model = program.model
    return derive_truth(model, program.dataset, model.structural, model.read, ablation, orders=16).certificate


@pytest.mark.parametrize(
    ("name", "ablation"), [("sort", "zero"), ("induction", "mean"), ("induction", "resample"), ("rare_pattern", "zero")]
)
def test_elimination_ends_where_enumeration_does(compiled, truth, name, ablation, monkeypatch):
    enumerated = truth(name, ablation).certificate
    eliminated = eliminate(compiled(name), ablation, monkeypatch)
    assert (enumerated.status, enumerated.orders) == ("unique", 0)
    assert (eliminated.status, eliminated.enumerated, eliminated.orders) == ("minimal", 0, 16)
    assert eliminated.circuits == enumerated.circuits


def test_an_order_of_elimination_that_a_few_pairs_misled_starts_again(compiled, truth, monkeypatch):
    rounds = list[int]()
    take_out = truth_module._take_out

    def counted(judge, graph, edges, order):
        rounds.append(len(order))
        return take_out(judge, graph, edges, order)

    def give_up(judge, graph, edges):
        judge._counterexamples.clear()  # what finding the candidate has taught it

    monkeypatch.setattr(truth_module, "_take_out", counted)
    monkeypatch.setattr(truth_module, "_enumerate", give_up)
    monkeypatch.setattr("tracr_bridge.judge._FIRST", 1)
    eliminated = eliminate(compiled("rare_pattern"), "resample", monkeypatch)
    assert rounds[0] == 16
    assert len(rounds) > 1
    assert eliminated.circuits == truth("rare_pattern", "resample").certificate.circuits


def test_every_circuit_of_an_ambiguous_certificate_is_true(compiled, truth):
    found = truth("shuffle_dyck1", "zero")
    certificate = found.certificate
    assert certificate.status == "ambiguous"
    assert len(certificate.candidate) == 26
    assert len(found.circuit) == 19
    assert {24} <= {len(circuit) for circuit in certificate.circuits}
    for circuit in certificate.circuits:
        assert circuit.edges <= compiled("shuffle_dyck1").model.structural
        assert is_true_circuit(found.judge, circuit.graph, circuit.edges)
    assert not is_true_circuit(found.judge, found.circuit.graph, certificate.candidate.edges)


def test_the_gap_is_between_taking_an_edge_out_and_leaving_the_others_out(compiled, truth):
    found = truth("xproportion", "zero")
    masks = [mask_of(found.circuit.graph, found.circuit.edges - {edge}) for edge in found.circuit.edges]
    effects = found.judge.differences(torch.stack(masks))
    assert found.certificate.gap.kept == pytest.approx(float(effects.min()))
    assert found.certificate.gap.kept > 0.5 > 1e-4 > found.certificate.gap.dropped


def test_a_second_true_circuit_makes_a_minimal_certificate_ambiguous(truth):
    found = truth("shuffle_dyck1", "zero")
    one, other = found.certificate.circuits[:2]
    claimed = replace(found, certificate=replace(found.certificate, status="minimal", circuits=(one,)))
    assessment = assess(claimed, other)
    assert assessment.truth.certificate.status == "ambiguous"
    assert set(assessment.truth.certificate.circuits) == {one, other}
    assert assessment.reference == other
    assert assessment.comparison.exact


def test_what_is_not_true_changes_no_certificate_and_is_not_exact(truth):
    found = truth("shuffle_dyck1", "zero")
    graph = found.circuit.graph
    for edges in (frozenset[Edge](), found.structural, found.certificate.candidate.edges):
        assessment = assess(found, Circuit(graph, "zero", edges))
        assert assessment.truth is found
        assert not assessment.comparison.exact


def test_each_structural_edge_comes_with_its_effect(truth):
    found = truth("xproportion", "zero")
    missing, *rest = sorted(found.circuit.edges)
    extra, other = sorted(found.structural - found.circuit.edges)[:2]
    wrong = Circuit(found.circuit.graph, "zero", frozenset(rest) | {extra})
    effect = effects(assess(found, wrong))
    without = mask_of(wrong.graph, rest)[None]
    assert effect.keys() == found.structural
    assert effect[missing] == effect[extra] == pytest.approx(float(found.judge.differences(without)[0]))
    assert min(effect[edge] for edge in found.circuit.edges) > found.certificate.atol
    alone = mask_of(wrong.graph, {*wrong.graph.edges} - {other})[None]
    assert effect[other] == pytest.approx(float(found.judge.differences(alone)[0]))
    # An edge that no source writes to its destination is measured where it was found.
    idle = next(edge for edge in wrong.graph.edges if edge not in found.structural)
    widened = assess(found, Circuit(wrong.graph, "zero", found.circuit.edges | {idle}))
    assert effects(widened).keys() == found.structural | {idle}


def test_an_empty_circuit_is_refused_as_nothing_could_fail_on_it(compiled):
    with pytest.raises(DegenerateProgram, match="length gives the same output with every edge ablated"):
        certify(compiled("length"), "resample")


def test_a_sample_of_pairs_is_said_to_be_one(compiled, monkeypatch):
    monkeypatch.setattr("tracr_bridge.judge.PAIR_BUDGET", 500)
    certificate = certify(compiled("hist"), "resample").certificate
    assert (certificate.pairs, certificate.exhaustive) == (500, False)


def test_the_cost_grows_with_structural_edges_not_with_all(compiled, truth):
    small, large = compiled("sort").model, compiled("sort_freq").model
    assert large.graph.total > 2 * small.graph.total
    rows = {name: truth(name, "resample").judge.rows for name in ("sort", "sort_freq")}
    assert rows["sort_freq"] / rows["sort"] < len(large.structural) / len(small.structural) * 1.5


@pytest.mark.parametrize(("embedding_agrees", "expected"), [(True, {"tok->m0", "m0->logits"}), (False, set())])
def test_an_edge_is_inert_only_where_all_that_its_source_reads_is(embedding_agrees, expected):
    graph = Graph.transformer(embeddings=("tok", "pos"), layers=1, heads=1)
    edges = [Edge.parse("tok->m0"), Edge.parse("m0->logits")]
    agree = torch.zeros(len(graph.sources), len(graph.destinations), dtype=torch.bool)
    agree[graph.position(edges[0])] = embedding_agrees
    agree[graph.position(edges[1])] = True  # in plain runs; once tok->m0 is ablated, m0 may write something else
    judge = Judge.__new__(Judge)
    judge.model = SimpleNamespace(graph=graph)
    judge.edges_agree = lambda read, asked: agree & asked
    assert {str(edge) for edge in inert_edges(judge, [], edges)} == expected


def test_an_edge_of_a_head_that_shares_its_value_is_not_inert_where_the_value_is_not():
    graph = Graph.transformer(embeddings=("embed",), layers=1, heads=4, kv_heads=2)
    edges = [Edge.parse("embed->a0.h1.v"), Edge.parse("a0.h2->logits"), Edge.parse("a0.h0->logits")]
    agree = torch.ones(len(graph.sources), len(graph.destinations), dtype=torch.bool)
    agree[graph.position(edges[0])] = False
    judge = Judge.__new__(Judge)
    judge.model = SimpleNamespace(graph=graph)
    judge.edges_agree = lambda read, asked: agree & asked
    assert inert_edges(judge, [], edges) == {edges[2]}
