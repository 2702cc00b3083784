"""Losses and what is measured, beside sums that are written out."""

import math

import numpy as np
import pytest
import torch
from tracr.rasp import rasp

from edgeprune.data import Dataset
from edgeprune.evaluation.evaluate import evaluate
from edgeprune.evaluation.measures import Behaviour, highest
from edgeprune.graph import Graph
from edgeprune.masks import edge_exists
from edgeprune.methods.loss import Objective
from edgeprune.metrics import distances
from edgeprune.metrics.answers import Answers
from edgeprune.metrics.distances import (
    kl_divergence,
    largest_difference,
    logit_difference,
    not_negative,
    scored_mean,
    squared_error,
)
from tracr_bridge.compile.compile import compile_program
from tracr_bridge.compile.program import Program
from tracr_bridge.compile.verify import verify
from tracr_bridge.compile.weights import HeadWeights, LayerWeights

GRAPH = Graph.transformer(embeddings=("embed",), layers=1, heads=1)


def test_a_mean_is_over_the_positions_that_count_and_no_others():
    value = torch.tensor([[1.0, 3.0, 8.0], [1.0, 3.0, 8.0], [torch.nan, 3.0, 8.0], [1.0, 3.0, 8.0]])
    scored = torch.tensor([[True, True, True], [True, True, False], [False, True, False], [False, False, False]])
    assert scored_mean(value, scored).tolist() == [4.0, 2.0, 3.0, 0.0]
    outputs = torch.stack([value, value], dim=-1)[[0, 1]]
    assert squared_error(outputs, torch.zeros_like(outputs), scored[:2]).tolist() == pytest.approx([148 / 3, 10.0])
    assert squared_error(outputs, torch.ones_like(outputs), scored[:2]).tolist() == pytest.approx([106 / 3, 4.0])
    # Of several runs, each may have positions of its own that count.
    runs = torch.tensor([[[1.0, 3.0]], [[5.0, 9.0]]])
    assert scored_mean(runs, torch.tensor([[[True, True]], [[False, True]]])).tolist() == [[2.0], [9.0]]


