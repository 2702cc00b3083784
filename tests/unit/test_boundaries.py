"""What is just below each tolerance, or at each budget, is let pass, and what is just above is not.

Numbers are written out: a constant that changed would take a test that reads it along.
"""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_judge import EDGE, GRAPH, Stub, dataset
from test_peers import build, random_weights

from edgeprune.data import Dataset
from edgeprune.errors import UnsupportedProgram
from edgeprune.files.store import SavedCircuit
from edgeprune.graph import Circuit, Edge, Graph
from edgeprune.masks import HardConcrete, LearnedMask, mask_of
from edgeprune.methods.circuit_loss import CircuitLoss
from edgeprune.methods.edge_pruning.ending import Converged, Ending, Verdict
from edgeprune.methods.edge_pruning.final_check import FinalCheck
from edgeprune.methods.edge_pruning.pressure import LossTolerance
from edgeprune.methods.edge_pruning.problem import Problem
from edgeprune.methods.loss import Objective
from edgeprune.methods.method import keep_above
from edgeprune.methods.polish import Goal, Polish, PolishConfig, Step
from edgeprune.metrics.distances import largest_difference
from edgeprune.runs.outcome import outcome, sparsity_reached
from tracr_bridge.certify import truth as truth_module
from tracr_bridge.certify.certificate_folder import save_certificate
from tracr_bridge.certify.check_certificate import main as check
from tracr_bridge.certify.faithfulness import Judge
from tracr_bridge.certify.subsets import LossJudge, true_circuits
from tracr_bridge.certify.truth import Certificate, Gap, derive_truth, gap_of, margin_of
from tracr_bridge.compile import program as program_module
from tracr_bridge.compile import verify as verifying
from tracr_bridge.compile.catalogue import catalogue
from tracr_bridge.compile.compile import compile_program
from tracr_bridge.compile.model import TracrModel
from tracr_bridge.compile.verify import verify
from tracr_bridge.compile.weights import HeadWeights, LayerWeights, Weights
from tracr_bridge.recovery.known_models import certify


def writes(*amounts: float) -> tuple[TracrModel, Dataset]:
    """An MLP a layer that writes so much on token 1 and nothing on token 2, and the output 1 or 0 beside it."""
    width = 2 + len(amounts)
    column = np.eye(width, dtype=np.float32)
    none = HeadWeights(*[np.zeros((width, 1), np.float32)] * 3, np.zeros((1, width), np.float32))
    layers = tuple(
        LayerWeights((none,), column[:, :1], amount * column[to : to + 1]) for to, amount in enumerate(amounts, 2)
    )
    token = np.zeros((4, width), np.float32)
    token[1, :2] = 1
    unembed = column[:, 1:].sum(1)[:, None]
    weights = Weights(token, np.zeros((2, width), np.float32), layers, unembed, causal=False, pad_id=3)
    model = TracrModel(weights, token_ids=[0, 1, 2])
    tokens, scored = torch.tensor([[0, 1], [0, 2]]), torch.tensor([[False, True]] * 2)
    return model, Dataset(tokens, scored, model(tokens), torch.zeros(2, dtype=torch.long), logits=False)


def truth_of(*amounts: float):
    model, data = writes(*amounts)
    return derive_truth(model, data, model.structural, list(model.read), "zero")


# Tolerances


@pytest.mark.parametrize(("amount", "needed"), [(0.0099, False), (0.0101, True), (-0.0099, False), (-0.0101, True)])
def test_an_edge_is_true_where_it_does_more_than_a_hundredth_either_way(amount, needed):
    found = truth_of(amount)
    assert (Edge.parse("m0->logits") in found.circuit.edges) == needed
    assert found.certificate.atol == 0.01
    assert found.certificate.margin == pytest.approx(0.0001, rel=0.05)


@pytest.mark.parametrize(("amount", "wrong"), [(0.0099, 0), (0.0101, 1)])
def test_the_final_check_takes_a_circuit_for_wrong_where_outputs_are_a_hundredth_off(amount, wrong):
    model, data = writes(amount)
    problem = Problem.of(model, data, "zero", "worst")
    check = FinalCheck(problem, torch.Generator().manual_seed(0), 100)
    without = mask_of(model.graph, [Edge.parse("tok->logits")])
    every = mask_of(model.graph, model.structural)
    none = torch.zeros(2, 0, dtype=torch.long)
    assert check.counterexamples(without, check.pairs(none)).shape[1] == wrong
    assert (Edge.parse("m0->logits") in check.without_superfluous(every, none)) == bool(wrong)
    listed = sorted(model.structural)
    alone = torch.tensor([[edge == Edge.parse("m0->logits") for edge in listed]])
    assert check._right_on_few(listed, alone, none) == ([] if wrong else [0])


