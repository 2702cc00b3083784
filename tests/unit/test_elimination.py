"""Where orders of elimination end, with a judge that is told which sets are faithful."""

from typing import Any

import numpy as np
import pytest
import torch
from test_subsets import GRAPH, SMALL, TRUE, every

from edgeprune.errors import BrokenPromise
from edgeprune.graph import Edge
from edgeprune.groups import removals
from tracr_bridge.certify import elimination
from tracr_bridge.certify.elimination import eliminate


class Told:
    """A judge of sets of edges; a few pairs take for faithful what `seems` says, until a first mask has failed."""

    def __init__(self, faithful: Any, seems: Any = None, *, learns: bool = True) -> None:
        self.model, self.counterexamples, self.run = self, list[int](), list[frozenset[Edge]]()
        self.graph, self._faithful, self._seems, self._learns = GRAPH, faithful, seems or faithful, learns

    def sets(self, masks) -> list[frozenset[Edge]]:
        return [frozenset(edge for edge in SMALL if mask[GRAPH.position(edge)] > 0) for mask in masks]

    def seems_to_reproduce(self, masks):
        self.run += self.sets(masks)
        says = self._faithful if self.counterexamples else self._seems
        return torch.tensor([says(edges) for edges in self.sets(masks)], dtype=torch.bool)

    def reproduces(self, masks):
        found = torch.tensor([self._faithful(edges) for edges in self.sets(masks)], dtype=torch.bool)
        if not bool(found.all()) and self._learns:
            self.counterexamples.append(len(self.counterexamples))
        return found


def holds_one(edges: frozenset[Edge]) -> bool:
    return any(circuit <= edges for circuit in TRUE)


def ends_of(judge: Any, seed: int = 0, **more: Any) -> list[frozenset[Edge]]:
    return eliminate(judge, SMALL, seed=seed, **more)


def without(edges: frozenset[Edge]) -> list[frozenset[Edge]]:
    """What is left of a set by each move that takes anything out."""
    moves = [
        frozenset(e for e, out in zip(SMALL, move, strict=True) if out) for move in removals(GRAPH, SMALL).tolist()
    ]
    return [edges - move for move in moves if edges & move]


@pytest.mark.fakes
@pytest.mark.parametrize("at_once", [1, 2, 4096])
def test_orders_end_in_all_the_sets_from_which_nothing_can_go(monkeypatch, at_once):
    monkeypatch.setattr(elimination, "_AT_ONCE", at_once)
    ends = ends_of(Told(holds_one), orders=32)
    assert set(ends) == set(TRUE) and len(ends) == len(TRUE)


@pytest.mark.fakes
@pytest.mark.parametrize("seed", range(6))
def test_an_order_ends_where_it_ends_every_time_and_others_elsewhere(seed):
    (end,) = ends_of(Told(holds_one), seed, orders=1)
    assert end in TRUE and ends_of(Told(holds_one), seed, orders=1) == [end]
    assert {*ends_of(Told(holds_one), seed, orders=8)} == {*ends_of(Told(holds_one), seed)}


@pytest.mark.fakes
def test_the_end_depends_on_the_seed():
    assert {ends_of(Told(holds_one), seed, orders=1)[0] for seed in range(6)} == set(TRUE)


@pytest.mark.fakes
@pytest.mark.parametrize("seed", range(12))
def test_orders_take_out_what_they_can_one_after_the_other_until_nothing_can_go(seed):
    """Of the moves that are possible alone, each that still is when its turn comes; then once more."""
    drawn = np.random.default_rng(seed).random(1 << len(SMALL)) < 0.4

    def faithful(edges):
        return len(edges) == len(SMALL) or drawn[sum(1 << SMALL.index(edge) for edge in edges)]

    moves = [
        frozenset(e for e, out in zip(SMALL, move, strict=True) if out) for move in removals(GRAPH, SMALL).tolist()
    ]
    rng, expected = np.random.default_rng(seed), set[frozenset[Edge]]()
    for _ in range(6):
        order = [moves[number] for number in rng.permutation(len(moves))]
        kept = frozenset(SMALL)
        while possible := [move for move in order if move & kept and faithful(kept - move)]:
            for move in possible:
                kept = kept - move if move & kept and faithful(kept - move) else kept
        expected.add(kept)
    assert set(ends_of(Told(faithful), seed, orders=6)) == expected


@pytest.mark.fakes
def test_what_a_few_pairs_take_for_faithful_is_run_everywhere_and_started_again():
    judge = Told(holds_one, seems=lambda edges: True)
    assert set(ends_of(judge, orders=8)) == set(TRUE)
    assert len(judge.counterexamples) == 1


@pytest.mark.fakes
def test_ends_that_hold_are_kept_where_others_start_again():
    """Those that seem to hold without tok->logits do not; other orders ended well the first time."""
    logits = frozenset({SMALL[-1]})
    judge = Told(lambda edges: logits <= edges, seems=lambda edges: logits <= edges or TRUE[1] <= edges)
    assert ends_of(judge, orders=16) == [logits]
    assert len(judge.counterexamples) == 1


@pytest.mark.fakes
def test_a_judge_that_learns_nothing_of_what_failed_breaks_its_promise():
    with pytest.raises(BrokenPromise, match="a pair that fails in one batch fails in another"):
        ends_of(Told(holds_one, seems=lambda edges: True, learns=False))


@pytest.mark.fakes
def test_equal_sets_are_run_once_and_none_are_not_run():
    judge: Any = Told(holds_one)
    kept = torch.tensor([[True] * 7, [False] * 7, [True] * 7])
    assert elimination._reproduces(judge, SMALL, kept).tolist() == [True, False, True]
    assert sorted(map(len, judge.run)) == [0, 7]
    assert elimination._reproduces(judge, SMALL, kept[:0]).tolist() == [] and len(judge.run) == 2


@pytest.mark.fakes
def test_each_move_that_takes_something_out_and_leaves_a_faithful_set_is_possible():
    judge: Any = Told(holds_one)
    moves = removals(GRAPH, SMALL)
    sets = [kept for kept in every(SMALL) if holds_one(kept)][::7]
    kept = torch.tensor([[edge in each for edge in SMALL] for each in [*sets, sets[0]]])
    possible = elimination._possible(judge, SMALL, moves, kept)
    for row, each in zip(possible.tolist(), [*sets, sets[0]], strict=True):
        gone = [frozenset(e for e, out in zip(SMALL, move, strict=True) if out) for move in moves.tolist()]
        assert row == [bool(each & move) and holds_one(each - move) for move in gone]


@pytest.mark.fakes
def test_an_end_is_a_set_from_which_no_move_leads_to_a_faithful_one():
    for end in ends_of(Told(holds_one), orders=8):
        assert holds_one(end) and not any(map(holds_one, without(end)))
