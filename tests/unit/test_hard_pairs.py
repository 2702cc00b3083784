"""Pairs that show a circuit to be wrong: remembered, run again, and part of every batch that follows."""

import pytest
import torch
from pruning import compiled_paper, minimax

from edgeprune.masks import mask_of
from edgeprune.methods.edge_pruning.counterexamples import CounterexampleConfig, Counterexamples
from edgeprune.methods.edge_pruning.ending import Verdict
from edgeprune.methods.edge_pruning.engine import Pruning, Stage, problem_of
from edgeprune.methods.edge_pruning.final_check import FinalCheck
from edgeprune.methods.edge_pruning.pressure import LossTolerance, Penalty
from edgeprune.methods.edge_pruning.problem import Problem
from edgeprune.methods.loss import Objective

NAME = "xproportion"


def begun(program, ablation="resample", **settings) -> Pruning:
    config = minimax(**settings)
    return Pruning(problem_of(program.model, program.dataset, ablation, config), config, seed=0)


def wrong_on(run: Pruning, pairs, mask=None) -> torch.Tensor:
    batch = run.problem.dataset.take(pairs[0], pairs[1])
    return run.problem.losses(run.masks.rounded() if mask is None else mask, batch) > 0


def columns(pairs) -> set[tuple[int, int]]:
    return {tuple(pair) for pair in pairs.T.tolist()}


@pytest.fixture
def batches(monkeypatch):
    """All pairs that are run on, batch by batch."""
    seen, real = [], Problem.batches

    def spy(self, pairs):
        seen.append(pairs.clone())
        return real(self, pairs)

    monkeypatch.setattr(Problem, "batches", spy)
    return seen


def test_what_shows_a_circuit_to_be_wrong_in_the_end_joins_the_batches_of_what_is_learned_anew(compiled, batches):
    run = begun(compiled(NAME))
    run.masks.set_to(-5.0)  # the circuit without an edge
    run.stage = Stage.CHECK
    run.advance()
    assert run.stage == Stage.LEARN_ANEW
    remembered = run.counterexamples.pairs
    assert remembered.shape[1] == 16
    empty = torch.zeros_like(run.masks.rounded())
    assert bool(wrong_on(run, remembered, empty).all()) and bool(wrong_on(run, run._against, empty).all())
    run.advance()
    assert columns(remembered) <= columns(batches[-1]) and batches[-1].shape[1] == 32 + 16


def test_a_circuit_that_is_right_is_not_learned_anew(compiled, truth):
    run = begun(compiled(NAME))
    run.masks.keep_only(mask_of(run.problem.graph, truth(NAME, "resample").circuit.edges) > 0)
    run.stage = Stage.CHECK
    run.advance()
    assert run.stage == Stage.REMOVE and run._against.shape[1] == 0


def test_what_shows_a_circuit_that_starts_over_to_be_wrong_joins_the_next_batch(compiled, batches, monkeypatch):
    run = begun(compiled(NAME))
    run.masks.set_to(-5.0)
    verdicts = iter([Verdict.START_OVER, Verdict.GO_ON])
    monkeypatch.setattr(run._ending, "after", lambda step, *, rounded, wrong: next(verdicts))
    run.advance()
    remembered = run.counterexamples.pairs
    empty = torch.zeros_like(run.masks.rounded())
    first = batches[0]
    assert columns(remembered) <= columns(first[:, wrong_on(run, first, empty)]) and remembered.shape[1] == 16
    assert {*run.masks.log_alpha.tolist()} == {2.0}
    run.advance()
    assert columns(remembered) <= columns(batches[1])


def test_pairs_that_are_known_are_run_in_every_check_beside_those_that_are_drawn(compiled):
    program = compiled(NAME)
    known = torch.tensor([[7, 3], [8, 4]])
    for ablation, count in (("zero", 20), ("resample", 300)):  # of 120 inputs and 7,380 pairs
        problem = Problem.of(program.model, program.dataset, ablation, "worst")
        pairs = FinalCheck(problem, torch.Generator().manual_seed(0), count).pairs(known)
        assert pairs.shape[1] == count + 2 and pairs[:, -2:].tolist() == known.tolist()
    problem = Problem.of(program.model, program.dataset, "resample", "worst")
    total = int(program.dataset.group.bincount().square().sum())
    for count, whole in ((total, True), (total - 1, False)):
        pairs = FinalCheck(problem, torch.Generator().manual_seed(0), count).pairs(known)
        assert (len(columns(pairs)) == pairs.shape[1] == total) == whole
        assert torch.equal(program.dataset.group[pairs[0]], program.dataset.group[pairs[1]])


