"""Polishing: edges of a circuit are taken out, and exchanged for others, until no trial of these makes it better.

Learned masks leave two things behind. Edges are kept that need not be, alone or together; and edges are kept that serve
less than others would. Both are found by running circuits, many masks in a forward: a local search over sets of edges,
known as floating selection (Pudil et al., Floating search methods in feature selection, 1994). What it ends with is
certified: all removals that `groups.removals` lists were run, and none of them was good enough.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import combinations
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from edgeprune.errors import ConfigError
from edgeprune.files.checkpoint import Allowed, check_state
from edgeprune.graph import Ablation, Circuit, Graph
from edgeprune.groups import SUBSETS, groups, masks_without, removals
from edgeprune.masks import edge_exists, edges_of, live, without_each
from edgeprune.methods.circuit_loss import CircuitLoss
from edgeprune.methods.settings import out_of_range, refuse

Kept = Bool[Tensor, "source destination"]
Circuits = Bool[Tensor, "circuit source destination"]

_LESS: Final = 0.01
"""Share by which more or other edges have to lower the loss."""

_ROUNDING: Final = 1e-6
"""Loss that counts as none, and by which they have to lower it at the least."""

_PAIRS: Final = 1024
"""Pairs of groups that are taken out on trial in the end, at the most; where there are more, none is."""

_TOGETHER: Final = 256
"""Masks in one call."""

_EACH: Final = 64
"""Edges of a circuit up to which it is run without each of them to see which are missed least."""

_ROOM: Final = 2**33
"""Bytes of the masks of a circuit without each of its edges, at the most."""

_AT_ONCE: Final = 0.1
"""Share of the edges too many that go at once."""


@dataclass(frozen=True, kw_only=True)
class PolishConfig:
    """How much is tried."""

    additions: int = 64
    """Edges that are tried as additions, at the most: those whose masks have the steepest derivatives."""

    exchanges: int = 12
    """Additions that serve best on the first inputs, and removals that harm least: each of those is tried with each of
    these, and any two of those together where edges are missing."""

    nodes: int = 3
    """Nodes that are added with all their edges, those that serve best on the first inputs, and then cut down."""

    def __post_init__(self) -> None:
        refuse(out_of_range(self, counts=("additions", "exchanges", "nodes")))


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The least loss of so many edges, or the fewest edges within a tolerance: one of the two."""

    edges: int | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        faults = out_of_range(self, counts=("edges",), positive=("tolerance",))
        if (self.edges is None) == (self.tolerance is None):
            faults.append(f"edges or a tolerance, and not both; got {self.edges} and {self.tolerance}")
        refuse(faults)


def check_room(graph: Graph, edges: int) -> None:
    """Refuse a circuit of so many edges whose masks would not fit.

    Raises:
        ConfigError: they would not.
    """
    room = edges * len(graph.sources) * len(graph.destinations)
    if not has_room(len(graph.sources), len(graph.destinations), edges):
        raise ConfigError(
            f"Expected a circuit of fewer edges to polish, as a mask is held without each of them; those of {edges:,} "
            f"edges take {room / 2**30:.0f} GiB, and {_ROOM / 2**30:.0f} GiB are the most"
        )


def last_round(sources: int, destinations: int, edges: int, config: PolishConfig) -> int:
    """Circuits of so many edges that are run once nothing is better, at the most: exchanges, then the certificate.

    Of nodes that are lacking a few more are run.
    """
    small = total = 0
    for size in range(1, edges + 1):
        total += math.comb(edges, size)
        if total > SUBSETS and size > 1:
            break
        small = total
    grouped = min(destinations + 3 * sources, 4 * edges)  # an edge is in four groups
    pairs = min(math.comb(grouped, 2), _PAIRS)
    return config.additions + edges + config.exchanges**2 + small + grouped + pairs