@pytest.mark.parametrize(("rest", "refused"), [(0.0024, False), (0.0026, True), (-0.0026, True)])
def test_all_structural_edges_together_may_be_a_quarter_of_the_tolerance_off(rest, refused):
    class Rests(Stub):
        def __call__(self, tokens, mask=None, ablated=None, positions=None):
            return super().__call__(tokens, mask, ablated, positions) + (0 if mask is None else rest)

    judge = Judge(Rests(torch.full((3, 3), 1.0)), dataset(3), "zero", atol=0.01)
    if refused:
        with pytest.raises(UnsupportedProgram, match="Expected structural edges alone to give the outputs of it"):
            truth_module._check_ends(judge, [EDGE], "it")
    else:
        truth_module._check_ends(judge, [EDGE], "it")


def test_a_difference_counts_by_its_size_and_what_is_no_number_is_as_far_as_can_be():
    outputs = torch.tensor([[[0.0, -0.3], [0.1, 0.0]], [[torch.nan, 0.0], [0.0, 0.0]], [[torch.inf, 0.0], [0.0, 0.0]]])
    scored = torch.ones(3, 2, dtype=torch.bool)
    found = largest_difference(outputs, torch.zeros(3, 2, 2), scored)
    assert found.tolist()[0] == pytest.approx(0.3) and min(found.tolist()[1:]) > 1e30


@pytest.mark.parametrize(("off", "same"), [(0.0099, True), (0.0101, False), (-0.0099, True), (-0.0101, False)])
def test_a_decoded_number_may_be_a_hundredth_off_what_rasp_gives(compiled, off, same):
    program = compiled("xproportion")
    decoded = [0.0, *(float(value) + off for value in program.expected[-1])]
    row = len(program.expected) - 1
    assert (verifying._mismatches(program, row, decoded, "it", 0.0) == []) == same


@pytest.fixture(scope="module")
def shortest():
    return compile_program(replace(catalogue()["xproportion"], max_seq_len=2))


@pytest.mark.parametrize(("off", "equal"), [(0.45e-4, True), (0.55e-4, False)])
def test_layers_may_differ_by_a_ten_thousandth(shortest, off, equal):
    """Embeddings are off, and what reads them off by twice as much."""
    model = copy.copy(shortest.model)
    model._token = torch.where(model._token > 0.5, model._token + off, model._token)
    target = model(shortest.dataset.tokens)
    found = verify(replace(shortest, model=model, dataset=replace(shortest.dataset, target=target)))
    assert found.max_abs_diff == pytest.approx(2 * off, rel=0.01)
    assert found.equal == equal


@pytest.mark.parametrize("row", [0, 1])
def test_an_output_is_held_against_rasps_in_every_batch_and_of_both_models(compiled, monkeypatch, row):
    """Columns of a categorical program that change places: nothing before the output differs."""
    program, who = compiled("hist"), ("Tracr", "PyTorch")[row]
    monkeypatch.setattr(verifying, "_BATCH", len(program.domain.inputs) - 1)
    real = verifying._mismatches

    def of_last(compiled, number, decoded, name, rounding):
        wrong = number == len(compiled.domain.inputs) - 1 and name == who
        return real(compiled, number, ["?"] * len(decoded) if wrong else decoded, name, rounding)

    monkeypatch.setattr(verifying, "_mismatches", of_last)
    found = verify(program)
    assert not found.equal and f"{who} '?'" in found.mismatches[0]


def test_a_layer_that_differs_in_one_batch_of_several_is_noticed(shortest, monkeypatch):
    monkeypatch.setattr(verifying, "_BATCH", 1)
    sources = TracrModel.sources
    first = shortest.dataset.tokens[:1]

    def spoiled(model, tokens):
        return sources(model, tokens) + (0.01 if torch.equal(tokens, first) else 0)

    monkeypatch.setattr(TracrModel, "sources", spoiled)
    found = verify(shortest)
    assert not found.equal and found.max_abs_diff > 1e-3


class Losses(CircuitLoss):
    """Losses of the two masks of one edge."""

    graph, inputs, masks_run = GRAPH, 1, 0

    def __init__(self, gone: float, kept: float) -> None:
        self.gone, self.kept = torch.tensor(gone), torch.tensor(kept)

    def __call__(self, masks, *, limit=float("inf")):
        found = torch.where(masks.flatten(1).sum(1) > 0, self.kept, self.gone)
        return torch.where(found <= limit, found, torch.inf)


@pytest.mark.parametrize(("gone", "faithful"), [(0.02, True), (0.0201, False)])
def test_a_loss_at_the_tolerance_is_faithful_and_one_above_is_not(gone, faithful):
    losses = Losses(gone, 0.0)
    judge = LossJudge(losses, 0.02)
    assert judge.reproduces(mask_of(GRAPH, [])[None]).tolist() == [faithful]
    found = true_circuits(losses, [EDGE], float(torch.tensor(0.02)))
    assert found.circuits == [frozenset() if faithful else frozenset([EDGE])]
    assert found.margin == pytest.approx(0.0 if faithful else 0.0001, abs=1e-8)