def test_a_divergence_is_a_mean_over_the_positions_that_count():
    target = torch.tensor([[[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]]).log()
    outputs = torch.tensor([[[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]]).log()
    second = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    third = 0.2 * math.log(0.2 / 0.5) + 0.8 * math.log(0.8 / 0.5)
    for scored, expected in (([True, True, False], second / 2), ([False, True, True], (second + third) / 2)):
        found = kl_divergence(outputs, target, torch.tensor([scored]))
        assert float(found[0]) == pytest.approx(expected, abs=1e-6)


def test_the_answer_is_the_full_models_and_not_the_circuits():
    target, outputs = torch.tensor([[[0.0, 5.0, 1.0]]]), torch.tensor([[[7.0, 2.0, 3.0]]])
    assert float(logit_difference(outputs, target)) == 2.0 - (7.0 + 3.0) / 2
    data = Dataset(torch.zeros(1, 1).long(), torch.ones(1, 1, dtype=torch.bool), target, torch.zeros(1).long())
    batch = data.take(torch.tensor([0]), torch.tensor([0]))
    assert float(Objective(data, "disagreement").per_input(outputs, batch)) == 3.0


def test_the_worst_is_on_a_scale_from_what_counts_as_the_same_to_the_range_of_outputs():
    """Outputs from -3 to 5: a difference of 8 or more is as wrong as can be, and one of a hundredth is none."""
    target = torch.tensor([[[-3.0, 5.0, 1.0]]])
    data = Dataset(torch.zeros(1, 1).long(), torch.ones(1, 1, dtype=torch.bool), target, torch.zeros(1).long())
    batch = data.take(torch.tensor([0]), torch.tensor([0]))
    off = torch.tensor([0.0099, 0.0101, 1.0, 8.0, 80.0])
    outputs = target + torch.nn.functional.pad(off[:, None, None, None], (1, 1))
    losses = Objective(data, "worst").per_input(outputs, batch)[:, 0].tolist()
    expected = [0.0, *(math.log1p(difference / 0.01) / math.log1p(800) for difference in (0.0101, 1.0)), 1.0, 1.0]
    assert losses == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("divergence", "said"),
    [(-1e-8, 0.0), (-9e-5, 0.0), (-1e-4, -1e-4), (-0.0, 0.0), (1e-8, 1e-8), (-0.5, -0.5), (math.nan, math.nan)],
)
def test_a_divergence_that_rounding_left_below_nothing_is_nothing(divergence, said):
    assert str(not_negative(divergence)) == str(said)


def test_divergence_is_from_the_full_model_to_the_circuit():
    target = torch.tensor([0.9, 0.1]).log()[None, None]
    outputs = torch.tensor([0.5, 0.5]).log()[None, None]
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert float(kl_divergence(outputs, target, torch.tensor([[True]]))) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("lead", [(), (3,)])
def test_divergences_over_large_vocabularies_are_those_of_the_whole_and_so_are_their_gradients(monkeypatch, lead):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(*lead, 5, 2, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randn(5, 2, 7, generator=generator, dtype=torch.float64)
    scored = torch.rand(5, 2, generator=generator) > 0.3
    p, q = target.softmax(-1), outputs.softmax(-1)
    expected = scored_mean((p * (p / q).log()).sum(-1), scored)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    gradient = torch.autograd.grad((weights * expected).sum(), outputs)[0]
    for numbers in (1, 30, 10**6):
        monkeypatch.setattr("edgeprune.metrics.distances._AT_ONCE", numbers)
        found = kl_divergence(outputs, target, scored)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad((weights * found).sum(), outputs)[0], gradient)


@pytest.mark.parametrize(("numbers", "parts"), [(14, [1] * 5), (27, [1] * 5), (28, [2, 2, 1]), (69, [4, 1]), (70, [5])])
def test_no_more_logits_are_compared_at_once_than_fit_unless_one_input_has_more(monkeypatch, numbers, parts):
    """Five inputs of two positions and seven tokens."""
    sizes, compare = [], distances._kl

    def spy(outputs, target):
        assert outputs.shape == target.shape
        sizes.append(len(outputs))
        return compare(outputs, target)

    monkeypatch.setattr(distances, "_AT_ONCE", numbers)
    monkeypatch.setattr(distances, "_kl", spy)
    logits = torch.zeros(5, 2, 7)
    assert kl_divergence(logits, logits, torch.ones(5, 2, dtype=torch.bool)).tolist() == [0.0] * 5
    assert sizes == parts


def test_the_largest_difference_is_over_what_counts_and_what_is_no_number_is_as_far_as_can_be():
    outputs = torch.zeros(5, 3, 2)
    outputs[0] = torch.tensor([[0.25, -0.5], [0.0, 0.125], [9.0, 0.0]])
    outputs[1] = torch.tensor([[1.5, 1.0], [1.0, 1.0], [1.0, 9.0]])
    outputs[2, 0, 1], outputs[3, 1, 0] = math.nan, -math.inf
    scored = torch.tensor([[True, True, False]] * 4 + [[False] * 3])
    target = torch.zeros(5, 3, 2)
    target[1] = 1
    small, other, nan, infinite, none = largest_difference(outputs, target, scored).tolist()
    assert (small, other, none) == (0.5, 0.5, 0.0) and min(nan, infinite) > 1e38
    # Of several runs, each has differences of its own.
    assert largest_difference(torch.stack([target, outputs]), target, scored)[:, 0].tolist() == [0.0, 0.5]


def test_of_two_outputs_the_answer_is_above_the_other_one_and_of_one_above_none():
    found = logit_difference(torch.tensor([[[3.0, 1.0]], [[3.0, 1.0]]]), torch.tensor([[[0.0, 5.0]], [[5.0, 0.0]]]))
    assert found.flatten().tolist() == [-2.0, 2.0]
    assert float(logit_difference(torch.tensor([[[3.0]]]), torch.tensor([[[5.0]]]))) == 0.0


class Says:
    """A model that gives these logits, whatever it is asked."""

    graph = GRAPH

    def __init__(self, logits) -> None:
        self._logits = logits

    def sources(self, tokens):
        return torch.zeros(len(GRAPH.sources), *tokens.shape, 1)

    def __call__(self, tokens, mask=None, ablated=None, positions=None):
        return self._logits[tokens[..., 0]][..., None, :]


def test_every_right_answer_is_one_and_every_prediction_counts_once():
    logits = torch.tensor([[0.0, 1.0, 5.0, 0.0], [5.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 4.0]])
    right = torch.tensor([[[1, 2]], [[1, 2]], [[3, -1]]])
    wrong = torch.tensor([[[0, 3]], [[0, -1]], [[-1, -1]]])
    tokens = torch.arange(3)[:, None]
    target = torch.tensor([[0.0, 0.0, 9.0, 0.0], [0.0, 0.0, 9.0, 0.0], [0.0, 0.0, 0.0, 9.0]])[:, None]
    data = Dataset(
        tokens, torch.ones(3, 1, dtype=torch.bool), target, torch.zeros(3).long(),
        positions=torch.zeros(3, 1).long(), counterparts=tokens, answers=Answers(right, wrong),
    )  # fmt: skip
    found = evaluate(Says(logits), data, "zero", edge_exists(GRAPH).float(), batch_size=2)
    assert found.accuracy == pytest.approx(2 / 3) and found.exact_match == pytest.approx(2 / 3)
    # Mean of right above mean of wrong; where no wrong ones are named, all others are.
    assert found.metric == pytest.approx((3.0 - 0.0 + 0.5 - 5.0 + 4.0 - 0.0) / 3)
    probable = Answers(right, wrong, "probability difference").preference(logits[:, None])
    p = logits.softmax(-1)
    expected = [p[0, 1] + p[0, 2] - p[0, 0] - p[0, 3], p[1, 1] + p[1, 2] - p[1, 0], 2 * p[2, 3] - 1]
    torch.testing.assert_close(probable[:, 0], torch.stack(expected))


def test_predictions_without_right_answers_and_of_nothing_but_right_ones_are_held_against_nothing():
    logits = torch.tensor([[[1.0, 3.0, 5.0]]] * 3)
    right = torch.tensor([[[-1, -1, -1]], [[0, 1, 2]], [[2, -1, -1]]])
    wrong = torch.tensor([[[1, -1]], [[-1, -1]], [[0, 1]]])
    assert Answers(right, wrong).preference(logits).flatten().tolist() == [-3.0, 3.0, 3.0]


def test_where_no_answer_is_wrong_all_others_are_by_their_mean():
    logits = torch.tensor([[[1.0, 3.0, 5.0, 2.0], [1.0, 3.0, 5.0, 2.0], [1.0, 3.0, 5.0, 2.0]]])
    right, wrong = torch.tensor([[[2, -1, -1], [0, 3, -1], [0, 1, 2]]]), torch.full((1, 3, 1), -1)
    assert Answers(right, wrong).preference(logits).flatten().tolist() == [3.0, -2.5, 1.0]


@pytest.mark.parametrize("metric", ["logit difference", "probability difference"])
def test_some_rows_of_answers_and_a_copy_are_measured_alike(metric):
    logits = torch.tensor([[[0.0, 1.0, 3.0]], [[2.0, 1.0, 0.0]]])
    answers = Answers(torch.tensor([[[0]], [[2]]]), torch.tensor([[[1]], [[0]]]), metric)
    whole = answers.preference(logits)
    assert torch.equal(answers.copy().preference(logits), whole)
    assert torch.equal(answers[torch.tensor([1])].preference(logits[1:]), whole[1:])
    assert whole.abs().max() < 1 if metric == "probability difference" else whole.flatten().tolist() == [-1.0, -2.0]


# Measures


def test_minimality_counts_an_edge_whose_absence_does_good_by_how_much(compiled, truth, monkeypatch):
    program, true = compiled("hist"), truth("hist", "zero").circuit
    behaviour = Behaviour(program.model, program.dataset, "zero")
    values = iter([torch.tensor([0.5, *[0.9] * (len(true) - 1), 0.3])])
    monkeypatch.setattr(behaviour, "faithfulness", lambda masks: next(values))
    assert behaviour.minimality(true) == pytest.approx(0.2)


def test_edges_are_ranked_by_their_scores_and_a_negative_one_comes_last():
    exists = edge_exists(GRAPH)
    scores = torch.zeros(exists.shape)
    scores[exists] = torch.tensor([-9.0, 3.0, -1.0, 2.0, 1.0, 0.0, -2.0, 4.0])[: int(exists.sum())]
    count = int(exists.sum())
    for kept in range(count + 1):
        (mask,) = highest(GRAPH, scores, [(kept + 0.5) / count if kept < count else 1.0])
        assert sorted(scores[mask > 0].tolist()) == sorted(scores[exists].tolist())[count - kept :]


def test_areas_are_those_between_points_as_far_apart_as_the_shares_are(compiled, monkeypatch):
    program = compiled("hist")
    behaviour = Behaviour(program.model, program.dataset, "zero")
    monkeypatch.setattr(behaviour, "faithfulness", lambda masks: torch.tensor([0.0, 1.0, 1.0]))
    assert behaviour.areas(edge_exists(program.model.graph).float(), (0.0, 0.2, 1.0)) == pytest.approx((0.9, 0.1))


# Compiled models


def test_outputs_are_named_in_the_order_of_their_columns():
    """Of 2 and 10, that is not the order of their texts."""

    def build():
        return rasp.Map(lambda token: 10 if token == "a" else 2, rasp.tokens).named("numbers")

    compiled = compile_program(Program("numbers", "", build, ("a", "b"), 2))
    best = compiled.dataset.target.argmax(-1)
    for row, wanted in enumerate(compiled.expected):
        assert [compiled.output_values[column] for column in best[row, 1 : len(wanted) + 1].tolist()] == [*wanted]
    assert verify(compiled).equal


def test_a_model_in_double_precision_is_one_throughout(compiled):
    program = compiled("xproportion")
    double = program.model.in_double
    assert double(program.dataset.tokens[:3]).dtype == double.sources(program.dataset.tokens[:3]).dtype == torch.float64
    thirds = double(program.dataset.tokens) - program.model(program.dataset.tokens)
    assert 0 < float(thirds.abs().max()) < 1e-4


def test_what_has_no_effect_further_on_is_neither_read_nor_written():
    """A query that no key meets, a key that no query does, a value that is not moved on, a unit that writes nothing."""
    both, lone = np.float32([[1, 1, 0], [0, 1, 1]]), np.float32([[1, 0, 1], [0, 1, 1]])
    head = HeadWeights(
        query=np.float32([[1, 1, 0], [1, 1, 0]]),
        key=np.float32([[0, 1, 1], [0, 1, 1]]),
        value=both[:, [0, 2, 2]] * np.float32([1, 1, 0]),
        output=lone.T * np.float32([[0], [1], [1]]),
    )
    layer = LayerWeights((head,), hidden=both * np.float32([1, 0, 1]), output=lone.T * np.float32([[1], [1], [0]]))
    query, key, value, hidden = layer.read
    assert (query.tolist(), key.tolist()) == ([[1], [1]], [[1], [1]])
    assert value.tolist() == [[0, 0], [1, 0]] and hidden.tolist() == [[1, 0], [0, 0]]
    of_head, of_mlp = layer.written
    assert of_head.tolist() == [[0, 0], [0, 1]] and of_mlp.tolist() == [[1, 0], [0, 0]]
