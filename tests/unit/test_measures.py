"""Measures: against definitions written out, and at the ends that are known."""

import math
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_peers import build, random_weights

from edgeprune.ablation import Ablator
from edgeprune.data import Dataset
from edgeprune.evaluation.measures import Behaviour, best_threshold, highest, roc
from edgeprune.graph import Circuit, Edge, Graph, Node
from edgeprune.masks import circuit_mask, edge_exists, edges_of, mask_of
from edgeprune.metrics.overlap import nodes_of, overlap

GRAPH = Graph.transformer(embeddings=("tok", "pos"), layers=1, heads=1)
EDGES = GRAPH.edges

sets = st.frozensets(st.sampled_from(EDGES))


@given(sets, sets)
def test_overlap_is_what_counting_one_by_one_gives(found, true):
    measured = overlap(found, true)
    both = sum(edge in true for edge in found)
    assert measured.precision == (both / len(found) if found else 1)
    assert measured.recall == (both / len(true) if true else 1)
    assert measured.iou == (both / (len(found) + len(true) - both) if found or true else 1)
    assert measured.exact == (sorted(found) == sorted(true))


def test_nodes_are_those_at_either_end_and_a_head_is_one():
    edges = map(Edge.parse, ["tok->a0.h0.q", "pos->a0.h0.k", "a0.h0->logits"])
    assert nodes_of(GRAPH, edges) == {Node("tok"), Node("pos"), Node("a", 0, 0), Node("logits")}


scores = st.lists(st.sampled_from((0.0, 0.25, 0.5, 1.0)), min_size=len(EDGES), max_size=len(EDGES))


def matrix(values):
    table = torch.zeros(len(GRAPH.sources), len(GRAPH.destinations))
    for edge, value in zip(EDGES, values, strict=True):
        table[GRAPH.position(edge)] = value
    return table


@given(scores, st.frozensets(st.sampled_from(EDGES), min_size=1, max_size=len(EDGES) - 1))
def test_auroc_is_the_chance_that_a_true_edge_scores_above_another(values, true):
    by_edge = dict(zip(EDGES, values, strict=True))
    pairs = list(product(true, set(EDGES) - true))
    wins = sum((by_edge[t] > by_edge[f]) + 0.5 * (by_edge[t] == by_edge[f]) for t, f in pairs)
    curve = roc(matrix(values), Circuit(GRAPH, "zero", true))
    assert curve.area == pytest.approx(wins / len(pairs))
    for false_rate, true_rate, threshold in zip(
        curve.false_positive_rate, curve.true_positive_rate, curve.thresholds, strict=True
    ):
        kept = {edge for edge, value in by_edge.items() if value >= threshold}
        assert true_rate == pytest.approx(len(kept & true) / len(true))
        assert false_rate == pytest.approx(len(kept - true) / (len(EDGES) - len(true)))


@pytest.mark.parametrize("true", [frozenset(), frozenset(EDGES)])
def test_auroc_of_all_or_nothing_is_not_a_number(true):
    curve = roc(matrix(len(EDGES) * [0.5]), Circuit(GRAPH, "zero", true))
    assert math.isnan(curve.area)
    assert curve.false_positive_rate == curve.true_positive_rate == curve.thresholds == ()


@given(scores, st.frozensets(st.sampled_from(EDGES), min_size=1))
def test_no_threshold_beats_the_best(values, true):
    by_edge = dict(zip(EDGES, values, strict=True))
    best = best_threshold(matrix(values), Circuit(GRAPH, "zero", true))
    found = {threshold: overlap({e for e, v in by_edge.items() if v >= threshold}, true) for threshold in set(values)}
    assert best.iou == pytest.approx(max(measured.iou for measured in found.values()))
    assert best.iou == pytest.approx(found[best.threshold].iou)
    assert best.threshold == max(each for each in found if found[each].iou == pytest.approx(best.iou))
    assert best.exact == any(measured.exact for measured in found.values())


def test_the_highest_scores_are_kept_and_shares_are_rounded_down():
    values = [float(number) for number in range(len(EDGES))]
    masks = highest(GRAPH, matrix(values), (0.0, 0.2, 1.0))
    assert masks.sum((1, 2)).tolist() == [0, int(0.2 * len(EDGES)), len(EDGES)]
    for edge in EDGES[-int(0.2 * len(EDGES)) :]:
        assert masks[1][GRAPH.position(edge)] == 1