@pytest.mark.parametrize(("sparsity", "reached"), [(0.881, True), (0.879, False), (0.919, True), (0.921, False)])
def test_a_sparsity_within_two_hundredths_is_reached(sparsity, reached):
    assert sparsity_reached(0.9, sparsity, 1000.0) == reached
    assert sparsity_reached(0.9, 0.81, 10.0)  # one edge of ten


@pytest.mark.parametrize(("loss", "reached"), [(0.0099, True), (0.01, True), (0.0101, False)])
def test_a_loss_above_what_was_asked_for_is_said_to_be_missed(loss, reached):
    saved = SavedCircuit(Circuit(GRAPH, "zero", frozenset([EDGE])))
    found = outcome(saved, LossTolerance(tolerance=0.01), judged=(loss, 5), polished=False)
    assert (found.reached, bool(found.missed), found.loss, found.examples) == (reached, not reached, loss, 5)


@pytest.mark.parametrize(("score", "kept"), [(0.5, False), (0.5001, True), (0.4999, False)])
def test_an_edge_is_kept_that_scores_above_the_threshold(score, kept):
    assert (EDGE in keep_above(GRAPH, "zero", torch.tensor([[score]]), 0.5).circuit.edges) == kept


@pytest.mark.parametrize(("loss", "edges"), [(0.1, 0), (0.105, 1)])
def test_polishing_makes_a_removal_at_the_tolerance_and_none_above(loss, edges):
    losses = Losses(loss, 0.0)
    run = Polish(losses, Goal(tolerance=float(torch.tensor(0.1))), torch.tensor([[True]]), PolishConfig())
    run.step = Step.CERTIFY
    run.advance()
    assert run.edges == edges


@pytest.mark.parametrize("over", ["mean", "worst"])
def test_a_circuit_is_run_to_the_end_as_long_as_it_may_be_within_the_limit(over):
    model, data = build(random_weights(3))
    loss = CircuitLoss(model, data, "zero", loss="squared", over=over, inputs=9, batch_size=1, seed=0)
    shape = (20, len(model.graph.sources), len(model.graph.destinations))
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(0)).round()
    for mask, whole in zip(masks, loss(masks).tolist(), strict=True):
        assert float(loss(mask[None], limit=whole * (1 + 1e-5))[0]) == pytest.approx(whole, rel=1e-5)
        assert whole == 0 or float(loss(mask[None], limit=whole * 0.999)[0]) == float("inf")


def test_the_gradient_of_a_circuit_is_that_of_the_mean_over_batches_of_different_sizes():
    model, data = build(random_weights(3))
    model, data = model.in_double, replace(data, target=data.target.double())
    loss = CircuitLoss(model, data, "resample", loss="squared", inputs=5, batch_size=2, seed=0)
    mask = torch.full((len(model.graph.sources), len(model.graph.destinations)), 0.7, dtype=torch.float64)
    gradient = loss.gradient(mask)
    for row, column in ((0, 0), (2, 7), (3, 13)):
        moved = mask.repeat(2, 1, 1)
        moved[:, row, column] += torch.tensor([1e-5, -1e-5])
        up, down = loss(moved).tolist()
        assert float(gradient[row, column]) == pytest.approx((up - down) / 2e-5, abs=1e-6)


def test_a_divergence_scales_the_logits_of_both():
    target, outputs = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[0.5, 0.0]]])
    data = Dataset(torch.zeros(1, 1).long(), torch.ones(1, 1, dtype=torch.bool), target, torch.zeros(1).long())
    batch = data.take(torch.tensor([0]), torch.tensor([0]))
    p, q = (3 * target).softmax(-1), (3 * outputs).softmax(-1)
    found = Objective(data, "divergence", logit_scale=3.0)
    assert float(found(outputs, batch)) == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-6)
    assert float(found(target, batch)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("steps", "verdict"), [(20, Verdict.START_OVER), (13, Verdict.START_OVER), (12, Verdict.DOUBT)]
)
def test_a_wrong_circuit_starts_over_in_the_first_half_of_the_steps_alone(steps, verdict):
    """It has converged after the step of number 6."""
    masks = LearnedMask(GRAPH, HardConcrete(), initial=2.0)
    config = Converged(patience=6, certain_for=100)
    ending = Ending(config, steps, masks, uncertain_until=0, may_start_over=True)
    found = [ending.after(step, rounded=True, wrong=True) for step in range(7)]
    assert found == [Verdict.GO_ON] * 6 + [verdict]


