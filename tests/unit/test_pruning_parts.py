"""The parts of Edge Pruning, each against plain formulas: gradients, pressures, the optimiser, memories, endings."""

import math
from dataclasses import replace

import pytest
import torch
from linear import EXISTS, GRAPH, WEIGHTS, Linear, data

from edgeprune.errors import ConfigError
from edgeprune.masks import HardConcrete, LearnedMask, SampledMasks
from edgeprune.methods.edge_pruning.counterexamples import CounterexampleConfig
from edgeprune.methods.edge_pruning.ending import Converged
from edgeprune.methods.edge_pruning.gradient import LikelihoodRatio, ThroughZ, losses_per_input
from edgeprune.methods.edge_pruning.optimizer import AdamConfig
from edgeprune.methods.edge_pruning.pressure import LossTolerance, Penalty, SparsityTarget
from edgeprune.methods.edge_pruning.problem import Problem

MODEL = Linear(WEIGHTS)
EDGES = 8
LOG_ALPHA = [2.0, -1.0, 0.5, 0.0, 3.0, -0.3, 1.0, -2.0, 0.7, -0.2, 1.5]
"""Of eight edges and three sources."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def masks_at(log_alpha, of="edges"):
    masks = LearnedMask(GRAPH, HardConcrete(), initial=0.0, of=of)
    masks.log_alpha.data.copy_(torch.tensor(log_alpha[: len(masks.log_alpha)]))
    return masks


def off(mask, own, other=0.0):
    """What a mask leaves out of the output of a token, another one in its place."""
    return ((mask - EXISTS.float()) * MODEL.weights).sum((-2, -1)).double() * (own - other)


# Problems


def test_a_problem_has_the_objective_and_the_ablation_that_were_asked_for():
    dataset = replace(data(MODEL), logits=True)
    asked = Problem.of(MODEL, dataset, "resample", "divergence", logit_scale=3.0, over="worst", parts=2)
    assert (asked.model, asked.dataset, asked.parts, asked.graph) == (MODEL, dataset, 2, GRAPH)
    assert (asked.ablator.ablation, asked.objective.over, asked.objective._logit_scale) == ("resample", "worst", 3.0)
    plain = Problem.of(MODEL, dataset, "zero", "divergence")
    assert (plain.parts, plain.objective.over, plain.objective._logit_scale) == (1, "mean", 1.0)
    assert (plain.objective._loss, plain.objective._dataset) == ("divergence", dataset)


def test_batches_are_pairs_in_so_many_parts():
    problem = Problem.of(MODEL, data(MODEL), "resample", "squared", parts=2)
    batches = problem.batches(torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]))
    assert [batch.clean.flatten().tolist() for batch in batches] == [[1, 2, 4], [5, 7]]
    assert [batch.corrupted.flatten().tolist() for batch in batches] == [[7, 5, 4], [2, 1]]


@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_losses_of_masks_are_by_hand(ablation):
    dataset = data(MODEL)
    problem = Problem.of(MODEL, dataset, ablation, "squared")
    mask = torch.rand(3, *EXISTS.shape, generator=seeded()) * EXISTS
    (batch,) = problem.batches(torch.tensor([[0, 2], [1, 4]]))
    own, other = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 7.0]) if ablation == "resample" else 0.0
    expected = off(mask, 1.0)[:, None] ** 2 * (own - other) ** 2 / dataset.target.double().var(correction=0)
    torch.testing.assert_close(problem.losses(mask, batch).double(), expected)


def test_outputs_are_asked_for_at_a_batchs_positions_and_means_are_those_of_the_inputs():
    seen = []

    class Spy(Linear):
        def __call__(self, tokens, mask=None, ablated=None, positions=None):
            seen.append((positions, ablated))
            return super().__call__(tokens, mask, ablated)

    dataset = data(MODEL, positions=torch.zeros(5, 1, dtype=torch.long))
    problem = Problem.of(Spy(WEIGHTS), dataset, "mean", "squared")
    (batch,) = problem.batches(torch.tensor([[0, 2], [1, 4]]))
    problem.losses(EXISTS.float(), batch)
    ((positions, ablated),) = seen
    assert torch.equal(positions, batch.positions)
    assert ablated.flatten().tolist() == pytest.approx([(1 + 2 + 4 + 5 + 7) / 5] * ablated.numel())


# Gradients


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_gradient_through_z_is_that_of_the_mean_over_samples_and_inputs(parts):
    dataset, masks = data(MODEL), masks_at(LOG_ALPHA, "edges and nodes")
    problem = Problem.of(MODEL, dataset, "resample", "squared", parts=parts)
    pairs = torch.tensor([[0, 1, 2, 3, 4], [3, 3, 0, 1, 1]])
    found = ThroughZ(mask_samples=3).estimate(problem, masks, pairs, seeded(1))
    log_alpha = torch.tensor(LOG_ALPHA[: len(masks.log_alpha)], dtype=torch.float64, requires_grad=True)
    u = torch.rand(3, len(log_alpha), generator=seeded(1)).double()
    z = (1.2 * torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / (2 / 3)) - 0.1).clamp(0, 1)
    source = EXISTS.nonzero()[:, 0]
    carried = (z[:, :EDGES] * z[:, EDGES:][:, source] - 1) @ torch.tensor(WEIGHTS, dtype=torch.float64)
    tokens = torch.tensor([1, 2, 4, 5, 7]).double()
    apart = tokens - tokens[pairs[1]]
    losses = (carried[:, None] * apart) ** 2 / dataset.target.double().var(correction=0)
    (gradient,) = torch.autograd.grad(losses.mean(), log_alpha)
    assert found.loss == pytest.approx(losses.mean().item(), rel=1e-5)
    torch.testing.assert_close(found.gradient.double(), gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.per_input.double(), losses.detach(), rtol=1e-4, atol=1e-6)
    assert not found.per_input.requires_grad and found.draw.mask.requires_grad
    torch.testing.assert_close(found.draw.values.detach().double(), z.detach(), rtol=1e-4, atol=1e-5)
    (again,) = torch.autograd.grad(found.draw.values.sum(), masks.log_alpha)  # the graph is there for the pressure
    assert again.abs().sum() > 0


def test_samples_through_z_draw_a_share_of_the_entries():
    problem = Problem.of(MODEL, data(MODEL), "zero", "squared")
    found = ThroughZ(mask_samples=4, explored=0.5).estimate(
        problem, masks_at(LOG_ALPHA), torch.tensor([[0], [1]]), seeded()
    )
    assert found.draw.entries.shape == (4, 4) and not found.draw.rounded and not ThroughZ().rounded


@pytest.mark.parametrize(("explored", "drawn"), [(0.5, 4), (1.0, 8)])
def test_a_likelihood_ratio_weighs_scores_by_how_much_worse_samples_fare_than_the_circuit(explored, drawn):
    dataset, masks = data(MODEL), masks_at(LOG_ALPHA)
    problem = Problem.of(MODEL, dataset, "zero", "squared", parts=2)
    pairs = torch.tensor([[0, 1, 4], [3, 3, 1]])
    found = LikelihoodRatio(mask_samples=6, explored=explored).estimate(problem, masks, pairs, seeded(1))
    assert found.draw.entries.shape == (6, drawn) and found.draw.rounded
    assert set(found.draw.mask.unique().tolist()) == {0.0, 1.0}
    unit, tokens = dataset.target.double().var(correction=0), torch.tensor([1.0, 2.0, 7.0]).double()
    every = torch.cat([masks.rounded()[None], found.draw.mask])
    losses = off(every, 1.0)[:, None] ** 2 * tokens**2 / unit
    torch.testing.assert_close(found.per_input.double(), losses, rtol=1e-5, atol=1e-6)
    assert found.loss == pytest.approx(float(losses[1:].mean()), rel=1e-5)
    gradient, times = torch.zeros(EDGES).double(), torch.zeros(EDGES)
    kept = masks.hard_concrete.probability_kept(masks.log_alpha.detach()).double()
    for entries, sample, change in zip(found.draw.entries, found.draw.values, losses[1:] - losses[0], strict=True):
        gradient[entries] += change.mean() * (sample.double() - kept)[entries]
        times[entries] += 1
    torch.testing.assert_close(found.gradient.double(), gradient / times, rtol=1e-4, atol=1e-6)
    plain = LikelihoodRatio(mask_samples=6, explored=1.0, rounded=False)
    assert not plain.estimate(problem, masks, pairs, seeded(1)).draw.rounded


def test_samples_that_are_the_circuit_are_not_run_and_lose_what_it_loses():
    dataset, seen = data(MODEL), []

    class Spy(Linear):
        def __call__(self, tokens, mask=None, ablated=None, positions=None):
            seen.append(mask)
            return super().__call__(tokens, mask, ablated, positions)

    problem = Problem.of(Spy(WEIGHTS), dataset, "zero", "squared")
    standing = masks_at(LOG_ALPHA).rounded()
    sampled = torch.stack([standing, torch.zeros_like(standing), standing, EXISTS.float()])
    (batch,) = problem.batches(torch.tensor([[0, 4], [0, 0]]))
    losses = losses_per_input(problem, batch, sampled, standing)
    assert len(seen) == 1 and torch.equal(seen[0], torch.stack([standing, sampled[1], sampled[3]]))
    torch.testing.assert_close(losses, problem.losses(torch.cat([standing[None], sampled]), batch))


@pytest.mark.parametrize("kind", [ThroughZ, LikelihoodRatio])
def test_samples_and_the_share_that_they_draw_are_bounded(kind):
    least = 1 if kind is ThroughZ else 2
    kind(mask_samples=least, explored=1.0)
    kind(mask_samples=least, explored=1e-9)
    for samples, explored, said in (
        (least - 1, 1.0, f"Expected mask_samples >= {least}, got {least - 1}"),
        (least, 0.0, "Expected 0 < explored <= 1, got 0.0"),
        (least, 1.001, "Expected 0 < explored <= 1, got 1.001"),
        (0, 2.0, f"Expected mask_samples >= {least}, got 0; 0 < explored <= 1, got 2.0"),
    ):
        with pytest.raises(ConfigError) as error:
            kind(mask_samples=samples, explored=explored)
        assert str(error.value) == said


# Pressures


def draw_of(masks, values, *, rounded=False):
    """Samples of given values that depend on log_alpha by 1 each."""
    values = torch.tensor(values) + masks.log_alpha - masks.log_alpha.detach()
    return SampledMasks(
        masks._assemble(values), torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1), values, rounded
    )


@pytest.mark.fakes
def test_a_target_presses_by_both_multipliers_on_the_sparsity_of_edges_masks():
    """The target is 0.6 * 3 / (0.5 * 12) = 0.3, edges' masks sum to 6 and 4 of 8, and nodes' do not count."""
    masks = masks_at(LOG_ALPHA, "edges and nodes")
    nodes = len(masks.log_alpha) - EDGES
    pressure = SparsityTarget(target_sparsity=0.6, sparsity_warmup=0.5, multiplier_learning_rate=0.3).start(12)
    assert (pressure.multipliers.tolist(), pressure.expected_edges, pressure.full_from) == ([0.0, 0.0], 0.0, 0)
    assert pressure.multiplier_learning_rate == 0.3
    pressure.multipliers.copy_(torch.tensor([2.0, 5.0]))
    draw = draw_of(masks, [[0.75] * 8 + [0.2] * nodes, [0.5] * 8 + [0.9] * nodes])
    by_masks, by_multipliers = pressure.gradients(masks, draw, 3, 1e9)
    short = 0.3 - 0.375
    assert by_multipliers.tolist() == pytest.approx([short, short**2])
    assert by_masks.tolist() == pytest.approx([(2 + 2 * 5 * short) / 8] * 8 + [0.0] * nodes)
    assert pressure.expected_edges == 5 and pressure.multipliers.tolist() == [2.0, 5.0]
    assert pressure.figures(3) == pytest.approx({"target": 0.3, "lambda_1": 2.0, "lambda_2": 5.0})
    assert [pressure.figures(step)["target"] for step in (0, 6, 7, 11)] == pytest.approx([0.0, 0.6, 0.6, 0.6])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


MIDDLE, ZERO = 0.0, 2 / 3 * math.log(0.1 / 1.1)
"""What is taken from log_alpha for P(z > 1/2), and for P(z > 0)."""


@pytest.mark.parametrize(("rounded", "shift"), [(True, MIDDLE), (False, ZERO)])
@pytest.mark.parametrize(("warmup", "strength"), [(0, 0.5), (4, 0.375), (3, 0.5), (2, 0.5)])
def test_a_penalty_is_that_of_each_expected_edge(rounded, shift, warmup, strength):
    masks = masks_at(LOG_ALPHA, "edges and nodes")
    pressure = Penalty(penalty=0.5, penalty_warmup=warmup).start(99)
    assert (pressure.full_from, pressure.expected_edges, pressure.multiplier_learning_rate) == (warmup, 0.0, 0.0)
    by_masks, by_multipliers = pressure.gradients(
        masks, draw_of(masks, [[0.5] * len(masks.log_alpha)], rounded=rounded), 3, 1.0
    )
    log_alpha = masks.log_alpha.detach().double().requires_grad_()
    kept = torch.sigmoid(log_alpha - shift)
    edges = (kept[:EDGES] * kept[EDGES:][EXISTS.nonzero()[:, 0]]).sum()
    torch.testing.assert_close(by_masks.double(), strength * torch.autograd.grad(edges, log_alpha)[0])
    assert by_multipliers.shape == pressure.multipliers.shape == (0,)
    assert pressure.expected_edges == pytest.approx(edges.item(), rel=1e-6)
    assert pressure.figures(3) == {"penalty": strength}
    assert pressure.figures(0) == {"penalty": 0.0 if warmup else 0.5}


@pytest.mark.parametrize(("rounded", "shift"), [(True, MIDDLE), (False, ZERO)])
def test_a_penalty_may_be_that_of_each_entry(rounded, shift):
    masks = masks_at(LOG_ALPHA, "edges and nodes")
    pressure = Penalty(penalty=0.5, counted="entries").start(99)
    draw = draw_of(masks, [[0.5] * len(masks.log_alpha)], rounded=rounded)
    by_masks, _ = pressure.gradients(masks, draw, 0, 1.0)
    kept = [sigmoid(x - shift) for x in LOG_ALPHA[: len(masks.log_alpha)]]
    assert by_masks.tolist() == pytest.approx([0.5 * p * (1 - p) for p in kept], rel=1e-5)
    assert pressure.expected_edges == pytest.approx(float(masks.expected_edges(rounded=rounded).detach()))


@pytest.mark.parametrize(
    ("loss", "log_price", "by_price", "lowered"),
    [
        (0.02, 0.0, 0.0, 1.0),
        (0.01, 0.5, math.log(2), 1.0),
        (0.04, 0.5, -math.log(2), 0.5),
        (0.2, 0.5, -1.0, 0.1),
        (0.0, 0.5, 1.0, 1.0),
        (math.inf, 0.5, -1.0, 0.02 / 1e12),
        (0.01, 30.0, 0.0, 1.0),
        (0.01, 29.9, math.log(2), 1.0),
        (0.04, 30.0, -math.log(2), 0.5),
        (0.04, -30.0, 0.0, 0.5),
        (0.04, -29.9, -math.log(2), 0.5),
        (0.01, -30.0, math.log(2), 1.0),
        (0.01, 31.0, 0.0, 1.0),
    ],
)
@pytest.mark.parametrize(("rounded", "shift"), [(True, MIDDLE), (False, ZERO)])
def test_a_price_grows_within_the_tolerance_and_falls_outside(loss, log_price, by_price, lowered, rounded, shift):
    masks = masks_at(LOG_ALPHA)
    pressure = LossTolerance(tolerance=0.02, price_learning_rate=0.07).start(99)
    assert (pressure.multipliers.tolist(), pressure.full_from, pressure.expected_edges) == ([0.0], 0, 0.0)
    assert pressure.multiplier_learning_rate == 0.07
    pressure.multipliers.fill_(log_price)
    by_masks, by_multipliers = pressure.gradients(masks, draw_of(masks, [[0.5] * 8], rounded=rounded), 3, loss)
    assert by_multipliers.tolist() == pytest.approx([by_price], rel=1e-4, abs=1e-6)
    kept = [sigmoid(x - shift) for x in LOG_ALPHA[:EDGES]]
    price = 0.02 / 8 * math.exp(min(30.0, log_price)) * lowered
    assert by_masks.tolist() == pytest.approx([price * p * (1 - p) for p in kept], rel=1e-4)
    assert pressure.expected_edges == pytest.approx(sum(kept), rel=1e-5)
    assert pressure.figures(3) == pytest.approx({"tolerance": 0.02, "log_price": log_price})


@pytest.mark.parametrize(
    ("kind", "right", "wrong", "said"),
    [
        (SparsityTarget, {"target_sparsity": 1.0}, {"target_sparsity": 1.01}, "0 < target_sparsity <= 1, got 1.01"),
        (SparsityTarget, {"target_sparsity": 1e-9}, {"target_sparsity": 0.0}, "0 < target_sparsity <= 1, got 0.0"),
        (
            SparsityTarget,
            {"target_sparsity": 0.5, "sparsity_warmup": 1.0},
            {"target_sparsity": 0.5, "sparsity_warmup": 0.0},
            "0 < sparsity_warmup <= 1, got 0.0",
        ),
        (
            SparsityTarget,
            {"target_sparsity": 0.5, "multiplier_learning_rate": 1e-9},
            {"target_sparsity": 0.5, "multiplier_learning_rate": 0.0},
            "0 < multiplier_learning_rate <= 1e+06, got 0.0",
        ),
        (Penalty, {"penalty": 1e-9}, {"penalty": 0.0}, "0 < penalty <= 1e+06, got 0.0"),
        (
            Penalty,
            {"penalty": 1.0, "penalty_warmup": 0},
            {"penalty": 1.0, "penalty_warmup": -1},
            "0 <= penalty_warmup <= 1e+06, got -1",
        ),
        (LossTolerance, {"tolerance": 1e-9}, {"tolerance": 0.0}, "0 < tolerance <= 1e+06, got 0.0"),
        (
            LossTolerance,
            {"tolerance": 1.0, "price_learning_rate": 1e-9},
            {"tolerance": 1.0, "price_learning_rate": 0.0},
            "0 < price_learning_rate <= 1e+06, got 0.0",
        ),
        (AdamConfig, {"learning_rate": 1e-9}, {"learning_rate": 0.0}, "0 < learning_rate <= 1e+06, got 0.0"),
        *(
            (AdamConfig, {"learning_rate": 1.0, name: right}, {"learning_rate": 1.0, name: wrong}, said)
            for name, right, wrong, said in (
                ("epsilon", 1e-9, 0.0, "0 < epsilon <= 1e+06, got 0.0"),
                ("largest_gradient_norm", None, 0.0, "0 < largest_gradient_norm <= 1e+06, got 0.0"),
                ("weight_decay", 0.0, -0.1, "0 <= weight_decay <= 1e+06, got -0.1"),
                ("learning_rate_warmup", 1.0, 1.1, "0 <= learning_rate_warmup <= 1, got 1.1"),
                ("learning_rate_warmup", 0.0, -0.1, "0 <= learning_rate_warmup <= 1, got -0.1"),
                ("learning_rate_decay", 1.0, 1.1, "0 <= learning_rate_decay <= 1, got 1.1"),
            )
        ),
        (Converged, {"patience": 1}, {"patience": 0}, "patience >= 1, got 0"),
        (Converged, {"certain_for": 1}, {"certain_for": 0}, "certain_for >= 1, got 0"),
        (
            CounterexampleConfig,
            {"counterexamples": 0},
            {"counterexamples": -1},
            "0 <= counterexamples <= 1e+06, got -1",
        ),
        (
            CounterexampleConfig,
            {"counterexample_decay": 0.0},
            {"counterexample_decay": 1.0},
            "0 <= counterexample_decay < 1, got 1.0",
        ),
        (
            CounterexampleConfig,
            {"counterexample_decay": 0.999},
            {"counterexample_decay": -0.1},
            "0 <= counterexample_decay < 1, got -0.1",
        ),
    ],
)
def test_a_setting_at_its_bound_is_taken_and_one_beyond_is_refused(kind, right, wrong, said):
    kind(**right)
    with pytest.raises(ConfigError) as error:
        kind(**wrong)
    assert str(error.value) == f"Expected {said}"