def test_of_many_edges_that_score_alike_the_first_are_kept():
    graph = Graph.transformer(embeddings=("embed",), layers=2, heads=2)
    cells = edge_exists(graph).nonzero().tolist()
    scores = torch.zeros(len(graph.sources), len(graph.destinations))
    for number, cell in enumerate(cells):
        scores[*cell] = number % 3
    ranked = sorted(cells, key=lambda cell: -float(scores[*cell]))
    shares = [(edges + 0.5) / len(cells) for edges in range(len(cells))]
    for edges, mask in enumerate(highest(graph, scores, shares)):
        assert mask.nonzero().tolist() == sorted(ranked[:edges])


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize("name", ["reverse", "xproportion"])
def test_the_true_circuit_is_faithful_complete_and_minimal(compiled, truth, name, ablation):
    program, true = compiled(name), truth(name, ablation).circuit
    behaviour = Behaviour(program.model, program.dataset, ablation)
    assert behaviour.of(true) == pytest.approx(1, abs=1e-3)
    assert behaviour.completeness(true) < 0.7
    assert behaviour.minimality(true) > 0.01
    everything = Circuit(true.graph, ablation, frozenset(true.graph.edges))
    assert behaviour.of(everything) == pytest.approx(1, abs=1e-5)
    assert behaviour.completeness(everything) == pytest.approx(0, abs=1e-5)
    assert behaviour.minimality(everything) == pytest.approx(0, abs=1e-3)
    nothing = Circuit(true.graph, ablation, frozenset())
    assert behaviour.of(nothing) == pytest.approx(0, abs=1e-5)
    assert behaviour.minimality(nothing) == float("inf")


@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_faithfulness_completeness_and_minimality_are_the_formulas(compiled, truth, ablation):
    program, true = compiled("hist"), truth("hist", ablation).circuit
    part = Circuit(true.graph, ablation, frozenset(sorted(true.edges)[:-1]))
    batch = program.dataset.sample(512, torch.Generator().manual_seed(0))
    ablated = Ablator(program.model, program.dataset, ablation)(batch)

    def metric(kept):
        """The mean logit difference: the full model's answer above the mean of the other outputs."""
        outputs = program.model(batch.clean, mask_of(true.graph, kept), ablated)
        by_input = []
        for row, scored, full in zip(outputs, batch.scored, batch.target, strict=True):
            differences = []
            for place in torch.nonzero(scored)[:, 0]:
                answer = int(full[place].argmax())
                others = [value for index, value in enumerate(row[place].tolist()) if index != answer]
                differences.append(float(row[place, answer]) - sum(others) / len(others))
            by_input.append(sum(differences) / len(differences))
        return sum(by_input) / len(by_input)

    everything = frozenset(true.graph.edges)
    nothing, full = metric(frozenset()), metric(everything)

    def f(kept):
        return (metric(kept) - nothing) / (full - nothing)

    behaviour = Behaviour(program.model, program.dataset, ablation)
    least = min(abs(f(part.edges) - f(part.edges - {edge})) for edge in part.edges)
    assert behaviour.of(part) == pytest.approx(f(part.edges), abs=1e-4)
    assert behaviour.minimality(part) == pytest.approx(least, abs=1e-4)
    # All but the last two edges of the model: enough left for the rest to do something.
    most = Circuit(true.graph, ablation, frozenset(true.graph.edges[:-2]))
    for circuit in (part, most):
        assert behaviour.completeness(circuit) == pytest.approx(f(everything - circuit.edges), abs=1e-4)
    assert abs(behaviour.completeness(Circuit(true.graph, ablation, frozenset(true.graph.edges[:1])))) > 0.1


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_of_masks_of_any_numbers_f_is_by_the_sample_of_the_seed(ablation, logits):
    """Of logits, m is the answer's above the mean of all others; of values, their product with the full model's."""
    model, dataset = build(random_weights(1), logits=logits)
    batch = dataset.sample(5, torch.Generator().manual_seed(3))
    ablated = Ablator(model, dataset, ablation)(batch)
    exists = edge_exists(model.graph).float()
    masks = torch.rand(2, *exists.shape, generator=torch.Generator().manual_seed(0)) * exists

    def metric(mask):
        outputs, total = model(batch.clean, mask, ablated), 0.0
        for row, scored, full in zip(outputs, batch.scored, batch.target, strict=True):
            for place in torch.nonzero(scored)[:, 0].tolist():
                values, answer = row[place].tolist(), int(full[place].argmax())
                others = sum(values) - values[answer]
                of_values = float(row[place] @ full[place])
                total += values[answer] - others / (len(values) - 1) if logits else of_values
        return total

    nothing, full = metric(torch.zeros_like(exists)), metric(exists)
    expected = [(metric(mask) - nothing) / (full - nothing) for mask in masks]
    behaviour = Behaviour(model, dataset, ablation, inputs=5, seed=3)
    assert behaviour.faithfulness(masks).tolist() == pytest.approx(expected, rel=1e-3)


