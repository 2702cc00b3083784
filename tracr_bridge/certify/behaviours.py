"""All subset-minimal faithful circuits of a model, found by what its nodes compute.

Nodes are gone through from the embeddings to the logits, and for each the choices of edges that lead into it are
enumerated. Two partial circuits after which every node that is still to be read writes the same on the whole domain
have the same future: what completes one completes the other. They are one **behaviour** from there on, of which the
subset-minimal partial circuits alone are kept. `docs/truth.md` proves that no true circuit is lost.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from edgeprune.fingerprints import Level, salt, scrambled
from edgeprune.graph import Edge, Node
from tracr_bridge.certify.faithfulness import Judge, Places
from tracr_bridge.certify.node_order import Unit, in_order

WIDEST: Final = 12
"""Edges into one node that are enumerated, at the most."""

MOST_CHOICES: Final = 1 << 18
"""Partial circuits that are held at one node, at the most."""

ROW_BUDGET: Final = 8_000_000
"""Masked inputs that one search may run, at the most."""

MOST_CIRCUITS: Final = 1024
"""True circuits that are listed, at the most."""

_EQUAL: Final = 1 << 14
"""Partial circuits of one behaviour among which the subset-minimal ones are looked for, at the most."""

_FEW: Final = 1024
"""Live subsets up to which each is run: to look for equal behaviours would cost more."""

_UNMERGED: Final = 128
"""Partial circuits on the whole domain up to which it does not pay to look for equal behaviours."""

_TOO_MUCH: Final = 2
"""Places at which there is too much to search, before anything was learned at another, after which to give up."""

_IN_VAIN: Final = 4
"""Places in a row that tell of no more necessary edges before the whole domain is run."""

_MASKS: Final = 4096
"""Masks that are built at a time."""

_COMPARED: Final = 1024
"""Sets that are compared with others at a time."""

Kept = Bool[Tensor, "set edge"]
"""Sets of edges, one a row."""

Choices = Bool[Tensor, "choice edge"]
"""The same, of edges into one unit."""


@dataclass(frozen=True)
class Found:
    """All true circuits, and what it took."""

    circuits: list[frozenset[Edge]]
    choices: int
    """Partial circuits that were built on the way; those that were built again count again."""


class _GaveUp(Exception):
    """The search would exceed what it may cost."""


def minimal_circuits(judge: Judge, edges: Sequence[Edge]) -> Found | None:
    """All subset-minimal faithful subsets of `edges`; None where that would cost too much.

    Before the whole domain is run, the same search at single positions of single inputs tells which edges no faithful
    circuit lacks, and which behaviours there no choice completes.
    """
    search = _Search(judge, edges)
    in_vain = too_much = 0
    try:
        while (few := search.live_subsets()) is None and in_vain < _IN_VAIN:
            before = search.undecided
            try:
                search.search_place(search.next_place())
            except _GaveUp:
                too_much += 1
            if too_much == _TOO_MUCH and search.undecided == len(edges):
                return None  # the whole domain has more behaviours than a place
            in_vain = 0 if search.undecided < before else in_vain + 1
        return Found(search.smallest(search.candidates() if few is None else few), search.choices)
    except _GaveUp:
        return None


@dataclass(frozen=True)
class _Step:
    """Where choices of edges into a unit lead from each behaviour at a place.

    Behaviours are numbers, not fingerprints: another run, of other masks at a time, may round otherwise.
    """

    fewest: Bool[Tensor, " edge"]
    most: Bool[Tensor, " edge"]
    """What every choice has, and what the largest one has."""

    behaviour: Int[Tensor, "before choice"]
    """That after the unit; -1 where nothing completes it to a faithful set."""

    def after(self, before: Int[Tensor, " partial"], choices: Choices) -> Int[Tensor, " partial_choice"]:
        """The behaviour after each choice, from each behaviour before; choices may be fewer than when this was made."""
        free = self.most & ~self.fewest
        number = (choices[:, free] * (1 << torch.arange(int(free.sum())))).sum(1)
        return self.behaviour[before][:, number].flatten()

    def leave_out(self, later: "_Step") -> None:
        """Whatever leads to a behaviour from which, in the next step, nothing leads on."""
        lost = torch.cat([(later.behaviour < 0).all(1), torch.ones(1, dtype=torch.bool)])
        self.behaviour[lost[self.behaviour]] = -1


class _Search:
    """A search among subsets of `edges`, of which those in `necessary` are in every faithful one."""

    def __init__(self, judge: Judge, edges: Sequence[Edge]) -> None:
        self._judge, self._graph, self._edges = judge, judge.model.graph, edges
        self._necessary = torch.zeros(len(edges), dtype=torch.bool)
        self._units = in_order(self._graph, edges)
        self._budget = judge.rows + ROW_BUDGET
        self._asked = 0
        self._places: list[list[_Step]] = []
        self.choices = 0

    @property
    def undecided(self) -> int:
        """Edges that a true circuit may have or lack, as far as is known."""
        return int((~self._necessary).sum())

    def live_subsets(self) -> Kept | None:
        """All subsets in which every edge leads on to the logits; None where they are many."""
        sets = torch.zeros(1, len(self._edges), dtype=torch.bool)
        for number, unit in enumerate(self._units):
            choices = self._choices(unit)
            if len(sets) * len(choices) > 8 * _FEW:
                return None
            sets = self._extended(sets, choices)
            sets = sets[~self._has_dead(sets, number)]
            if len(sets) > _FEW:
                return None
        return sets

    def search_place(self, places: Places) -> None:
        """Find edges that every circuit has which is faithful at a place, and the behaviours there that lead to one.

        Raises:
            _GaveUp: that would cost too much.
        """
        kept = common = torch.zeros(1, len(self._edges), dtype=torch.bool)
        steps: list[_Step] = []
        for number, unit in enumerate(self._units):
            choices = self._choices(unit)
            kept, common = self._extended(kept, choices), self._extended(common, choices)
            after = torch.full((len(kept),), -1)
            alive = torch.nonzero(~self._has_dead(kept, number))[:, 0]
            kept, common = kept[alive], common[alive]
            if unit.is_logits:
                # What is just beyond the tolerance counts as faithful here: that is for the whole domain to decide.
                apart = torch.cat([self._judge.differences(masks, places) for masks in self._masks(kept)])
                after[alive[apart <= 2 * self._judge.atol]] = 0
                self._necessary |= common[apart <= 2 * self._judge.atol].all(0)
            else:
                behaviour = torch.unique(self._behaviours(kept, number, places), return_inverse=True)[1]
                after[alive] = behaviour
                kept, common = kept[_first_of_each(behaviour)], _common_of_each(common, behaviour)
            steps.append(_Step(choices[0], choices.any(0), after.view(-1, len(choices))))
        for later, step in pairwise(reversed(steps)):
            step.leave_out(later)
        self._places.append(steps)

    def candidates(self) -> Kept:
        """Subsets among which are all true circuits: of those with equal behaviours the subset-minimal ones.

        Raises:
            _GaveUp: that would cost too much.
        """
        every = self._judge.places()
        circuits = kept = torch.zeros(1, len(self._edges), dtype=torch.bool)
        behaviour = torch.zeros(1, dtype=torch.long)
        there = [behaviour] * len(self._places)
        for number, unit in enumerate(self._units):
            choices = self._choices(unit)
            kept, circuits = self._extended(kept, choices), self._extended(circuits, choices)
            behaviour = (behaviour[:, None] * len(choices) + torch.arange(len(choices))).flatten()
            there = [steps[number].after(one, choices) for steps, one in zip(self._places, there, strict=True)]
            leads_on = ~self._has_dead(kept, number)
            for one in there:
                leads_on &= one >= 0
            alive = torch.nonzero(leads_on)[:, 0]
            merged = len(alive) > _UNMERGED and not unit.is_logits
            of_alive = torch.arange(len(alive))
            if merged:
                of_alive = torch.unique(self._behaviours(kept[alive], number, every), return_inverse=True)[1]
            after = torch.full((len(kept),), -1)
            after[alive] = of_alive
            behaviour = after[behaviour]
            circuits, behaviour = circuits[behaviour >= 0], behaviour[behaviour >= 0]
            first = alive[_first_of_each(of_alive)]
            kept, there = kept[first], [one[first] for one in there]
            if merged:
                minimal = _minimal_of_each(circuits, behaviour)
                circuits, behaviour = circuits[minimal], behaviour[minimal]
        return circuits

    def smallest(self, circuits: Kept) -> list[frozenset[Edge]]:
        """The subset-minimal faithful ones. What has a faithful subset is none, and is not run.

        Raises:
            _GaveUp: that would cost too much.
        """
        found: list[Tensor] = []
        sizes = circuits.sum(1)
        for size in sizes.unique().tolist():
            some = circuits[sizes == size]
            for smaller in found:
                some = some[~(some | ~smaller).all(1)]
            for masks, part in zip(self._masks(some), some.split(_MASKS), strict=True):
                found += list(part[self._judge.reproduces(masks)])
                self._check_budget()
                if len(found) > MOST_CIRCUITS:
                    raise _GaveUp
        return [frozenset(e for e, keep in zip(self._edges, row.tolist(), strict=True) if keep) for row in found]

    def next_place(self) -> Places:
        """A scored position of an input that was not asked yet, as long as there is one."""
        place = self._judge.places(self._order[[self._asked % len(self._order)]])
        scored = torch.nonzero(place.scored[0])[:, 0].tolist()
        place.scored[0] = False
        place.scored[0, scored[self._asked % len(scored)]] = True
        self._asked += 1
        return place

    @cached_property
    def _order(self) -> Int[Tensor, " pair"]:
        """All pairs with a scored position, one of each length after the other, first those on which masks failed."""
        pairs = torch.tensor(list(dict.fromkeys([*self._judge.counterexamples, *range(self._judge.pairs)])))
        pairs = pairs[self._judge.places(pairs).scored.any(1)]
        group = self._judge.dataset.group[self._judge.rows_of_pairs[0, pairs]]
        rank = torch.zeros_like(group)
        for each in group.unique():
            rank[group == each] = torch.arange(int((group == each).sum()))
        return pairs[torch.argsort(rank * (1 + group.max()) + group)]

    @cached_property
    def _spreading(self) -> Bool[Tensor, " source"]:
        """Sources that other positions may learn of: a path leads from them to keys or values."""
        found: set[Node] = set()
        for edge in sorted(self._edges, key=lambda edge: -edge.destination.stage):
            if edge.destination.port in ("k", "v") or not found.isdisjoint(self._graph.readers[edge.destination]):
                found.add(edge.source)
        return torch.tensor([node in found for node in self._graph.sources])

    def _choices(self, unit: Unit) -> Choices:
        """All sets of edges into a node that have those which are necessary."""
        free = [edge for edge in unit.edges if not self._necessary[edge]]
        if len(free) > WIDEST:
            raise _GaveUp
        choices = torch.zeros(1 << len(free), len(self._edges), dtype=torch.bool)
        choices[:, free] = (torch.arange(len(choices))[:, None] >> torch.arange(len(free))) & 1 == 1
        choices[:, list(unit.edges)] |= self._necessary[list(unit.edges)]
        return choices

    def _extended(self, sets: Kept, choices: Choices) -> Bool[Tensor, "extended edge"]:
        """Every set with every choice of edges into a node."""
        if len(sets) * len(choices) > MOST_CHOICES:
            raise _GaveUp
        self.choices += len(sets) * len(choices)
        return (sets[:, None] | choices).flatten(0, 1)

    def _behaviours(self, kept: Kept, number: int, places: Places) -> Int[Tensor, " set"]:
        """A number for how each partial circuit goes on after a unit.

        Whether an edge still has to lead somewhere is part of it: what completes one partial circuit need not complete
        another.
        """
        self._check_budget(len(kept) * len(places.pairs))
        to_be_read = [self._graph.source_index[node] for node in self._to_be_read[number]]
        layers = 1 + max(node.layer for unit in self._units[: number + 1] for node in unit.sources)
        parts = [
            self._judge.fingerprints(masks, places, self._spreading, layers)[:, to_be_read]
            for masks in self._masks(kept)
        ]
        behaviour = scrambled(torch.cat(parts), salt(len(to_be_read), Level.SOURCE)).sum(1)
        pending = [
            readers for readers in self._gone_through[number] if not readers.isdisjoint(self._to_be_read[number])
        ]
        for readers, unread in zip(pending, salt(len(pending), Level.UNREAD), strict=True):
            behaviour += self._unread(kept, readers).long() * unread
        return behaviour

    def _has_dead(self, kept: Kept, number: int) -> Bool[Tensor, " set"]:
        """Whether a set has an edge that leads to no output, as nothing that is still to come reads it."""
        dead = torch.zeros(len(kept), dtype=torch.bool)
        for readers in self._gone_through[number]:
            if readers.isdisjoint(self._to_be_read[number]):
                dead |= self._unread(kept, readers)
        return dead

    def _unread(self, kept: Kept, readers: frozenset[Node]) -> Bool[Tensor, " set"]:
        """Whether a set has edges to what these nodes alone compute with, and none yet out of them."""
        into, out = self._around[readers]
        return kept[:, into].any(1) & ~kept[:, out].any(1)

    @cached_property
    def _around(self) -> dict[frozenset[Node], tuple[list[int], list[int]]]:
        """By the nodes that compute with what it reads, the edges into a destination, and those out of the nodes."""
        found: dict[frozenset[Node], tuple[list[int], list[int]]] = {}
        for number, edge in enumerate(self._edges):
            readers = frozenset(self._graph.readers[edge.destination])
            out = [n for n, other in enumerate(self._edges) if other.source in readers]
            found.setdefault(readers, ([], out))[0].append(number)
        return found

    @cached_property
    def _to_be_read(self) -> list[list[Node]]:
        """After each unit, the nodes gone through that a later one reads."""
        found: list[list[Node]] = []
        for number in range(len(self._units)):
            past = {node for unit in self._units[: number + 1] for node in unit.sources}
            later = {self._edges[edge].source for unit in self._units[number + 1 :] for edge in unit.edges}
            found.append(sorted(past & later))
        return found

    @cached_property
    def _gone_through(self) -> list[list[frozenset[Node]]]:
        """After each unit, the keys of `_around` whose edges it or an earlier one has chosen; not the logits'."""
        past = [{edge for unit in self._units[: n + 1] for edge in unit.edges} for n in range(len(self._units))]
        return [
            [readers for readers, (into, out) in self._around.items() if out and edges.issuperset(into)]
            for edges in past
        ]

    def _masks(self, sets: Kept) -> Iterator[Tensor]:
        """Masks `[set, source, destination]` of some sets at a time, all in the same memory."""
        size = (min(_MASKS, len(sets)), len(self._graph.sources), len(self._graph.destinations))
        masks = torch.zeros(size)
        rows, columns = zip(*map(self._graph.position, self._edges), strict=True)
        for some in sets.split(_MASKS):
            masks[: len(some), rows, columns] = some.float()
            yield masks[: len(some)]

    def _check_budget(self, more: int = 0) -> None:
        if self._judge.rows + more > self._budget:
            raise _GaveUp


