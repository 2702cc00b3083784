"""Finds all subset-minimal faithful circuits of a model by what its nodes compute.

The search goes through the nodes from the embeddings to the logits and enumerates the sets of edges into each. A
**partial circuit** is a set of edges into the nodes gone through so far. Two partial circuits have the same
**behaviour** if every node that is still to be read writes the same on the whole domain, and the same nodes have
incoming edges but no outgoing ones yet. Whatever completes one of them then completes the other. Of each behaviour only
the subset-minimal partial circuits are kept. `docs/truth.md` proves that no true circuit is lost.
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
"""Largest number of undecided edges into one unit whose subsets are enumerated."""

MOST_CHOICES: Final = 1 << 18
"""Largest number of partial circuits built at one unit."""

ROW_BUDGET: Final = 8_000_000
"""Largest number of masked inputs that one search may run."""

MOST_CIRCUITS: Final = 1024
"""Largest number of true circuits listed."""

_EQUAL: Final = 1 << 14
"""Largest number of partial circuits of one behaviour among which the subset-minimal ones are looked for."""

_FEW: Final = 1024
"""Up to this many subsets without dead edges, each is run: looking for equal behaviours would cost more."""

_UNMERGED: Final = 128
"""Up to this many partial circuits, looking for equal behaviours on the whole domain does not pay."""

_TOO_MUCH: Final = 2
"""The search gives up once this many places were too expensive and no place has shown a necessary edge."""

_IN_VAIN: Final = 4
"""The whole domain is run after this many places in a row that showed no new necessary edge."""

_MASKS: Final = 4096
"""Masks built at a time."""

_COMPARED: Final = 1024
"""Sets compared with others at a time."""

Kept = Bool[Tensor, "set edge"]
"""Sets of edges, one per row."""

Choices = Bool[Tensor, "choice edge"]
"""Sets of edges into one unit, one per row."""


@dataclass(frozen=True)
class Found:
    """All true circuits, and the cost of the search."""

    circuits: list[frozenset[Edge]]
    choices: int
    """Number of partial circuits built; one that is built twice counts twice."""


class _GaveUp(Exception):
    """The search would exceed one of its limits."""


def minimal_circuits(judge: Judge, edges: Sequence[Edge]) -> Found | None:
    """Return all subset-minimal faithful subsets of `edges`, or None if that would cost too much.

    The same search runs first at single positions of single inputs. It shows which edges every faithful circuit has,
    and which behaviours at that place no choice completes to a faithful set.
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
                return None  # the whole domain has at least as many behaviours as a place
            in_vain = 0 if search.undecided < before else in_vain + 1
        return Found(search.smallest(search.candidates() if few is None else few), search.choices)
    except _GaveUp:
        return None


@dataclass(frozen=True)
class _Step:
    """The behaviour at one place that each choice of edges into a unit leads to, from each behaviour before it.

    Behaviours are numbered here, not fingerprinted: a run with other masks in its batch may round differently.
    """

    fewest: Bool[Tensor, " edge"]
    most: Bool[Tensor, " edge"]
    """The edges that every choice has, and the edges that the largest choice has."""

    behaviour: Int[Tensor, "before choice"]
    """The behaviour after the unit; -1 where an edge is dead or no completion is faithful at the place."""

    def after(self, before: Int[Tensor, " partial"], choices: Choices) -> Int[Tensor, " partial_choice"]:
        """Return the behaviour after each choice from each behaviour before. A later search may have fewer choices."""
        free = self.most & ~self.fewest
        number = (choices[:, free] * (1 << torch.arange(int(free.sum())))).sum(1)
        return self.behaviour[before][:, number].flatten()

    def leave_out(self, later: "_Step") -> None:
        """Set to -1 every behaviour from which no choice of the next step leads on."""
        lost = torch.cat([(later.behaviour < 0).all(1), torch.ones(1, dtype=torch.bool)])
        self.behaviour[lost[self.behaviour]] = -1