def test_512_inputs_are_sampled_by_the_seed_0_unless_others_are_asked_for(monkeypatch):
    model, dataset = build(random_weights(1))
    asked, sample = [], Dataset.sample

    def noted(self, size, generator):
        asked.append((size, generator.initial_seed()))
        return sample(self, size, generator)

    monkeypatch.setattr(Dataset, "sample", noted)
    Behaviour(model, dataset, "zero"), Behaviour(model, dataset, "zero", inputs=4, seed=9)
    assert asked == [(512, 0), (4, 9)]


def test_areas_are_those_of_trapezia(compiled, truth):
    program, true = compiled("xproportion"), truth("xproportion", "zero").circuit
    behaviour = Behaviour(program.model, program.dataset, "zero")
    scores = circuit_mask(true) + 0.5 * edge_exists(true.graph)
    shares = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # MIB's
    f = behaviour.faithfulness(highest(true.graph, scores, shares)).tolist()
    cpr = cmd = 0.0
    for index, (left, right) in enumerate(pairwise(shares)):
        cpr += (right - left) * (f[index] + f[index + 1]) / 2
        cmd += (right - left) * (abs(1 - f[index]) + abs(1 - f[index + 1])) / 2
    assert behaviour.areas(scores) == pytest.approx((cpr, cmd), abs=1e-6)
    worst = behaviour.areas(-scores, signed=False)
    assert worst[0] < cpr
    assert worst[1] > cmd


def test_cpr_is_by_signed_scores_and_cmd_by_their_sizes(compiled, monkeypatch):
    """As MIB has them; what is no attribution is ranked as it is, and what is gone comes last by either."""
    program = compiled("hist")
    behaviour = Behaviour(program.model, program.dataset, "zero")
    graph = program.model.graph
    asked, first = [], {}
    monkeypatch.setattr(behaviour, "faithfulness", lambda masks: asked.append(masks) or torch.ones(len(masks)))
    helps, harms, gone = graph.edges[3], graph.edges[5], graph.edges[7]
    scores = 0.1 * edge_exists(graph)
    for edge, score in {helps: 1.0, harms: -2.0, gone: -math.inf}.items():
        scores[graph.position(edge)] = score
    for signed in (True, False):
        behaviour.areas(scores, (0.0, 1.5 / graph.total, 1 - 1.5 / graph.total), signed=signed)
        cpr, cmd = asked[-2:]
        first[signed] = [edges_of(graph, masks[1] > 0) for masks in (cpr, cmd)]
        for masks in (cpr, cmd):
            assert masks[2][graph.position(gone)] == 0
    assert first == {True: [{helps}, {harms}], False: [{helps}, {helps}]}
    behaviour.areas(scores, (0.0, 1.5 / graph.total, 1.0))  # attributions, unless they are said to be none
    assert [edges_of(graph, masks[1] > 0) for masks in asked[-2:]] == [{helps}, {harms}]


def test_what_lies_above_1_does_not_make_up_for_what_lies_below(compiled, monkeypatch):
    program = compiled("hist")
    behaviour = Behaviour(program.model, program.dataset, "zero")
    monkeypatch.setattr(behaviour, "faithfulness", lambda masks: torch.tensor([0.0, 2.0, 1.0]))
    assert behaviour.areas(edge_exists(program.model.graph).float(), (0.0, 0.5, 1.0)) == (1.25, 0.75)