def has_room(sources: int, destinations: int, edges: int) -> bool:
    """Whether the masks of a circuit without each of so many edges fit."""
    return edges * sources * destinations <= _ROOM


class Step(IntEnum):
    """What is done next."""

    SHRINK = 0
    GROW = 1
    EXCHANGE = 2
    CERTIFY = 3
    DONE = 4


class Polish:
    """The state of one run.

    Args:
        loss: runs circuits; it is nowhere below 0.
        goal: what is asked for.
        kept: the circuit to begin with; its dead edges go.
        config: how much is tried.

    Raises:
        ConfigError: the circuit is too large.
    """

    def __init__(self, loss: CircuitLoss, goal: Goal, kept: Kept, config: PolishConfig) -> None:
        self._run, self._graph, self._goal, self._config = loss, loss.graph, goal, config
        self.kept: Kept = live(self._graph, kept)
        check_room(self._graph, self.edges)
        self.step, self.moves, self.removals = Step.SHRINK, 0, 0
        self.loss = float(loss(self.kept[None].float())[0])

    @property
    def ended(self) -> bool:
        """Whether nothing is left to try."""
        return self.step == Step.DONE

    @property
    def edges(self) -> int:
        """How many there are now."""
        return int(self.kept.sum())

    @property
    def limit(self) -> float:
        """The loss up to which a circuit of fewer edges is better."""
        return max(self.loss, _ROUNDING) if self._goal.tolerance is None else self._goal.tolerance

    @property
    def _lower(self) -> float:
        """The loss up to which one of more, or other, edges is."""
        return self.loss if math.isinf(self.loss) else self.loss - max(_LESS * self.loss, _ROUNDING)

    @property
    def _wanted(self) -> int:
        """Edges below which it need not go."""
        return 0 if self._goal.edges is None else self._goal.edges

    def advance(self) -> None:
        """A few edges go, come or are exchanged, or what comes next is decided."""
        steps = {Step.SHRINK: self._shrink, Step.GROW: self._grow, Step.EXCHANGE: self._exchange}
        steps.get(self.step, self._certify)()

    def _take(self, kept: Kept, loss: float, then: Step) -> None:
        self.kept, self.loss, self.step, self.moves = kept, loss, then, self.moves + 1

    def _take_best(self, circuits: Circuits, limit: float, then: Step) -> bool:
        """Take the best of some circuits, if one is within the limit."""
        if not len(circuits):
            return False
        number, loss = self._run.best(circuits.float(), limit=limit)
        if math.isfinite(loss):
            self._take(circuits[number], loss, then)
        return math.isfinite(loss)

    def _shrink(self) -> None:
        """Take out what is missed least, or a share of what is too much; of removals, those run best on the first
        inputs are run on all."""
        excess, limit = self.edges - self._wanted, math.inf if self._goal.tolerance is None else self.limit
        self.step = Step.GROW
        if excess <= 0:
            return
        smaller = self._smaller()
        smaller = smaller[_sizes(smaller) >= self._wanted]
        smaller = smaller[self._order(smaller, per_edge=True)]
        if (many := int(_AT_ONCE * excess)) > 1:
            fewer = live(self._graph, smaller[:many].all(0))
            loss = float(self._run(fewer[None].float(), limit=limit)[0])
            if math.isfinite(loss) and int(fewer.sum()) >= self._wanted:
                self._take(fewer, loss, Step.SHRINK)
                return
        self._take_best(smaller[: self._config.exchanges], limit, Step.SHRINK)

    def _grow(self) -> None:
        """Add an edge, two, or a node, whatever serves best, where edges are missing."""
        self.step, missing = Step.EXCHANGE, self._wanted - self.edges
        if missing <= 0:
            return
        larger = self._larger()
        single = larger[_sizes(larger) == self.edges + 1]  # what is left of a node may be as large, but is no addition
        single = single[self._order(single)]
        larger = _with(larger[_sizes(larger) <= self._wanted], self._cut_nodes(larger, self._wanted))
        if missing > 1:
            larger = _with(larger, list(self._pairs(single)))
        if (many := int(_AT_ONCE * missing)) > 1 and len(single):
            larger = _with(larger, [single[:many].any(0)])
        self._take_best(larger, self._lower, Step.GROW)

    def _pairs(self, single: Circuits) -> Iterator[Kept]:
        """Two additions together: of those that serve best, and any two from one source to one head.

        To read what it reads at a head's keys alone, and not at its values, may do harm.
        """
        cells = torch.nonzero(single & ~self.kept)[:, 1:].tolist()
        ends = [(row, self._graph.destinations[column].owner) for row, column in cells]
        for one, other in combinations(range(len(single)), 2):
            if other < self._config.exchanges or ends[one] == ends[other]:
                yield single[one] | single[other]

    def _exchange(self) -> None:
        """Add what serves best, and take out as many again: kept where the loss falls."""
        some, size = self._config.exchanges, self.edges
        larger, without = self._larger(), without_each(self.kept, torch.nonzero(self.kept))
        single = larger[_sizes(larger) == size + 1]
        single, without = single[self._order(single)[:some]] & ~self.kept, without[self._order(without)[:some]]
        exchanged = (single[:, None] | without[None]).flatten(0, 1)
        tried = live(self._graph, _with(exchanged, self._cut_nodes(larger, size)))
        if not self._take_best(tried[_sizes(tried) <= size].unique(dim=0), self._lower, Step.SHRINK):
            self.step = Step.CERTIFY

    def _certify(self) -> None:
        """Run every removal that is listed; all ends where none is good enough."""
        listed = sorted(edges_of(self._graph, self.kept))
        masks = masks_without(self._graph, listed, removals(self._graph, listed, pairs=_PAIRS))
        losses, self.removals = torch.cat([self._run(e, limit=self.limit) for e in masks.split(_TOGETHER)]), len(masks)
        good = torch.nonzero((losses <= self.limit) & losses.isfinite())[:, 0].tolist()
        self.step = Step.DONE
        if good:
            best = min(good, key=lambda n: (int(masks[n].sum()), float(losses[n])))
            self._take(live(self._graph, masks[best] > 0), float(losses[best]), Step.SHRINK)

    def _smaller(self) -> Circuits:
        """What is left without each edge, or each group of edges, and without what is dead then."""
        listed = sorted(edges_of(self._graph, self.kept))
        in_groups = masks_without(self._graph, listed, groups(self._graph, listed)) > 0
        return live(self._graph, torch.cat([without_each(self.kept, torch.nonzero(self.kept)), in_groups])).unique(
            dim=0
        )

    def _larger(self) -> Circuits:
        """The circuit with one more edge, for each that would be alive, and with each node that it lacks."""
        graph, kept = self._graph, self.kept
        absent = edge_exists(graph) & ~kept
        read, written = kept.any(1), torch.zeros(len(graph.sources), dtype=torch.bool)
        leads_on = torch.tensor([node.kind == "logits" for node in graph.destinations])
        of_node = torch.zeros(len(graph.sources), len(graph.destinations), dtype=torch.bool)
        for column, node in enumerate(graph.destinations):
            readers = [graph.source_index[reader] for reader in graph.readers[node] if reader in graph.source_index]
            leads_on[column] |= bool(read[readers].any())
            written[readers] |= kept[:, column].any()
            of_node[readers, column] = True
        single = torch.nonzero(absent & leads_on)
        if len(single) > self._config.additions:
            slopes = self._run.gradient(kept.float())[single[:, 0], single[:, 1]]
            single = single[slopes.argsort(stable=True)[: self._config.additions]]
        larger = kept.repeat(len(single), 1, 1)
        larger[torch.arange(len(single)), single[:, 0], single[:, 1]] = True
        sources = written | torch.tensor([node.stage == 0 for node in graph.sources])
        nodes = [
            kept
            | (absent & sources[:, None] & of_node[row])
            | (absent & leads_on & (torch.arange(len(read)) == row)[:, None])
            for row in torch.nonzero(~read)[:, 0].tolist()
        ]
        nodes = live(graph, torch.stack(nodes)) if nodes else larger[:0]
        return torch.cat([larger, nodes[_sizes(nodes) > self.edges]])

    def _cut_nodes(self, larger: Circuits, size: int) -> list[Kept]:
        """Circuits with a node that was lacking, those that serve best on the first inputs, cut down to a size."""
        nodes = larger[_sizes(larger) > max(size, self.edges + 1)]
        return [self._cut(each, size) for each in nodes[self._order(nodes)[: self._config.nodes]]]

    def _cut(self, kept: Kept, size: int) -> Kept:
        """Take out what is missed least until so many edges are left, half of the excess at a time.

        Where there are many edges, that is to first order, which sees nothing beyond a step.
        """
        while (excess := int(kept.sum()) - size) > 0:
            cells = torch.nonzero(kept)
            if len(cells) <= _EACH:
                missed = self._run.glance(without_each(kept, cells).float())
            else:
                missed = -self._run.gradient(kept.float())[kept]
            gone = cells[missed.argsort(stable=True)[: math.ceil(excess / 2)]]
            kept = kept.clone()
            kept[gone[:, 0], gone[:, 1]] = False
            kept = live(self._graph, kept)
        return kept

    def _order(self, circuits: Circuits, *, per_edge: bool = False) -> Tensor:
        """From the best on the first inputs to the worst; by what each edge that went has cost, if asked for."""
        losses = torch.cat([self._run.glance(some.float()) for some in circuits.split(_TOGETHER)])
        if per_edge:
            losses = (losses - self._run.glance(self.kept[None].float())) / (self.edges - _sizes(circuits))
        return losses.argsort(stable=True)

    def circuit(self, ablation: Ablation) -> Circuit:
        """The circuit as it is now."""
        return Circuit(self._graph, ablation, edges_of(self._graph, self.kept))

    def state(self) -> dict[str, Tensor]:
        """All that is needed to go on."""
        return {
            "kept": self.kept,
            "loss": torch.tensor(self.loss, dtype=torch.float64),
            "at": torch.tensor([self.step, self.moves, self.removals, self._run.masks_run]),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave.

        Raises:
            ValueError: it is none.
        """
        own = self.state()
        rules = {
            "kept": Allowed(like=own["kept"]),
            "loss": Allowed(like=own["loss"], least=0),
            "at": Allowed(like=own["at"], least=0),
        }
        check_state(state, rules)
        if state["at"][0] > Step.DONE or bool((state["kept"] & ~edge_exists(self._graph)).any()):
            raise ValueError("it has edges that there are not, or a step")
        self.kept, self.loss = state["kept"].clone(), float(state["loss"])
        step, self.moves, self.removals, self._run.masks_run = state["at"].tolist()
        self.step = Step(step)


def polish(run: Polish, *, moved: Callable[[Polish], None] | None = None, progress: bool = False) -> None:
    """Go on to the end.

    Args:
        run: where it stands.
        moved: is called after every step.
        progress: show a progress bar on standard error, if that is a terminal.
    """
    with tqdm(desc="polishing", initial=run.moves, disable=None if progress else True) as bar:
        while not run.ended:
            bar.set_postfix_str(f"{run.step.name.lower()}: {run.edges} edges, loss {run.loss:.3g}", refresh=False)
            run.advance()
            bar.update()
            if moved is not None:
                moved(run)


def _sizes(circuits: Circuits) -> Float[Tensor, " circuit"]:
    return circuits.flatten(1).sum(1).float()


def _with(circuits: Circuits, others: Sequence[Kept]) -> Bool[Tensor, "more source destination"]:
    return torch.cat([circuits, *(other[None] for other in others)])
