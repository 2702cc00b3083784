"""What configurations of Edge Pruning are refused, and what their last check of a circuit runs and takes out."""

from dataclasses import replace

import pytest
import torch
from linear import EXISTS, GRAPH, Linear, data
from pruning import minimax

from edgeprune.errors import ConfigError
from edgeprune.graph import Edge
from edgeprune.masks import mask_of
from edgeprune.methods.edge_pruning import final_check
from edgeprune.methods.edge_pruning.config import FinalCheckConfig, LossConfig, MaskConfig
from edgeprune.methods.edge_pruning.configurations import MINIMAX, PAPER, TOLERANCE
from edgeprune.methods.edge_pruning.final_check import FinalCheck
from edgeprune.methods.edge_pruning.gradient import LikelihoodRatio
from edgeprune.methods.edge_pruning.problem import Problem
from edgeprune.methods.loss import draw_pairs
from edgeprune.methods.settings import with_settings

# Settings


@pytest.mark.parametrize(
    ("kind", "right", "wrong", "said"),
    [
        (
            MaskConfig,
            {"largest_log_alpha": 1e-9},
            {"largest_log_alpha": 0.0},
            "0 < largest_log_alpha <= 1e+06, got 0.0",
        ),
        (MaskConfig, {"initial_spread": 0.0}, {"initial_spread": -1.0}, "0 <= initial_spread <= 1e+06, got -1.0"),
        *(
            (
                MaskConfig,
                {"initial_log_alpha": sign * 1e6},
                {"initial_log_alpha": sign * 1.1e6},
                f"-1e+06 <= initial_log_alpha <= 1e+06, got {sign * 1.1e6}",
            )
            for sign in (1, -1)
        ),
        (LossConfig, {"logit_scale": 1e-9}, {"logit_scale": 0.0}, "0 < logit_scale <= 1e+06, got 0.0"),
        (LossConfig, {"judged": 1}, {"judged": 0}, "judged >= 1, got 0"),
        (FinalCheckConfig, {"checked": 1}, {"checked": 0}, "checked >= 1, got 0"),
    ],
)
def test_a_part_at_its_bound_is_taken_and_beyond_it_is_refused(kind, right, wrong, said):
    kind(**right)
    with pytest.raises(ConfigError) as error:
        kind(**wrong)
    assert str(error.value) == f"Expected {said}"


