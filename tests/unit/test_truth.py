"""Certified truths: golden edges and counts, and a search of all subsets by single plain runs."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tracr.compiler import lib
from tracr.rasp import rasp

from edgeprune import groups
from edgeprune.ablation import Ablator
from edgeprune.cli.main import main
from edgeprune.data import Dataset
from edgeprune.errors import DegenerateProgram, UnsupportedProgram
from edgeprune.graph import ABLATIONS, Circuit, Edge, Graph
from edgeprune.masks import mask_of
from tracr_bridge import rasp_program
from tracr_bridge.certify import behaviours, elimination
from tracr_bridge.certify import truth as truth_module
from tracr_bridge.certify.faithfulness import Judge
from tracr_bridge.certify.truth import derive_truth, gap_of, inert_edges, is_faithful, is_true
from tracr_bridge.compile.catalogue import catalogue, load_program
from tracr_bridge.compile.compile import compile_program
from tracr_bridge.compile.model import TracrModel
from tracr_bridge.compile.weights import HeadWeights, LayerWeights, Weights
from tracr_bridge.recovery import recover as recover_module
from tracr_bridge.recovery.known_models import certify
from tracr_bridge.recovery.recover import assess, effects

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


def test_a_certificate_says_how_close_its_closest_call_was(truth):
    for name, ablation in (("xproportion", "zero"), ("reverse", "resample")):
        found = truth(name, ablation)
        certificate, graph = found.certificate, found.circuit.graph
        assert 0 < certificate.margin <= certificate.atol
        whole = found.judge.differences(mask_of(graph, found.circuit.edges)[None])
        assert certificate.margin <= abs(float(whole) - certificate.atol)
        assert certificate.choices > 0


UNIFORM = {"end_pair": (13, 17), "ignored_input": (5, 8)}
"""True edges under zero, and those of a larger circuit that no single edge can leave."""


@pytest.mark.parametrize("name", UNIFORM)
def test_a_head_that_attends_uniformly_leaves_with_all_its_queries_and_keys(compiled, truth, name):
    found, (edges, larger) = truth(name, "zero"), UNIFORM[name]
    assert (found.certificate.status, len(found.circuit)) == ("unique", edges)
    # Taking out one edge at a time ends in a circuit that is faithful and not true.
    judge, graph = found.judge, found.circuit.graph
    kept = compiled(name).model.structural
    for edge in sorted(kept, key=lambda edge: (edge in found.circuit.edges, edge.destination.port not in ("q", "k"))):
        others = mask_of(graph, kept - {edge})[None]
        kept = kept - {edge} if edge.destination.port not in ("q", "k") and bool(judge.reproduces(others)) else kept
    for edge in sorted(kept):
        kept = kept - {edge} if bool(judge.reproduces(mask_of(graph, kept - {edge})[None])) else kept
    assert len(kept) == larger and found.circuit.edges < kept
    assert is_faithful(judge, kept) and is_true(judge, kept) is False


def test_every_circuit_of_an_ambiguous_certificate_is_true(compiled, truth):
    found = truth("shuffle_dyck1", "zero")
    certificate = found.certificate
    assert certificate.status == "ambiguous"
    assert [len(circuit) for circuit in certificate.circuits] == [19, 24]
    for circuit in certificate.circuits:
        assert circuit.edges <= compiled("shuffle_dyck1").model.structural
        assert is_true(found.judge, circuit.edges) is True
    assert is_true(found.judge, found.structural) is False


def budgets(monkeypatch, **limits):
    """Of the search; elimination, which has to do instead, tries fewer small sets, as they are most of its time."""
    for name, limit in limits.items():
        monkeypatch.setattr(behaviours, name, limit)
    monkeypatch.setattr(groups, "SUBSETS", 64)


@pytest.mark.parametrize(
    ("name", "limit"), [("induction", 64), pytest.param("shuffle_dyck1", 256, marks=pytest.mark.sweep)]
)
def test_what_is_too_much_to_enumerate_is_eliminated_and_proved_by_its_own_subsets(
    compiled, truth, monkeypatch, name, limit
):
    unlimited = truth(name, "zero").certificate
    budgets(monkeypatch, _FEW=0, MOST_CHOICES=limit)  # enough for the subsets of a circuit, and too few for all
    certificate = certify(compiled(name), "zero").certificate
    assert unlimited.complete and unlimited.choices > 0
    assert (certificate.status, certificate.choices, certificate.complete) == ("minimal", 0, False)
    assert set(certificate.circuits) <= set(unlimited.circuits)


def test_what_is_too_much_to_prove_is_said_to_be_locally_minimal(compiled, truth, monkeypatch):
    budgets(monkeypatch, _FEW=0, MOST_CHOICES=1)
    found = certify(compiled("ignored_input"), "zero")
    certificate = found.certificate
    assert (certificate.status, certificate.choices, certificate.complete) == ("locally-minimal", 0, False)
    # A head's queries and keys are taken out together.
    assert certificate.circuits == truth("ignored_input", "zero").certificate.circuits
    assert is_true(found.judge, found.circuit.edges) is None


def nearly_cancelling() -> tuple[TracrModel, Dataset]:
    """m0 adds 3, m1 takes off 2.985: without both, outputs are .015 off, which is .005 above the tolerance."""
    column = np.eye(4, dtype=np.float32)
    none = HeadWeights(*[np.zeros((4, 1), np.float32)] * 3, np.zeros((1, 4), np.float32))
    layers = tuple(
        LayerWeights((none,), column[:, :1], factor * column[to : to + 1]) for factor, to in ((3, 2), (-2.985, 3))
    )
    token = np.zeros((4, 4), np.float32)
    token[1, 0] = token[2, 1] = 1
    weights = Weights(
        token, np.zeros((2, 4), np.float32), layers, column[:, 1:].sum(1)[:, None], causal=False, pad_id=3
    )
    model = TracrModel(weights, token_ids=[0, 1, 2])
    tokens, scored = torch.tensor([[0, 1], [0, 2]]), torch.tensor([[False, True]] * 2)
    return model, Dataset(tokens, scored, model(tokens), torch.zeros(2, dtype=torch.long), logits=False)


@pytest.mark.parametrize("proved", [True, False])
def test_a_margin_is_of_groups_too(monkeypatch, proved):
    model, dataset = nearly_cancelling()
    if not proved:
        monkeypatch.setattr(truth_module, "minimal_circuits", lambda judge, edges: None)
    certificate = derive_truth(model, dataset, model.structural, list(model.read), "zero").certificate
    assert certificate.status == ("unique" if proved else "locally-minimal")
    assert certificate.margin == pytest.approx(0.005, abs=1e-4)


def test_an_order_of_elimination_that_a_few_pairs_misled_starts_again(compiled, truth, monkeypatch):
    rounds = list[int]()
    take_out = elimination._take_out

    def counted(judge, edges, moves, ranking):
        rounds.append(len(ranking))
        return take_out(judge, edges, moves, ranking)

    def give_up(judge, edges):
        judge._counterexamples.clear()  # what other searches have taught it

    budgets(monkeypatch)
    monkeypatch.setattr(elimination, "_take_out", counted)
    monkeypatch.setattr(truth_module, "minimal_circuits", give_up)
    monkeypatch.setattr("tracr_bridge.certify.faithfulness._FIRST", 1)
    eliminated = certify(compiled("rare_pattern"), "resample").certificate
    assert rounds[0] == elimination.ORDERS
    assert len(rounds) > 1
    assert eliminated.circuits == truth("rare_pattern", "resample").certificate.circuits


def test_the_gap_is_between_taking_an_edge_out_and_leaving_the_others_out(compiled, truth):
    found = truth("xproportion", "zero")
    masks = [mask_of(found.circuit.graph, found.circuit.edges - {edge}) for edge in found.circuit.edges]
    effects = found.judge.differences(torch.stack(masks))
    assert found.certificate.gap.kept == pytest.approx(float(effects.min()))
    assert found.certificate.gap.kept > 0.5 > 1e-4 > found.certificate.gap.dropped


def claimed(found, status, *circuits, **more):
    """The same truth, with another certificate."""
    return replace(found, certificate=replace(found.certificate, status=status, circuits=circuits), **more)


def test_a_circuit_that_is_listed_is_exact_and_one_that_is_proved_is_told_apart(truth):
    found = truth("shuffle_dyck1", "zero")
    one, other = found.certificate.circuits
    assert assess(found, other).proof == "listed" and assess(found, other).truth is found
    for before, after, others_matter in (
        ("minimal", "minimal", False),
        ("locally-minimal", "locally-minimal", False),
        ("unique", "minimal", True),
        ("ambiguous", "minimal", True),
    ):
        assessment = assess(claimed(found, before, one, others_matter=others_matter), other)
        assert (assessment.proof, assessment.reference) == ("proved", other)
        assert assessment.comparison.exact
        assert assessment.truth.certificate.status == after
        assert assessment.truth.certificate.circuits == (one, other)
        assert assess(assessment.truth, other).proof == "listed"


def test_what_is_said_of_a_circuit_that_was_proved_is_of_that_circuit(truth):
    """The gap is of the smallest circuit listed, and the margin covers all verdicts."""
    found = truth("shuffle_dyck1", "zero")
    smaller, larger = found.certificate.circuits
    alone = replace(claimed(found, "minimal", larger), circuit=larger)
    alone = replace(alone, certificate=replace(alone.certificate, gap=gap_of(found.judge, larger), margin=0.009))
    certificate = assess(alone, smaller).truth.certificate
    assert certificate.circuits == (smaller, larger)
    assert certificate.gap == gap_of(found.judge, smaller) != alone.certificate.gap
    assert certificate.margin == min(found.judge.margin, 0.009) < 0.01


def test_a_complete_list_leaves_no_room_for_another_circuit(truth):
    found = truth("shuffle_dyck1", "zero")
    one, other = found.certificate.circuits
    assessment = assess(claimed(found, "unique", one), other)
    assert assessment.proof is None and not assessment.comparison.exact


def test_what_holds_a_circuit_that_was_proved_is_listed_no_longer(truth):
    found = truth("ignored_input", "zero")
    larger = Circuit(found.circuit.graph, "zero", found.structural)
    assert found.circuit.edges < larger.edges
    assessment = assess(claimed(found, "locally-minimal", larger), found.circuit)
    assert assessment.proof == "proved" and assessment.truth.certificate.circuits == (found.circuit,)


def test_what_is_too_costly_to_prove_is_not_exact(truth, monkeypatch):
    found = truth("shuffle_dyck1", "zero")
    one, other = found.certificate.circuits
    monkeypatch.setattr(recover_module, "is_true", lambda judge, edges: None)
    assert assess(claimed(found, "minimal", one), other).proof is None


def test_what_is_not_true_changes_no_certificate_and_is_not_exact(truth):
    found = truth("shuffle_dyck1", "zero")
    graph = found.circuit.graph
    for status in ("ambiguous", "minimal"):
        given = claimed(found, status, *found.certificate.circuits)
        for edges in (frozenset[Edge](), found.structural, found.circuit.edges - {min(found.circuit.edges)}):
            assessment = assess(given, Circuit(graph, "zero", edges))
            assert assessment.truth is given
            assert assessment.proof is None and not assessment.comparison.exact


LARGE = """
from tracr.rasp import rasp
from tracr_bridge import rasp_program
from tracr.compiler import lib