class _Search:
    """A search among the subsets of `edges`. Every faithful subset contains the edges marked in `_necessary`."""

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
        """Number of edges that are not known to be in every true circuit."""
        return int((~self._necessary).sum())

    def live_subsets(self) -> Kept | None:
        """Return all subsets without dead edges, as far as `_has_dead` finds them, or None if there are many."""
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
        """Find the edges that every circuit faithful at a place has, and the behaviours there that lead to one.

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
                # Up to twice the tolerance counts as faithful here; the run on the whole domain decides such cases.
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
        """Return subsets that include all true circuits: of those with equal behaviours, the subset-minimal ones.

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
        """Return the subset-minimal faithful sets among `circuits`. A set with a faithful subset is not run.

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
        """Return one scored position of the next pair in `_order`, which starts over at its end."""
        place = self._judge.places(self._order[[self._asked % len(self._order)]])
        scored = torch.nonzero(place.scored[0])[:, 0].tolist()
        place.scored[0] = False
        place.scored[0, scored[self._asked % len(scored)]] = True
        self._asked += 1
        return place

    @cached_property
    def _order(self) -> Int[Tensor, " pair"]:
        """All pairs with a scored position. Lengths take turns; within each length, counterexamples come first."""
        pairs = torch.tensor(list(dict.fromkeys([*self._judge.counterexamples, *range(self._judge.pairs)])))
        pairs = pairs[self._judge.places(pairs).scored.any(1)]
        group = self._judge.dataset.group[self._judge.rows_of_pairs[0, pairs]]
        rank = torch.zeros_like(group)
        for each in group.unique():
            rank[group == each] = torch.arange(int((group == each).sum()))
        return pairs[torch.argsort(rank * (1 + group.max()) + group)]

    @cached_property
    def _spreading(self) -> Bool[Tensor, " source"]:
        """Sources that can affect other positions: a path leads from them to keys or values."""
        found: set[Node] = set()
        for edge in sorted(self._edges, key=lambda edge: -edge.destination.stage):
            if edge.destination.port in ("k", "v") or not found.isdisjoint(self._graph.readers[edge.destination]):
                found.add(edge.source)
        return torch.tensor([node in found for node in self._graph.sources])

    def _choices(self, unit: Unit) -> Choices:
        """Return all sets of edges into a unit that contain the necessary ones."""
        free = [edge for edge in unit.edges if not self._necessary[edge]]
        if len(free) > WIDEST:
            raise _GaveUp
        choices = torch.zeros(1 << len(free), len(self._edges), dtype=torch.bool)
        choices[:, free] = (torch.arange(len(choices))[:, None] >> torch.arange(len(free))) & 1 == 1
        choices[:, list(unit.edges)] |= self._necessary[list(unit.edges)]
        return choices

    def _extended(self, sets: Kept, choices: Choices) -> Bool[Tensor, "extended edge"]:
        """Return the union of every set with every choice of edges into a unit."""
        if len(sets) * len(choices) > MOST_CHOICES:
            raise _GaveUp
        self.choices += len(sets) * len(choices)
        return (sets[:, None] | choices).flatten(0, 1)

    def _behaviours(self, kept: Kept, number: int, places: Places) -> Int[Tensor, " set"]:
        """Return a number that identifies the behaviour of each partial circuit after a unit.

        It depends on which nodes have incoming edges but no outgoing ones yet, as those still need one: what completes
        one partial circuit need not complete another.
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
        """Return whether each set has a dead edge: its nodes have no outgoing edge, and no later unit reads them.

        Edges into nodes that have no outgoing edge in `edges` are not found; that costs time and loses no circuit.
        """
        dead = torch.zeros(len(kept), dtype=torch.bool)
        for readers in self._gone_through[number]:
            if readers.isdisjoint(self._to_be_read[number]):
                dead |= self._unread(kept, readers)
        return dead

    def _unread(self, kept: Kept, readers: frozenset[Node]) -> Bool[Tensor, " set"]:
        """Return whether each set has edges into destinations that exactly `readers` read, and none out of them."""
        into, out = self._around[readers]
        return kept[:, into].any(1) & ~kept[:, out].any(1)

    @cached_property
    def _around(self) -> dict[frozenset[Node], tuple[list[int], list[int]]]:
        """For each set of nodes: the edges into destinations that exactly they read, and the edges out of them."""
        found: dict[frozenset[Node], tuple[list[int], list[int]]] = {}
        for number, edge in enumerate(self._edges):
            readers = frozenset(self._graph.readers[edge.destination])
            out = [n for n, other in enumerate(self._edges) if other.source in readers]
            found.setdefault(readers, ([], out))[0].append(number)
        return found

    @cached_property
    def _to_be_read(self) -> list[list[Node]]:
        """After each unit: the nodes gone through that a later unit reads."""
        found: list[list[Node]] = []
        for number in range(len(self._units)):
            past = {node for unit in self._units[: number + 1] for node in unit.sources}
            later = {self._edges[edge].source for unit in self._units[number + 1 :] for edge in unit.edges}
            found.append(sorted(past & later))
        return found

    @cached_property
    def _gone_through(self) -> list[list[frozenset[Node]]]:
        """After each unit: the keys of `_around` with outgoing edges whose incoming edges were all chosen by then."""
        past = [{edge for unit in self._units[: n + 1] for edge in unit.edges} for n in range(len(self._units))]
        return [
            [readers for readers, (into, out) in self._around.items() if out and edges.issuperset(into)]
            for edges in past
        ]

    def _masks(self, sets: Kept) -> Iterator[Tensor]:
        """Yield masks `[set, source, destination]` of some sets at a time; each batch overwrites the last."""
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
    """Return the index at which each number from 0 on first occurs."""
    first = torch.full((int(number.max()) + 1 if len(number) else 0,), len(number))
    return first.scatter_reduce_(0, number, torch.arange(len(number)), "amin")


def _common_of_each(sets: Kept, number: Int[Tensor, " set"]) -> Bool[Tensor, "distinct edge"]:
    """Return the edges that all sets with the same number have in common, for each number from 0 on."""
    shared = torch.ones(int(number.max()) + 1, sets.shape[1], dtype=torch.uint8)
    return shared.scatter_reduce_(0, number[:, None].expand(sets.shape), sets.to(torch.uint8), "amin").bool()


def _minimal_of_each(sets: Kept, group: Int[Tensor, " set"]) -> Int[Tensor, " minimal"]:
    """Return the rows of the sets that contain no other set of their group; of equal sets, one row.

    Raises:
        _GaveUp: a group has more than `_EQUAL` sets.
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
            for start in range(0, len(rows), _COMPARED):  # by size, so that subsets come before supersets
                part = some[start : start + _COMPARED]
                inside = part @ some[: start + len(part)].T == some[: start + len(part)].sum(1)
                minimal[start : start + len(part)] = ~inside.tril(start - 1).any(1)
            rows = rows[minimal].sort().values
        kept.append(rows)
    return torch.cat(kept) if kept else order