@pytest.mark.parametrize(
    ("config", "changed", "said"),
    [
        (PAPER, {"steps": 0}, "steps >= 1, got 0"),
        (PAPER, {"batch_size": 0}, "batch_size >= 1, got 0"),
        (TOLERANCE, {"masked": "edges and nodes"}, "masks on edges alone under a tolerance, got 'edges and nodes'"),
        (
            TOLERANCE,
            {"loss": "disagreement"},
            "a loss that is 0 at the full model under a tolerance, got 'disagreement'",
        ),
        (TOLERANCE, {"kept": "at mean sparsity"}, "kept='rounded' under a tolerance, got 'at mean sparsity'"),
        *(
            (MINIMAX, changed, "no final check without counterexamples, the loss 'worst' and the likelihood ratio")
            for changed in ({"loss": "squared"}, {"counterexamples": 0})
        ),
        (
            MINIMAX,
            {"masked": "nodes"},
            "joint_removals=False where sources alone have masks, as edges are removed one by one",
        ),
        (MINIMAX, {"certain_at": 2.0}, "certain_at > initial_log_alpha, got 2.0 and 2.0"),
        (MINIMAX, {"certain_at": 12.1}, "certain_at <= largest_log_alpha, got 12.1 and 12.0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(config, changed, said):
    with pytest.raises(ConfigError) as error:
        with_settings(config, changed)
    assert str(error.value) == f"Expected {said}"


def test_a_target_asks_for_a_gradient_through_z_and_each_fault_is_said():
    with pytest.raises(ConfigError) as error:
        replace(PAPER, gradient=LikelihoodRatio(), steps=0)
    assert str(error.value) == (
        "Expected steps >= 1, got 0; a gradient through z under a sparsity target, which is that of the samples"
    )
    with pytest.raises(ConfigError, match="no final check without counterexamples"):
        replace(PAPER, final_check=FinalCheckConfig())


def test_settings_that_just_go_together_are_taken():
    with_settings(MINIMAX, {"masked": "nodes", "joint_removals": False})
    with_settings(MINIMAX, {"masked": "edges"})
    with_settings(MINIMAX, {"certain_at": 2.01})
    with_settings(MINIMAX, {"certain_at": 12.0})
    with_settings(MINIMAX, {"certain_at": 100.0, "largest_log_alpha": None})
    minimax(certain_at=1.0, rounded=False)  # what is not rounded is never certain
    replace(MINIMAX, ending=None, masks=replace(MINIMAX.masks, initial_log_alpha=9.0))
    replace(PAPER, masks=replace(PAPER.masks, largest_log_alpha=1.0))
    for loss in ("worst", "divergence", "squared"):
        with_settings(TOLERANCE, {"loss": loss})
    replace(TOLERANCE, gradient=LikelihoodRatio())
    minimax(checked=0, masked="nodes")
    minimax(checked=0, loss="squared", counterexamples=0)


# Pairs of the last check


def check_of(model, dataset, ablation="resample", count=100, seed=5):
    problem = Problem.of(model, dataset, ablation, "worst")
    return FinalCheck(problem, torch.Generator().manual_seed(seed), count)


KNOWN = torch.tensor([[3], [2]])
NONE = torch.zeros(2, 0, dtype=torch.long)
MODEL = Linear([1.0, 2.0, 4.0, 0.0, 8.0, 16.0, 32.0, 64.0])


@pytest.mark.parametrize(
    ("ablation", "more"), [("zero", {}), ("mean", {}), ("resample", {"counterparts": torch.tensor([[9]] * 5)})]
)
@pytest.mark.parametrize("count", [3, 30])
def test_inputs_with_one_partner_or_none_are_drawn_and_those_known_are_added(ablation, more, count):
    dataset = data(MODEL, **more)
    expected = draw_pairs(dataset, count, torch.Generator().manual_seed(5))
    found = check_of(MODEL, dataset, ablation, count).pairs(KNOWN)
    assert torch.equal(found, torch.cat([expected, KNOWN], dim=1))


@pytest.mark.parametrize(("count", "whole"), [(13, True), (12, False)])
def test_all_pairs_are_run_in_a_random_order_where_there_are_no_more_than_may_be(count, whole):
    """Two lengths, of two inputs and of three: four pairs and nine."""
    dataset = data(MODEL, group=[0, 0, 1, 1, 1])
    found = check_of(MODEL, dataset, count=count).pairs(KNOWN)
    every = torch.stack(dataset.pairs())
    noise = torch.Generator().manual_seed(5)
    if whole:
        assert torch.equal(found, every[:, torch.randperm(13, generator=noise)])
        return
    drawn = torch.cat([draw_pairs(dataset, 12, noise) for _ in range(3)], dim=1)  # five of each walk
    assert torch.equal(found, torch.cat([drawn[:, :12], KNOWN], dim=1))


@pytest.mark.parametrize(("count", "walks"), [(10, 2), (5, 1), (3, 1)])
def test_a_walk_that_is_just_enough_is_not_followed_by_another(count, walks):
    dataset, noise = data(MODEL), torch.Generator().manual_seed(5)
    check = check_of(MODEL, dataset, count=count)
    drawn = torch.cat([draw_pairs(dataset, count, noise) for _ in range(walks)], dim=1)
    assert torch.equal(check.pairs(NONE), drawn)
    assert torch.equal(check.generator.get_state(), noise.get_state())


# Removals of the last check


def test_pairs_on_which_a_mask_is_wrong_are_found_in_every_part(monkeypatch):
    """An input for which the other stands in is right, whatever is removed; so is all that the full model does."""
    dataset = data(MODEL, tokens=(1, 2, 4, 5))
    pairs = torch.tensor([[0, 1, 1, 2, 3, 3, 0], [0, 0, 1, 3, 3, 2, 3]])
    for rows in (1, 2, 3, 100):
        monkeypatch.setattr(final_check, "rows_at_once", lambda model, data, rows=rows: rows)
        check = check_of(MODEL, dataset)
        found = check.counterexamples(mask_of(GRAPH, GRAPH.edges[:1]), pairs)
        assert found.tolist() == [[1, 2, 3, 0], [0, 3, 2, 3]]
        assert check.counterexamples(EXISTS.float(), pairs).shape == (2, 0)
        assert check.counterexamples(torch.full_like(EXISTS.float(), float("nan")), pairs).shape == (2, 7)


@pytest.mark.parametrize("known", [NONE, KNOWN])
def test_edges_that_only_go_together_are_taken_out_and_needed_ones_stay(known):
    """One edge carries nothing; two carry what cancels out, and either alone is needed."""
    model = Linear([1.0, 0.0, 4.0, 8.0, -8.0, 16.0, 32.0, 64.0])
    check = check_of(model, data(model))
    left = check.without_superfluous(EXISTS.float(), known)
    weight = {edge: float(model.weights[GRAPH.position(edge)]) for edge in GRAPH.edges}
    assert {weight[edge] for edge in left} == {1.0, 4.0, 16.0, 32.0, 64.0}


def test_of_a_circuit_of_dead_edges_nothing_is_left_and_nothing_is_run(monkeypatch):
    runs, counterexamples = [], FinalCheck.counterexamples
    monkeypatch.setattr(FinalCheck, "counterexamples", lambda *given: runs.append(given) or counterexamples(*given))
    dead = mask_of(GRAPH, [Edge.parse("embed->a0.h0.v")])
    assert check_of(MODEL, data(MODEL)).without_superfluous(dead, NONE) == frozenset() and runs == []


def test_the_largest_groups_are_tried_first(monkeypatch):
    """On few inputs, all may go; in the order in which they are tried, of more edges ever fewer."""
    sizes = []

    def on_few(self, edges, removed, known):
        sizes.append(removed.sum(1).tolist())
        return []

    monkeypatch.setattr(FinalCheck, "_right_on_few", on_few)
    assert check_of(MODEL, data(MODEL)).without_superfluous(EXISTS.float(), NONE) == frozenset(GRAPH.edges)
    assert sizes[0] == sorted(sizes[0], reverse=True) and sizes[0][0] > sizes[0][-1] == 1 and len(sizes) == 1


def test_a_pair_that_shows_a_removal_wrong_is_known_from_then_on(monkeypatch):
    """On few inputs all removals are right, so that those known alone say more."""
    check, seen = check_of(MODEL, data(MODEL)), []

    def on_few(self, edges, removed, known):
        seen.append(known)
        right = [number for number in range(len(removed)) if removed[number].sum() == 1]
        return right if known.shape[1] < 3 else right[:0]

    monkeypatch.setattr(FinalCheck, "_right_on_few", on_few)
    given = []
    pairs = FinalCheck.pairs

    def noting(self, known):
        given.append(known)
        return pairs(self, known)

    monkeypatch.setattr(FinalCheck, "pairs", noting)
    left = check.without_superfluous(EXISTS.float(), KNOWN)
    weight = {edge: float(MODEL.weights[GRAPH.position(edge)]) for edge in GRAPH.edges}
    assert len(left) == 7 and 0.0 not in {weight[edge] for edge in left}
    widths = [known.shape[1] for known in given]
    assert widths == list(range(1, len(widths) + 1)) and all(known[:, 0].tolist() == [3, 2] for known in given)
    for known in given[1:]:
        assert known[0, -1] != known[1, -1]  # one that stands in for itself shows nothing
    assert len(seen) == 2 and torch.equal(seen[0], KNOWN) and seen[1].shape[1] == widths[-1]