@rasp_program(vocab=("a", "b", "x"), max_seq_len=3)
def large() -> rasp.SOp:
    "A difference of shares, two hundred thousand times."
    is_a, is_b = (rasp.numerical(rasp.Map(lambda t, a=a: float(t == a), rasp.tokens).named(f"is_{a}")) for a in "ab")
    share_a, share_b = lib.make_frac_prevs(is_a).named("share_a"), lib.make_frac_prevs(is_b).named("share_b")
    large = rasp.numerical(rasp.LinearSequenceMap(share_a, share_b, 200_000, -200_000).named("large"))
    half = rasp.numerical(rasp.LinearSequenceMap(large, share_a, 1, -200_000).named("half"))
    none = rasp.numerical(rasp.LinearSequenceMap(half, share_b, 1, 200_000).named("none"))
    small = rasp.numerical(rasp.LinearSequenceMap(none, is_a, 1, 1).named("small"))
    return RETURNED
"""


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_outputs_too_large_for_single_precision_are_compared_in_double(tmp_path, ablation):
    """A step of single precision is .0156 there, more than the tolerance."""
    (tmp_path / "mine.py").write_text(LARGE.replace("RETURNED", "large"))
    certificate = certify(compile_program(load_program(f"{tmp_path / 'mine.py'}:large")), ablation).certificate
    assert certificate.status == "unique" and certificate.gap.dropped < 1e-3 and certificate.gap.kept > 1e5


@pytest.mark.parametrize("command", ["truth", "recover"])
def test_values_that_single_precision_cannot_tell_apart_are_refused_in_one_line(capsys, tmp_path, command):
    (tmp_path / "mine.py").write_text(LARGE.replace("RETURNED", "small"))
    assert main([command, f"{tmp_path / 'mine.py'}:large", "--ablation", "resample"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("edgeprune: Expected") and "make them smaller" in said


def test_edges_that_do_more_than_is_said_of_them_are_refused(compiled):
    program = compiled("hist")
    less = program.model.structural - {min(program.model.structural)}
    with pytest.raises(UnsupportedProgram, match="Expected structural edges alone to give the outputs of the model"):
        derive_truth(program.model, program.dataset, less, program.model.read, "zero")


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
    monkeypatch.setattr("tracr_bridge.certify.faithfulness.PAIR_BUDGET", 500)
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
