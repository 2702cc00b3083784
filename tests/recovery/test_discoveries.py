"""Whole discoveries: when they end, and what each part of the method is for."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from pruning import compiled_paper, minimax, prune_compiled

from edgeprune.masks import mask_of
from edgeprune.methods.edge_pruning.config import LossConfig
from edgeprune.methods.edge_pruning.configurations import MINIMAX
from edgeprune.methods.edge_pruning.final_check import FinalCheck
from edgeprune.methods.edge_pruning.gradient import ThroughZ
from edgeprune.methods.edge_pruning.problem import Problem
from edgeprune.methods.settings import with_settings
from edgeprune.metrics.distances import ATOL, largest_difference

PATIENT = {"steps": 900, "certain_for": 900}


def test_threads_do_not_change_the_circuit(compiled):
    program = compiled("xproportion")
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(prune_compiled(program, "zero", minimax(steps=150)))
    finally:
        torch.set_num_threads(1)
    assert found[0].circuit == found[1].circuit
    assert torch.equal(found[0].scores, found[1].scores)


def test_a_run_ends_once_the_circuit_no_longer_changes(compiled):
    program = compiled("shift_by")
    discovery = prune_compiled(program, "resample", minimax(**PATIENT, patience=100))
    assert 100 < len(discovery.history) < PATIENT["steps"]
    longer = prune_compiled(program, "resample", minimax(**PATIENT, patience=200))
    assert longer.circuit == discovery.circuit
    assert len(longer.history) == len(discovery.history) + 200  # converged twice
    converged = len(discovery.history) - 100
    assert discovery.history[:converged] == longer.history[:converged]
    assert discovery.history[-1].expected_edges == pytest.approx(len(discovery.circuit), abs=0.5)
    once = prune_compiled(program, "resample", minimax(**PATIENT, patience=100, second_look=False))
    assert len(once.history) == len(discovery.history) - 100


def test_a_run_ends_sooner_where_every_entry_is_certain_and_not_before(compiled):
    program = compiled("hist")

    def run(**settings):
        return prune_compiled(program, "resample", minimax(**settings))

    patient, found, once = run(certain_for=900), run(), run(second_look=False)
    assert found.circuit == patient.circuit
    assert len(once.history) < len(found.history) < len(patient.history) - 50
    assert patient.history[: len(once.history)] == found.history[: len(once.history)] == once.history
    assert set(once.scores.flatten().tolist()) == {0.0, 1.0}
    assert len(once.history) > MINIMAX.pressure.penalty_warmup + MINIMAX.ending.certain_for + 50


def test_an_edge_driven_high_that_became_superfluous_falls_at_the_second_look(compiled, truth):
    """At this seed it stands without one."""
    program = compiled("cancels_out")
    found = prune_compiled(program, "zero", minimax(rounded=False), seed=3)
    assert found.circuit == truth("cancels_out", "zero").circuit


@pytest.mark.parametrize(
    ("settings", "exact"),
    [({"start_over": False, "checked": 0}, False), ({"start_over": False}, True), ({"checked": 0}, True)],
)
def test_a_circuit_that_is_wrong_on_rare_pairs_is_learned_anew(compiled, truth, settings, exact):
    """With masks on edges alone, no such pair is drawn at this seed before edges that it alone needs have fallen."""
    found = prune_compiled(compiled("seldom_together"), "resample", minimax(masked="edges", **settings), seed=1)
    assert (found.circuit == truth("seldom_together", "resample").circuit) == exact


@pytest.mark.parametrize(("count", "enough"), [(MINIMAX.final_check.checked, True), (MINIMAX.batch_size, False)])
def test_the_end_is_checked_on_enough_pairs_to_see_what_any_edge_is_for(compiled, truth, count, enough):
    program, generator = compiled("seldom_together"), torch.Generator().manual_seed(0)
    true = truth("seldom_together", "resample").circuit
    final = FinalCheck(Problem.of(program.model, program.dataset, "resample", "worst"), generator, count)

    def check(mask):
        return final.counterexamples(mask, final.pairs(torch.zeros(2, 0, dtype=torch.long)))

    assert check(mask_of(true.graph, true.edges)).shape == (2, 0)
    masks = [mask_of(true.graph, true.edges - {edge}) for edge in true.edges]
    wrong = [check(mask) for mask in masks]
    assert all(pairs.shape[1] > 0 for pairs in wrong) == enough
    if enough:  # every pair was run, once
        assert min(pairs.shape[1] for pairs in wrong) == _fewest_wrong(program, true)
        assert all(pairs.shape == pairs.unique(dim=1).shape for pairs in wrong)


def _fewest_wrong(program, true):
    """By a judge, one pair after the other."""
    dataset, least = program.dataset, []
    clean, corrupted = dataset.pairs()
    for edge in true.edges:
        batch = dataset.take(clean, corrupted)
        mask = mask_of(true.graph, true.edges - {edge})
        outputs = program.model(batch.clean, mask, program.model.sources(batch.corrupted))
        least.append(int((largest_difference(outputs, batch.target, batch.scored) > ATOL).sum()))
    return min(least)


@pytest.mark.parametrize(("second", "kept"), [(2, "first"), (0, "second"), (1, "fewer edges")])
def test_of_two_circuits_the_one_counts_that_fewer_pairs_show_wrong(compiled, monkeypatch, second, kept):
    """Of equals, that of fewer edges; both are run on the same pairs, those that showed the first wrong among them."""
    program = compiled("seldom_together")
    config = minimax(start_over=False, joint_removals=False, masked="edges")
    run = partial(prune_compiled, program, "resample", seed=1)
    found = {"first": run(config=replace(config, final_check=None)), "second": run(config=config)}
    assert found["first"].circuit != found["second"].circuit
    first_has_fewer = len(found["first"].circuit) < len(found["second"].circuit)
    with monkeypatch.context() as patch:  # what the second is learned with is what the first was found wrong on
        true, asked, wrong = FinalCheck.counterexamples, [], iter([1, second, 1])

        def so_many(check, mask, pairs):
            asked.append(pairs)
            return _so_many(true(check, mask, pairs), next(wrong))

        patch.setattr(FinalCheck, "counterexamples", so_many)
        again = run(config=config)
    assert torch.equal(asked[1], asked[2]) and len(asked) == 3
    if kept == "first" or (kept == "fewer edges" and first_has_fewer):
        assert again.circuit == found["first"].circuit and torch.equal(again.scores, found["first"].scores)
    else:
        assert len(again.history) > len(found["first"].history) and again.circuit != found["first"].circuit


def _so_many(pairs, count):
    """As many as asked for, whichever."""
    return torch.zeros(2, count, dtype=torch.long) if pairs.shape[1] < count else pairs[:, :count]


def test_what_a_run_was_checked_on_changes_nothing_where_it_was_right(compiled):
    program = compiled("seldom_together")
    found, unchecked = (
        prune_compiled(program, "resample", minimax(checked=checked), seed=2)
        for checked in (MINIMAX.final_check.checked, 0)
    )
    assert found.circuit == unchecked.circuit and found.history == unchecked.history


def test_node_masks_and_the_path_gradient_recover_a_small_program_too(compiled, truth):
    program = compiled("xproportion")
    config = replace(MINIMAX, gradient=ThroughZ(mask_samples=16), loss=LossConfig(), final_check=None)
    settings = {"initial_log_alpha": 5.0, "masked": "edges and nodes", "batch_size": 8, "learning_rate": 0.1}
    config = with_settings(config, settings | {"steps": 300, "penalty": 0.05})
    found = prune_compiled(program, "resample", config)
    assert found.circuit == truth("xproportion", "resample").circuit


@pytest.mark.parametrize("sparsity", [0.3, pytest.param(0.6, marks=pytest.mark.sweep)])
def test_the_target_sparsity_is_met(compiled, sparsity):
    program = compiled("reverse")
    found = prune_compiled(program, "zero", compiled_paper(target_sparsity=sparsity, mask_samples=1))
    assert 1 - len(found.circuit) / program.model.graph.total == pytest.approx(sparsity, abs=0.15)
