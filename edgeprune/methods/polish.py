"""Polishing: remove and exchange edges of a circuit until no trial improves it.

Learned masks leave two kinds of faults. Some edges could be removed, alone or together, and some are less useful than
others would be. Polishing finds both by running circuits, many masks per forward pass: a local search over sets of
edges, known as floating selection (Pudil et al., Floating search methods in feature selection, 1994). Where that is
stuck, the full graph, cut down to the same size, may be a better start. The result is certified: every removal listed
by `groups.removals` was run, and none was good enough.
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
"""Smallest relative decrease of the loss for which edges are added or exchanged."""

_ROUNDING: Final = 1e-6
"""Loss treated as 0, and smallest absolute decrease of the loss for which edges are added or exchanged."""

_PAIRS: Final = 1024
"""Largest number of pairs of groups whose removal is tried in the final step; if there are more, no pair is tried."""

_TOGETHER: Final = 256
"""Masks evaluated in one call."""

_EACH: Final = 64
"""Number of edges up to which the circuit is run without each edge, to see which matter least."""

_ROOM: Final = 2**33
"""Largest size, in bytes, of the masks of a circuit without each of its edges."""

_IN_CONTEXT: Final = 1024
"""Number of edges up to which the full graph, when it is cut down, is run without each edge; as `_EACH`."""

_AT_ONCE: Final = 0.1
"""Share of the excess edges that is removed at once, or of the missing edges that is added at once."""


@dataclass(frozen=True, kw_only=True)
class PolishConfig:
    """How many candidates each step tries."""

    additions: int = 64
    """Largest number of edges tried as additions: those whose mask entries have the steepest derivatives."""

    exchanges: int = 12
    """Number of best additions, and of least harmful removals, judged on the first inputs. Each of these additions is
    tried with each of these removals, and where edges are missing, with each other."""

    nodes: int = 3
    """Number of absent nodes added with all their edges, then cut down: those best on the first inputs."""

    def __post_init__(self) -> None:
        refuse(out_of_range(self, counts=("additions", "exchanges", "nodes")))


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The least loss at a given number of edges, or the fewest edges within a tolerance. Exactly one is given."""

    edges: int | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        faults = out_of_range(self, counts=("edges",), positive=("tolerance",))
        if (self.edges is None) == (self.tolerance is None):
            faults.append(f"edges or a tolerance, and not both; got {self.edges} and {self.tolerance}")
        refuse(faults)


def check_room(graph: Graph, edges: int) -> None:
    """Raise if the masks of a circuit with this many edges do not fit in memory.

    Raises:
        ConfigError: the masks do not fit.
    """
    room = edges * len(graph.sources) * len(graph.destinations)
    if not has_room(len(graph.sources), len(graph.destinations), edges):
        raise ConfigError(
            f"Expected a circuit of fewer edges to polish, as a mask is held without each of them; those of {edges:,} "
            f"edges take {room / 2**30:.0f} GiB, and {_ROOM / 2**30:.0f} GiB are the most"
        )


def last_round(sources: int, destinations: int, edges: int, config: PolishConfig) -> int:
    """Return the largest number of circuits that the last round runs: exchanges on trial, then the certificate.

    Circuits with an added node are not counted; they add a few more.
    """
    small = total = 0
    for size in range(1, edges + 1):
        total += math.comb(edges, size)
        if total > SUBSETS and size > 1:
            break
        small = total
    grouped = min(destinations + 3 * sources, 4 * edges)  # an edge is in at most four groups
    pairs = min(math.comb(grouped, 2), _PAIRS)
    tried, cut_to = config.additions + edges + 2 * config.exchanges**2, min(sources * destinations, _IN_CONTEXT)
    while cut_to > edges:  # the full graph, cut down
        tried, cut_to = tried + cut_to, cut_to - math.ceil((cut_to - edges) / 2)
    return tried + small + grouped + pairs


def has_room(sources: int, destinations: int, edges: int) -> bool:
    """Return whether the masks of a circuit without each of its `edges` edges fit in memory."""
    return edges * sources * destinations <= _ROOM


class Step(IntEnum):
    """The next step of a run."""

    SHRINK = 0
    GROW = 1
    EXCHANGE = 2
    CERTIFY = 3
    DONE = 4