def test_a_check_runs_each_clean_input_with_its_own_corrupted_one(compiled):
    program = compiled(NAME)
    problem = Problem.of(program.model, program.dataset, "resample", "worst")
    check = FinalCheck(problem, torch.Generator().manual_seed(0), 10**6)
    pairs = check.pairs(torch.zeros(2, 0, dtype=torch.long))
    empty = torch.zeros(len(problem.graph.sources), len(problem.graph.destinations))
    found = check.counterexamples(empty, pairs)
    assert not bool((found[0] == found[1]).any())  # an input corrupted by itself is right
    ablated = problem.model.sources(program.dataset.tokens[pairs[1]])
    outputs = problem.model(program.dataset.tokens[pairs[0]], empty, ablated)
    target, scored = program.dataset.target[pairs[0]], program.dataset.scored[pairs[0]]
    off = torch.where(scored, (outputs - target).abs().amax(-1), 0).amax(-1) > 1e-2
    assert columns(found) == columns(pairs[:, off])


def test_merit_is_what_the_worst_loss_would_fall_by_and_belongs_to_the_pair_that_has_it():
    """Of two pairs that show the same mask to be equally wrong, neither is needed."""
    hard = Counterexamples(CounterexampleConfig(counterexamples=3, counterexample_decay=0.5))
    pairs = torch.arange(8).view(2, 4)
    hard.update(pairs, torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.3, 0.9], [0.0, 0.0, 0.0, 0.1]]))
    assert hard.pairs.tolist() == [[3], [7]]
    assert hard.state()["merit"].tolist() == pytest.approx([0.7])
    # One step later its merit is half of that, and a new pair comes in before it.
    hard.update(torch.cat([pairs[:, :2], hard.pairs], 1), torch.tensor([[0.0, 0.5, 0.1]]))
    assert hard.pairs.tolist() == [[1, 3], [5, 7]]
    assert hard.state()["merit"].tolist() == pytest.approx([0.4, 0.35])


# What presses


def test_a_penalty_grows_to_its_strength_and_no_further(compiled):
    pressure = Penalty(penalty=0.3, penalty_warmup=10).start(100)
    assert [pressure.figures(step)["penalty"] for step in (0, 5, 10, 50)] == pytest.approx([0.0, 0.15, 0.3, 0.3])
    assert Penalty(penalty=0.3).start(100).figures(0)["penalty"] == 0.3
    run = begun(compiled(NAME))
    draw = run.masks.draw(2, torch.Generator().manual_seed(0), rounded=True)
    (none, half, whole) = (run.pressure.gradients(run.masks, draw, step, 0.0)[0] for step in (0, 50, 100))
    assert not none.any() and bool(half.any())
    torch.testing.assert_close(2 * half, whole)


@pytest.mark.parametrize(("loss", "sign"), [(0.005, 1), (0.02, -1), (0.01, 0)])
def test_a_price_grows_within_the_tolerance_and_falls_beyond_it(compiled, loss, sign):
    run = begun(compiled(NAME))
    pressure = LossTolerance(tolerance=0.01).start(100)
    draw = run.masks.draw(2, torch.Generator().manual_seed(0), rounded=True)
    by_masks, by_price = pressure.gradients(run.masks, draw, 0, loss)
    assert float(by_price.sign()) == sign
    at_tolerance = pressure.gradients(run.masks, draw, 0, 0.01)[0]
    torch.testing.assert_close(by_masks, at_tolerance * (0.5 if sign < 0 else 1))


def test_multipliers_learn_at_a_rate_that_warms_up_and_decays_like_all_else(compiled):
    program = compiled("hist")
    config = compiled_paper(steps=40, mask_samples=2, initial_log_alpha=1.0)
    run = Pruning(problem_of(program.model, program.dataset, "zero", config), config, seed=0)
    rates, step = [], run._optimizer.step
    run._optimizer.step = lambda gradients, given: rates.append(given) or step(gradients, given)
    while not run.ended:
        run.advance()
    masks, multipliers = torch.tensor(rates).T
    torch.testing.assert_close(multipliers, masks * 0.02 / 0.4)
    assert multipliers[0] == 0 and float(multipliers.max()) <= 0.02 and multipliers[-1] < 0.1 * multipliers.max()


def test_gains_count_beside_losses_where_the_worst_is_asked_for(compiled):
    objective = Objective(compiled(NAME).dataset, "worst")
    change = objective.change(torch.tensor([[0.1, 0.9], [0.6, 0.2]]), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(change, torch.tensor([0.0, -0.2]))
