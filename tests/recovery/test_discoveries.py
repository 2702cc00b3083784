"""Whole discoveries: when they end, and what each part of the method is for."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from edgeprune.ablation import Ablator
from edgeprune.masks import mask_of
from edgeprune.methods.edge_pruning import PenaltyConfig, prune_with_penalty
from edgeprune.methods.edge_pruning_target import TargetConfig, prune_to_target
from edgeprune.methods.final_check import FinalCheck
from edgeprune.methods.objective import Objective
from edgeprune.metrics import ATOL, largest_difference

PATIENT = PenaltyConfig(steps=900, rest=900)


def test_threads_do_not_change_the_circuit(compiled):
    program = compiled("xproportion")
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(prune_with_penalty(program.model, program.dataset, "zero", config=PenaltyConfig(steps=150)))
    finally:
        torch.set_num_threads(1)
    assert found[0].circuit == found[1].circuit
    assert torch.equal(found[0].scores, found[1].scores)


def test_a_run_ends_once_the_circuit_no_longer_changes(compiled):
    program = compiled("shift_by")
    discovery = prune_with_penalty(program.model, program.dataset, "resample", config=replace(PATIENT, patience=100))
    assert 100 < len(discovery.history) < PATIENT.steps
    longer = prune_with_penalty(program.model, program.dataset, "resample", config=replace(PATIENT, patience=200))
    assert longer.circuit == discovery.circuit
    assert len(longer.history) == len(discovery.history) + 200  # settled twice
    settled = len(discovery.history) - 100
    assert discovery.history[:settled] == longer.history[:settled]
    assert discovery.history[-1].expected_edges == pytest.approx(len(discovery.circuit), abs=0.5)
    once = prune_with_penalty(
        program.model, program.dataset, "resample", config=replace(PATIENT, patience=100, second_look=False)
    )
    assert len(once.history) == len(discovery.history) - 100


def test_a_run_ends_sooner_where_every_entry_is_at_rest_and_not_before(compiled):
    program = compiled("hist")

    def run(**settings):
        return prune_with_penalty(program.model, program.dataset, "resample", config=PenaltyConfig(**settings))

    patient, found, once = run(rest=900), run(), run(second_look=False)
    assert found.circuit == patient.circuit
    assert len(once.history) < len(found.history) < len(patient.history) - 50
    assert patient.history[: len(once.history)] == found.history[: len(once.history)] == once.history
    assert set(once.scores.flatten().tolist()) == {0.0, 1.0}
    defaults = PenaltyConfig()
    assert len(once.history) > defaults.penalty_warmup + defaults.rest + 50


def test_an_edge_driven_high_that_became_superfluous_falls_at_the_second_look(compiled, truth):
    """At this seed it stands without one."""
    program = compiled("cancels_out")
    config = PenaltyConfig(rounded=False)
    found = prune_with_penalty(program.model, program.dataset, "zero", seed=3, config=config)
    assert found.circuit == truth("cancels_out", "zero").circuit


@pytest.mark.parametrize(
    ("settings", "exact"),
    [({"start_over": False, "checked": 0}, False), ({"start_over": False}, True), ({"checked": 0}, True)],
)
def test_a_circuit_that_is_wrong_on_rare_pairs_is_learned_anew(compiled, truth, settings, exact):
    """With masks on edges alone, no such pair is drawn at this seed before edges that it alone needs have fallen."""
    program, config = compiled("seldom_together"), PenaltyConfig(masked="edges", **settings)
    found = prune_with_penalty(program.model, program.dataset, "resample", seed=1, config=config)
    assert (found.circuit == truth("seldom_together", "resample").circuit) == exact


@pytest.mark.parametrize(("count", "enough"), [(PenaltyConfig().checked, True), (PenaltyConfig().batch_size, False)])
def test_the_end_is_checked_on_enough_pairs_to_see_what_any_edge_is_for(compiled, truth, count, enough):
    program, generator = compiled("seldom_together"), torch.Generator().manual_seed(0)
    true = truth("seldom_together", "resample").circuit
    objective, ablator = Objective(program.dataset, "worst"), Ablator(program.model, program.dataset, "resample")
    final = FinalCheck(program.model, program.dataset, objective, ablator, generator, count)
    check = partial(final.counterexamples, known=torch.zeros(2, 0, dtype=torch.long))
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


@pytest.mark.parametrize(("second", "kept"), [(2, "first"), (0, "second")])
def test_of_two_circuits_the_one_counts_that_fewer_pairs_show_wrong(compiled, monkeypatch, second, kept):
    program, wrong = compiled("seldom_together"), iter([1, second])
    config = PenaltyConfig(start_over=False, joint_removals=False, masked="edges")
    run = partial(prune_with_penalty, program.model, program.dataset, "resample", seed=1)
    found = {"first": run(config=replace(config, checked=0)), "second": run(config=config)}
    assert found["first"].circuit != found["second"].circuit
    with monkeypatch.context() as patch:  # what the second is learned with is what the first was found wrong on
        true = FinalCheck.counterexamples
        patch.setattr(FinalCheck, "counterexamples", lambda *given: _so_many(true(*given), next(wrong)))
        again = run(config=config)
    if kept == "first":
        assert again.circuit == found["first"].circuit and torch.equal(again.scores, found["first"].scores)
    else:
        assert len(again.history) > len(found["first"].history) and again.circuit != found["first"].circuit


def _so_many(pairs, count):
    """As many as asked for, whichever."""
    return torch.zeros(2, count, dtype=torch.long) if pairs.shape[1] < count else pairs[:, :count]


def test_what_a_run_was_checked_on_changes_nothing_where_it_was_right(compiled):
    program = compiled("seldom_together")
    found, unchecked = (
        prune_with_penalty(program.model, program.dataset, "resample", seed=2, config=PenaltyConfig(checked=checked))
        for checked in (PenaltyConfig().checked, 0)
    )
    assert found.circuit == unchecked.circuit and found.history == unchecked.history


def test_node_masks_and_the_path_gradient_recover_a_small_program_too(compiled, truth):
    program = compiled("xproportion")
    config = replace(
        PenaltyConfig(), gradient="path", rounded=False, loss="divergence", explored=1.0, initial_log_alpha=5.0,
        masked="edges and nodes", mask_samples=16, batch_size=8, learning_rate=0.1, steps=300, penalty=0.05,
    )  # fmt: skip
    found = prune_with_penalty(program.model, program.dataset, "resample", config=config)
    assert found.circuit == truth("xproportion", "resample").circuit


@pytest.mark.parametrize("sparsity", [0.3, pytest.param(0.6, marks=pytest.mark.sweep)])
def test_the_target_sparsity_is_met(compiled, sparsity):
    program = compiled("reverse")
    found = prune_to_target(
        program.model, program.dataset, "zero", config=TargetConfig(target_sparsity=sparsity, mask_samples=1, steps=400)
    )
    assert 1 - len(found.circuit) / program.model.graph.total == pytest.approx(sparsity, abs=0.15)