def test_doubt_lowers_what_is_high_and_leaves_the_rest():
    masks = LearnedMask(Graph.transformer(embeddings=("embed",), layers=1, heads=1), HardConcrete(), initial=0.0)
    masks.log_alpha.data[:3] = torch.tensor([-5.0, 1.0, 9.0])
    masks.lower_to(2.0)
    assert masks.log_alpha[:3].tolist() == [-5.0, 1.0, 2.0]


# Domains


@pytest.mark.parametrize(("over", "whole"), [(0, True), (1, False)])
def test_a_domain_at_its_budget_is_whole_and_one_above_is_a_sample_that_every_certificate_says_it_is(
    tmp_path, over, whole
):
    program = replace(catalogue()["xproportion"], max_seq_len=3)
    inputs = len(program.domain(budget=10**6, seed=0).inputs)
    compiled = compile_program(program, budget=inputs - over)
    assert compiled.domain.exhaustive == whole and len(compiled.domain.inputs) == inputs - max(0, over)
    for ablation in ("zero", "resample"):
        found = certify(compiled, ablation)
        assert found.certificate.exhaustive == whole and found.judge.exhaustive
        assert found.certificate.inputs == len(compiled.domain.inputs)
    save_certificate(certify(compiled, "zero"), compiled, tmp_path / "saved")
    said = json.loads((tmp_path / "saved" / "certificate.json").read_text())["domain"]
    assert (said["exhaustive"], said["inputs"]) == (whole, len(compiled.domain.inputs))
    assert check([str(tmp_path / "saved"), "--json"]) == 0


def test_a_sample_of_pairs_of_a_whole_domain_is_no_whole_one_either(compiled, monkeypatch, tmp_path):
    program = compiled("xproportion")
    pairs = int((torch.bincount(program.dataset.group) ** 2).sum())
    for budget, whole in ((pairs, True), (pairs - 1, False)):
        monkeypatch.setattr("tracr_bridge.certify.faithfulness.PAIR_BUDGET", budget)
        found = certify(program, "resample")
        assert (found.certificate.exhaustive, found.certificate.pairs) == (whole, budget)
        save_certificate(found, program, tmp_path / str(budget))
        said = json.loads((tmp_path / str(budget) / "certificate.json").read_text())["domain"]
        assert (said["all_pairs"], said["exhaustive"], said["pairs"]) == (whole, True, budget)


@pytest.mark.parametrize(("searched", "whole"), [(14, True), (13, False)])
def test_what_is_too_much_to_list_is_drawn_and_said_to_be_a_sample(monkeypatch, searched, whole):
    """Two tokens and one to three of them: fourteen sequences."""
    monkeypatch.setattr(program_module, "_SEARCHED", searched)
    program = replace(catalogue()["hist"], vocab=("a", "b"), max_seq_len=3)
    assert program.domain(budget=1000, seed=0).exhaustive == whole


# What a certificate says of its circuits


def test_a_gap_is_that_of_the_edge_that_does_least_and_of_the_smallest_circuit(truth):
    found = truth("shuffle_dyck1", "zero")
    smallest, other = found.certificate.circuits
    assert found.certificate.gap == gap_of(found.judge, smallest) != gap_of(found.judge, other)
    masks = torch.stack([mask_of(smallest.graph, smallest.edges - {edge}) for edge in smallest.edges])
    effects = found.judge.differences(masks).tolist()
    assert found.certificate.gap.kept == pytest.approx(min(effects))


def test_a_gap_and_a_margin_of_effects_that_differ():
    found = truth_of(0.5, 0.012)
    assert found.certificate.gap.kept == pytest.approx(0.012, rel=1e-4)
    assert found.certificate.gap.dropped == pytest.approx(0, abs=1e-6)
    assert found.certificate.margin == pytest.approx(0.002, rel=1e-3)
    judge = Judge.__new__(Judge)
    judge.margin, judge.atol = 0.009, 0.01
    for gap, margin in ((Gap(0.013, 0.0), 0.003), (Gap(1.0, 0.0095), 0.0005), (Gap(1.0, 0.0), 0.009)):
        assert margin_of(judge, gap) == pytest.approx(margin)


def test_ends_that_hold_another_end_inside_are_not_listed(monkeypatch):
    model, data = writes(0.5)
    edges = sorted(model.structural)
    monkeypatch.setattr(truth_module, "minimal_circuits", lambda judge, edges: None)
    ends = [frozenset(edges), frozenset(edges[:-1]), frozenset(edges[1:])]
    monkeypatch.setattr(truth_module, "eliminate", lambda judge, edges, *, seed: ends)
    found: Certificate = derive_truth(model, data, model.structural, list(model.read), "zero").certificate
    assert {circuit.edges for circuit in found.circuits} == set(ends[1:])
    assert found.status == "locally-minimal"