class Polish:
    """The state of one polishing run.

    Args:
        loss: evaluates circuits; its losses are never below 0.
        goal: the number of edges or the tolerance to reach.
        kept: the initial circuit; its dead edges are dropped.
        config: how many candidates each step tries.

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
        """Number of edges of the current circuit."""
        return int(self.kept.sum())

    @property
    def limit(self) -> float:
        """Largest loss at which a circuit with fewer edges is better."""
        return max(self.loss, _ROUNDING) if self._goal.tolerance is None else self._goal.tolerance

    @property
    def _lower(self) -> float:
        """Largest loss at which a circuit with more, or other, edges is better."""
        return self.loss if math.isinf(self.loss) else self.loss - max(_LESS * self.loss, _ROUNDING)

    @property
    def _wanted(self) -> int:
        """Number of edges below which the circuit need not shrink."""
        return 0 if self._goal.edges is None else self._goal.edges

    def advance(self) -> None:
        """Run one step: remove, add or exchange a few edges, or go on to the next kind of step."""
        steps = {Step.SHRINK: self._shrink, Step.GROW: self._grow, Step.EXCHANGE: self._exchange}
        steps.get(self.step, self._certify)()

    def _take(self, kept: Kept, loss: float, then: Step) -> None:
        self.kept, self.loss, self.step, self.moves = kept, loss, then, self.moves + 1

    def _take_best(self, circuits: Circuits, limit: float, then: Step) -> bool:
        """Take the best of the given circuits if its loss is within the limit; return whether it is."""
        if not len(circuits):
            return False
        number, loss = self._run.best(circuits.float(), limit=limit)
        if math.isfinite(loss):
            self._take(circuits[number], loss, then)
        return math.isfinite(loss)

    def _take_promising(self, circuits: Circuits, limit: float, then: Step) -> bool:
        """Take the best of the circuits that lead on the first inputs, or else the best of the others."""
        if not len(circuits):
            return False
        ordered, some = circuits[self._order(circuits)], self._config.exchanges
        return self._take_best(ordered[:some], limit, then) or self._take_best(ordered[some:], limit, then)

    def _shrink(self) -> None:
        """Remove the least important edge or group, or a share of the excess edges. Only the removals that are best on
        the first inputs are run on all."""
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
        """Where edges are missing, add the best of: one edge, two edges, a share of the missing edges or all, a node.

        However little the loss falls: the size was asked for.
        """
        self.step, missing = Step.EXCHANGE, self._wanted - self.edges
        if missing <= 0:
            return
        larger = self._larger()
        single = larger[_sizes(larger) == self.edges + 1].unique(dim=0)  # before cut nodes of this size join
        single = single[self._order(single)]
        larger = _with(larger[_sizes(larger) <= self._wanted], self._cut_nodes(larger, self._wanted))
        if missing > 1:
            larger = _with(larger, list(self._pairs(single)))
        shares = sorted({int(_AT_ONCE * missing), missing // 2, missing} - {0, 1}) if len(single) else []
        larger = _with(larger, [single[:many].any(0) for many in shares])
        self._take_promising(larger, self.loss - (0 if math.isinf(self.loss) else _ROUNDING), Step.GROW)

    def _pairs(self, single: Circuits) -> Iterator[Kept]:
        """Yield pairs of additions: pairs of the best ones, and all pairs from one source to one head.

        Reading a source at a head's keys alone, and not at its values, may do harm.
        """
        cells = torch.nonzero(single & ~self.kept)[:, 1:].tolist()
        ends = [(row, self._graph.destinations[column].owner) for row, column in cells]
        for one, other in combinations(range(len(single)), 2):
            if other < self._config.exchanges or ends[one] == ends[other]:
                yield single[one] | single[other]

    def _exchange(self) -> None:
        """Add an edge or a node, or else many edges, and remove as many again: the best trial, if the loss falls."""
        some, size = self._config.exchanges, self.edges
        larger, without = self._larger(), without_each(self.kept, torch.nonzero(self.kept))
        single = larger[_sizes(larger) == size + 1].unique(dim=0)
        single, without = single[self._order(single)], without[self._order(without)[:some]]
        exchanged = ((single[:some] & ~self.kept)[:, None] | without[None]).flatten(0, 1)
        tried = live(self._graph, _with(exchanged, self._cut_nodes(larger, size)))
        if self._take_promising(tried[_sizes(tried) <= size].unique(dim=0), self._lower, Step.SHRINK):
            return
        everything = live(self._graph, edge_exists(self._graph))  # a better start, if what was learned is a poor one
        cut_down = self._cut(everything, max(size, self._wanted), each=min(_IN_CONTEXT, _ROOM // everything.numel()))
        if not self._take_best(cut_down[None], self._lower, Step.SHRINK):
            self.step = Step.CERTIFY

    def _certify(self) -> None:
        """Run every listed removal; polishing ends if none is good enough."""
        listed = sorted(edges_of(self._graph, self.kept))
        masks = masks_without(self._graph, listed, removals(self._graph, listed, pairs=_PAIRS))
        losses, self.removals = torch.cat([self._run(e, limit=self.limit) for e in masks.split(_TOGETHER)]), len(masks)
        good = torch.nonzero((losses <= self.limit) & losses.isfinite())[:, 0].tolist()
        self.step = Step.DONE
        if good:
            best = min(good, key=lambda n: (int(masks[n].sum()), float(losses[n])))
            self._take(live(self._graph, masks[best] > 0), float(losses[best]), Step.SHRINK)

    def _smaller(self) -> Circuits:
        """Return the circuit without each edge, and without each group of edges; dead edges are dropped too."""
        listed = sorted(edges_of(self._graph, self.kept))
        in_groups = masks_without(self._graph, listed, groups(self._graph, listed)) > 0
        return live(self._graph, torch.cat([without_each(self.kept, torch.nonzero(self.kept)), in_groups])).unique(
            dim=0
        )

    def _larger(self) -> Circuits:
        """Return the circuit with each absent edge that would be live, and with each absent node."""
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
        """Return the circuits with an added node that are best on the first inputs, each cut to `size` edges."""
        nodes = larger[_sizes(larger) > max(size, self.edges + 1)]
        return [self._cut(each, size) for each in nodes[self._order(nodes)[: self._config.nodes]]]

    def _cut(self, kept: Kept, size: int, *, each: int | None = None) -> Kept:
        """Remove the least important edges until `size` are left, half of the excess at a time.

        In large circuits importance is a first-order estimate, which does not see step-like effects.
        """
        while (excess := int(kept.sum()) - size) > 0:
            cells = torch.nonzero(kept)
            if len(cells) <= (_EACH if each is None else each):
                without = without_each(kept, cells)
                missed = torch.cat([self._run.glance(some.float()) for some in without.split(_TOGETHER)])
            else:
                missed = -self._run.gradient(kept.float())[kept]
            gone = cells[missed.argsort(stable=True)[: math.ceil(excess / 2)]]
            kept = kept.clone()
            kept[gone[:, 0], gone[:, 1]] = False
            kept = live(self._graph, kept)
        return kept

    def _order(self, circuits: Circuits, *, per_edge: bool = False) -> Tensor:
        """Rank circuits on the first inputs, best first; with `per_edge`, by the loss increase per removed edge."""
        losses = torch.cat([self._run.glance(some.float()) for some in circuits.split(_TOGETHER)])
        if per_edge:
            losses = (losses - self._run.glance(self.kept[None].float())) / (self.edges - _sizes(circuits))
        return losses.argsort(stable=True)

    def circuit(self, ablation: Ablation) -> Circuit:
        """Return the current circuit."""
        return Circuit(self._graph, ablation, edges_of(self._graph, self.kept))

    def state(self) -> dict[str, Tensor]:
        """Return everything needed to resume."""
        return {
            "kept": self.kept,
            "loss": torch.tensor(self.loss, dtype=torch.float64),
            "at": torch.tensor([self.step, self.moves, self.removals, self._run.masks_run]),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state that `state` returned.

        Raises:
            ValueError: it is not a valid state.
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
    """Run polishing to the end.

    Args:
        run: the state to start from.
        moved: called after every step.
        progress: show a progress bar on standard error if it is a terminal.
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