def _first_of_each(number: Int[Tensor, " item"]) -> Int[Tensor, " distinct"]:
    """The first place of each number from 0 on."""
    first = torch.full((int(number.max()) + 1 if len(number) else 0,), len(number))
    return first.scatter_reduce_(0, number, torch.arange(len(number)), "amin")


def _common_of_each(sets: Kept, number: Int[Tensor, " set"]) -> Bool[Tensor, "distinct edge"]:
    """What the sets of each number from 0 on have in common."""
    shared = torch.ones(int(number.max()) + 1, sets.shape[1], dtype=torch.uint8)
    return shared.scatter_reduce_(0, number[:, None].expand(sets.shape), sets.to(torch.uint8), "amin").bool()


def _minimal_of_each(sets: Kept, group: Int[Tensor, " set"]) -> Int[Tensor, " minimal"]:
    """The rows of the sets that are distinct, and no superset of another, among those of their group.

    Raises:
        _GaveUp: a group has too many.
    """
    kept: list[Tensor] = []
    order = torch.argsort(group, stable=True)
    for rows in order.split(torch.bincount(group)[torch.bincount(group) > 0].tolist()):
        if len(rows) > _EQUAL:
            raise _GaveUp
        if len(rows) > 1:
            rows = rows[torch.argsort(sets[rows].sum(1), stable=True)]
            some = sets[rows].float()
            minimal = torch.zeros(len(rows), dtype=torch.bool)
            for start in range(0, len(rows), _COMPARED):  # a subset comes before what holds it
                part = some[start : start + _COMPARED]
                inside = part @ some[: start + len(part)].T == some[: start + len(part)].sum(1)
                minimal[start : start + len(part)] = ~inside.tril(start - 1).any(1)
            rows = rows[minimal].sort().values
        kept.append(rows)
    return torch.cat(kept) if kept else order
