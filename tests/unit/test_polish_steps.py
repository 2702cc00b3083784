"""Every step of polishing beside one that is written down in sets of edges, from many circuits and under many goals."""

import math
from itertools import combinations
from typing import ClassVar

import pytest
import torch

from edgeprune.errors import ConfigError
from edgeprune.graph import Circuit, Graph
from edgeprune.groups import groups, removals
from edgeprune.masks import edge_exists, edges_of, live, mask_of
from edgeprune.methods import polish as polishing
from edgeprune.methods.circuit_loss import CircuitLoss
from edgeprune.methods.polish import Goal, Polish, PolishConfig, Step, check_room, last_round, polish

GRAPH = Graph.transformer(embeddings=("embed",), layers=2, heads=1)
"""23 edges."""

EDGES = frozenset(GRAPH.edges)
EXISTS = edge_exists(GRAPH)
CELLS = EXISTS.nonzero()


PAIRS = 60
"""Pairs of groups that are tried in the end, in place of many more."""


class Drawn(CircuitLoss):
    """A drawn loss of the edges that are missing, alone and in pairs; on first inputs it is a little another one."""

    graph, inputs = GRAPH, 1

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        count = len(CELLS)
        self.alone = torch.rand(count, generator=generator).double() ** 3
        self.pairs = 0.3 * torch.randn(count, count, generator=generator).double()
        self.first = 0.2 * torch.rand(count, generator=generator).double()
        self.slopes = torch.randn(count, generator=generator).double()
        self.masks_run = 0

    def loss(self, masks):
        missing = 1 - masks[..., CELLS[:, 0], CELLS[:, 1]].double()
        return (missing @ self.alone + ((missing @ self.pairs) * missing).sum(-1)).abs()

    def __call__(self, masks, *, limit=math.inf):
        losses = self.loss(masks)
        return torch.where(losses <= limit, losses, torch.inf)

    def glance(self, masks):
        missing = 1 - masks[..., CELLS[:, 0], CELLS[:, 1]].double()
        return self.loss(masks) + missing @ self.first

    def best(self, masks, *, limit=math.inf):
        losses = self(masks, limit=limit)
        return int(losses.argmin()), float(losses.min())

    def gradient(self, mask):
        at = self.slopes * (1 + mask.sum() / 50)
        return torch.zeros(EXISTS.shape).double().masked_scatter(EXISTS, at)


class Reference:
    """The same steps in sets of edges."""

    def __init__(self, loss, goal, kept, config, *, at_once=0.1, each=64):
        self.run, self.config, self.at_once, self.each = loss, config, at_once, each
        self.tolerance, self.wanted = goal.tolerance, goal.edges or 0
        self.known, self.glanced = {}, {}
        self.kept, self.loss = kept, self.of(kept)
        self.step, self.moves, self.removals = Step.SHRINK, 0, 0

    def of(self, edges):
        if edges not in self.known:
            self.known[edges] = float(self.run.loss(mask_of(GRAPH, edges)))
        return self.known[edges]

    def first(self, edges):
        if edges not in self.glanced:
            self.glanced[edges] = float(self.run.glance(mask_of(GRAPH, edges)))
        return self.glanced[edges]

    def slope(self, edges, edge):
        return float(self.run.gradient(mask_of(GRAPH, edges))[GRAPH.position(edge)])

    @staticmethod
    def live(edges):
        alive = set()
        while True:
            more = {
                edge for edge in edges
                if edge.destination.kind == "logits" or any(
                    edge.destination in [d for d, readers in GRAPH.readers.items() if other.source in readers]
                    for other in alive
                )
            }  # fmt: skip
            if more == alive:
                return frozenset(alive)
            alive = more

    @property
    def limit(self):
        return max(self.loss, 1e-6) if self.tolerance is None else self.tolerance

    @property
    def lower(self):
        return self.loss - max(0.01 * self.loss, 1e-6)

    def take(self, circuits, limit, then, otherwise):
        """The best, if it is within the limit."""
        best = min(circuits, key=self.of, default=None)
        if best is not None and self.of(best) <= limit:
            self.kept, self.loss, self.step, self.moves = best, self.of(best), then, self.moves + 1
        else:
            self.step = otherwise

    def advance(self):
        (self.shrink, self.grow, self.exchange, self.certify)[self.step]()

    def shrink(self):
        excess, limit = len(self.kept) - self.wanted, math.inf if self.tolerance is None else self.tolerance
        if excess <= 0:
            self.step = Step.GROW
            return
        listed = sorted(self.kept)
        sets = [[edge] for edge in listed] + [
            [edge for edge, gone in zip(listed, row, strict=True) if gone] for row in groups(GRAPH, listed).tolist()
        ]
        smaller = {self.live(self.kept - {*some}) for some in sets}
        cost = {each: self.first(each) - self.first(self.kept) for each in smaller if len(each) >= self.wanted}
        ordered = sorted(cost, key=lambda each: cost[each] / (len(self.kept) - len(each)))
        many = int(self.at_once * excess)
        if many > 1:
            fewer = self.live(frozenset.intersection(*ordered[:many]))
            if self.of(fewer) <= limit and len(fewer) >= self.wanted:
                self.take([fewer], limit, Step.SHRINK, Step.GROW)
                return
        self.take(ordered[: self.config.exchanges], limit, Step.SHRINK, Step.GROW)

    def larger(self):
        def leads_on(destination):
            reading = GRAPH.readers[destination]
            return destination.kind == "logits" or any(edge.source in reading for edge in self.kept)

        single = [edge for edge in sorted(EDGES - self.kept) if leads_on(edge.destination)]
        if len(single) > self.config.additions:
            slopes = {edge: self.slope(self.kept, edge) for edge in single}
            single = sorted(single, key=slopes.__getitem__)[: self.config.additions]
        written = {
            source
            for source in GRAPH.sources
            if source.stage == 0 or any(source in GRAPH.readers[edge.destination] for edge in self.kept)
        }
        nodes = set()
        for node in GRAPH.sources:
            if not any(edge.source == node for edge in self.kept):
                into = {e for e in EDGES if node in GRAPH.readers[e.destination] and e.source in written}
                nodes.add(
                    self.live(self.kept | into | {e for e in EDGES if e.source == node and leads_on(e.destination)})
                )
        return [self.kept | {edge} for edge in single] + [each for each in nodes if len(each) > len(self.kept)]

    def cut_nodes(self, larger, size):
        nodes = [each for each in larger if len(each) > max(size, len(self.kept) + 1)]
        return [self.cut(each, size) for each in sorted(nodes, key=self.first)[: self.config.nodes]]

    def cut(self, kept, size):
        while (excess := len(kept) - size) > 0:
            if len(kept) <= self.each:
                missed = {edge: self.first(kept - {edge}) for edge in kept}
            else:
                missed = {edge: -self.slope(kept, edge) for edge in kept}
            kept = self.live(kept - {*sorted(missed, key=missed.__getitem__)[: math.ceil(excess / 2)]})
        return kept

    def grow(self):
        missing = self.wanted - len(self.kept)
        if missing <= 0:
            self.step = Step.EXCHANGE
            return
        larger = self.larger()
        tried = [each for each in larger if len(each) <= self.wanted]
        tried += self.cut_nodes(larger, self.wanted)
        single = sorted({each for each in larger if len(each) == len(self.kept) + 1}, key=self.first)
        if missing > 1:
            for (_, one), (place, other) in combinations(enumerate(single), 2):
                (first,), (second,) = one - self.kept, other - self.kept
                alike = (first.source, first.destination.owner) == (second.source, second.destination.owner)
                if place < self.config.exchanges or alike:
                    tried.append(one | other)
        if int(self.at_once * missing) > 1 and single:
            tried.append(frozenset.union(*single[: int(self.at_once * missing)]))
        self.take(tried, self.lower, Step.GROW, Step.EXCHANGE)

    def exchange(self):
        size, some, larger = len(self.kept), self.config.exchanges, self.larger()
        single = sorted((each for each in larger if len(each) == size + 1), key=self.first)[:some]
        without = sorted((self.kept - {edge} for edge in self.kept), key=self.first)[:some]
        tried = [self.live(one - self.kept | other) for one in single for other in without]
        tried += self.cut_nodes(larger, size)
        self.take([each for each in tried if len(each) <= size], self.lower, Step.SHRINK, Step.CERTIFY)

    def certify(self):
        listed = sorted(self.kept)
        rows = removals(GRAPH, listed, pairs=PAIRS).tolist()
        masks = [frozenset(edge for edge, gone in zip(listed, row, strict=True) if not gone) for row in rows]
        self.removals, good = len(masks), [mask for mask in masks if self.of(mask) <= self.limit]
        self.step = Step.DONE
        if good:
            best = min(good, key=lambda mask: (len(mask), self.of(mask)))
            self.kept, self.loss, self.step, self.moves = self.live(best), self.of(best), Step.SHRINK, self.moves + 1


def drawn(seed, share):
    generator = torch.Generator().manual_seed(seed)
    return live(GRAPH, EXISTS & (torch.rand(EXISTS.shape, generator=generator) < share))


CONFIGS = (PolishConfig(), PolishConfig(additions=4, exchanges=2, nodes=1), PolishConfig(exchanges=3, nodes=2))
GOALS = (Goal(edges=5), Goal(edges=12), Goal(tolerance=0.2), Goal(tolerance=2.0))


@pytest.mark.parametrize("step", [Step.SHRINK, Step.GROW, Step.EXCHANGE, Step.CERTIFY])
@pytest.mark.parametrize(("at_once", "each"), [(0.1, 64), (0.4, 5)])
def test_each_step_is_the_one_that_is_written_down(monkeypatch, step, at_once, each):
    monkeypatch.setattr(polishing, "_AT_ONCE", at_once)
    monkeypatch.setattr(polishing, "_EACH", each)
    monkeypatch.setattr("edgeprune.groups.SUBSETS", 40)
    monkeypatch.setattr(polishing, "_PAIRS", PAIRS)
    followed = set()
    for seed in range(12):
        loss, kept = Drawn(seed), drawn(seed, (0.25, 0.5, 0.8, 1.0)[seed % 4])
        goal, config = GOALS[(seed // 2) % 4], CONFIGS[seed % 3]
        run = Polish(loss, goal, kept, config)
        other = Reference(loss, goal, edges_of(GRAPH, kept), config, at_once=at_once, each=each)
        run.step = other.step = step
        run.advance()
        other.advance()
        assert edges_of(GRAPH, run.kept) == other.kept, seed
        assert run.loss == pytest.approx(other.loss, abs=1e-9)
        assert (run.step, run.moves, run.removals) == (other.step, other.moves, other.removals)
        followed.add(run.step)
    assert len(followed) == 2


@pytest.mark.parametrize("missing", [0, 1, 2, 3, 5])
def test_an_edge_two_or_as_many_as_a_share_of_what_is_missing_are_added(monkeypatch, missing):
    """Whatever is near the bounds of each: shares of one, two or three edges, and pairs beyond the first."""
    grown = 0
    for seed in range(16):
        at_once = (0.1, 0.6)[seed % 2]
        monkeypatch.setattr(polishing, "_AT_ONCE", at_once)
        loss, kept, config = Drawn(seed), drawn(seed, 0.35), PolishConfig(exchanges=1 + seed // 2 % 2, nodes=2)
        goal = Goal(edges=int(kept.sum()) + missing)
        run, other = (
            Polish(loss, goal, kept, config),
            Reference(loss, goal, edges_of(GRAPH, kept), config, at_once=at_once),
        )
        run.step = other.step = Step.GROW
        run.advance()
        other.advance()
        assert edges_of(GRAPH, run.kept) == other.kept and run.step == other.step
        grown += run.moves
    assert grown == 0 if missing == 0 else grown > 3


def test_a_circuit_of_no_edge_is_no_addition():
    class Best(Drawn):
        """Where nothing is kept."""

        def loss(self, masks):
            return torch.where(masks.flatten(-2).any(-1), super().loss(masks) + 1, 0.0)

    kept = drawn(0, 0.35)
    run = Polish(Best(0), Goal(edges=int(kept.sum()) + 3), kept, PolishConfig())
    run.step = Step.GROW
    run.advance()
    assert run.loss >= 1 and run.edges >= int(kept.sum())


@pytest.mark.parametrize("goal", [Goal(tolerance=0.25), Goal(edges=1)])
def test_a_removal_at_the_limit_is_good_enough(goal):
    class Same(Drawn):
        def loss(self, masks):
            return torch.full(masks.shape[:-2], 0.25).double()

    run = Polish(Same(0), goal, drawn(0, 0.3), PolishConfig())
    run.step = Step.CERTIFY
    run.advance()
    assert (run.edges, run.step, run.moves) == (0, Step.SHRINK, 1)


@pytest.mark.parametrize("number", range(4))
def test_whole_searches_go_the_same_way(monkeypatch, number):
    monkeypatch.setattr("edgeprune.groups.SUBSETS", 40)
    monkeypatch.setattr(polishing, "_PAIRS", PAIRS)
    loss, kept, goal = Drawn(50 + number), drawn(number, 0.7), GOALS[number]
    run, other = Polish(loss, goal, kept, CONFIGS[1]), Reference(loss, goal, edges_of(GRAPH, kept), CONFIGS[1])
    while not run.ended:
        run.advance()
        other.advance()
        assert edges_of(GRAPH, run.kept) == other.kept and run.step == other.step
    assert run.moves == other.moves > 0 and run.removals == other.removals > 0


@pytest.mark.parametrize("step", list(Step)[:-1])
def test_where_no_circuit_has_a_loss_nothing_is_taken(step):
    class Infinite(Drawn):
        def loss(self, masks):
            return torch.full(masks.shape[:-2], math.inf)

    loss, kept = Infinite(0), drawn(0, 0.6)
    run = Polish(loss, Goal(edges=int(kept.sum()) + (3 if step == Step.GROW else -3)), kept, CONFIGS[1])
    run.step = step
    run.advance()
    assert torch.equal(run.kept, kept) and run.loss == math.inf and run.moves == 0
    assert run.step == {0: Step.GROW, 1: Step.EXCHANGE, 2: Step.CERTIFY, 3: Step.DONE}[step]


def test_dead_edges_of_what_it_begins_with_go_first():
    kept = EXISTS.clone()
    kept[:, [node.kind == "logits" for node in GRAPH.destinations]] = False
    run = Polish(Drawn(0), Goal(edges=3), kept, PolishConfig())
    assert run.edges == 0 and run.loss == pytest.approx(float(Drawn(0).loss(torch.zeros(EXISTS.shape))))
    assert (run.step, run.moves, run.removals, run.ended) == (Step.SHRINK, 0, 0, False)
    assert run.circuit("mean") == Circuit(GRAPH, "mean", frozenset())


# States


def test_a_state_holds_where_it_stands_and_is_given_back():
    loss = Drawn(1)
    run = Polish(loss, Goal(edges=5), drawn(1, 0.8), PolishConfig())
    run.step, run.moves, run.removals, run.loss, loss.masks_run = Step.EXCHANGE, 7, 8, 0.1, 9
    state = run.state()
    assert state.keys() == {"kept", "loss", "at"}
    assert (state["loss"].dtype, float(state["loss"]), state["at"].tolist()) == (torch.float64, 0.1, [2, 7, 8, 9])
    other = Polish(Drawn(1), Goal(edges=5), drawn(2, 0.5), PolishConfig())
    other.restore(state)
    assert torch.equal(other.kept, run.kept) and other.kept is not run.kept
    assert (other.step, other.moves, other.removals, other.loss, other._run.masks_run) == (Step.EXCHANGE, 7, 8, 0.1, 9)
    other.restore(state | {"at": torch.tensor([4, 0, 0, 0]), "loss": torch.tensor(0.0, dtype=torch.float64)})
    assert other.ended and other.step is Step.DONE
    for wrong in ({"at": torch.tensor([5, 0, 0, 0])}, {"kept": torch.ones_like(run.kept)}):
        with pytest.raises(ValueError, match=r"^it has edges that there are not, or a step$"):
            other.restore(state | wrong)
    for wrong in ({"at": torch.tensor([1, 0, -1, 0])}, {"loss": torch.tensor(-0.1, dtype=torch.float64)}):
        with pytest.raises(ValueError, match=r"is not from 0 to inf"):
            other.restore(state | wrong)


# What is asked for


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        ({}, "edges or a tolerance, and not both; got None and None"),
        ({"edges": 3, "tolerance": 0.1}, "edges or a tolerance, and not both; got 3 and 0.1"),
        ({"edges": 0}, "edges >= 1, got 0"),
        ({"tolerance": 0.0}, "0 < tolerance <= 1e+06, got 0.0"),
    ],
)
def test_a_goal_is_a_size_or_a_tolerance(goal, said):
    with pytest.raises(ConfigError) as error:
        Goal(**goal)
    assert str(error.value) == f"Expected {said}"
    Goal(edges=1)
    Goal(tolerance=1e-9)


@pytest.mark.parametrize("name", ["additions", "exchanges", "nodes"])
def test_something_is_to_be_tried(name):
    PolishConfig(**{name: 1})
    with pytest.raises(ConfigError, match=f"^Expected {name} >= 1, got 0$"):
        PolishConfig(**{name: 0})


def test_a_circuit_may_have_as_many_edges_as_there_is_room_for_masks(monkeypatch):
    size = len(GRAPH.sources) * len(GRAPH.destinations)
    monkeypatch.setattr(polishing, "_ROOM", 7 * size)
    check_room(GRAPH, 7)
    monkeypatch.setattr(polishing, "_ROOM", 3 * 2**30)
    with pytest.raises(ConfigError) as error:
        check_room(GRAPH, 100_000_000)
    assert str(error.value) == (
        "Expected a circuit of fewer edges to polish, as a mask is held without each of them; those of 100,000,000 "
        f"edges take {100_000_000 * size / 2**30:.0f} GiB, and 3 GiB are the most"
    )
    monkeypatch.setattr(polishing, "_ROOM", 7 * size - 1)
    with pytest.raises(ConfigError):
        check_room(GRAPH, 7)
    with pytest.raises(ConfigError):
        Polish(Drawn(0), Goal(edges=3), EXISTS, PolishConfig())


def test_the_last_round_is_counted():
    """Of 3 edges all 7 sets are run, and of very many each edge alone; an edge is in four groups, and pairs are few."""
    config = PolishConfig(additions=10, exchanges=3, nodes=2)
    assert last_round(2, 5, 3, config) == 10 + 3 + 9 + 7 + 11 + math.comb(11, 2)
    assert last_round(99, 99, 3, config) == 10 + 3 + 9 + 7 + 12 + math.comb(12, 2)
    assert last_round(99, 99, 100_000, config) == 10 + 100_000 + 9 + 100_000 + 396 + 1024
    assert last_round(2, 5, 0, config) == 10 + 9


@pytest.mark.parametrize(("subsets", "small"), [(4, 5), (14, 5), (15, 15), (24, 15), (25, 25)])
def test_sets_of_a_size_are_counted_where_all_up_to_it_may_be(monkeypatch, subsets, small):
    """Of 5 edges there are 5 alone, 15 with all pairs, 25 with three of them."""
    monkeypatch.setattr(polishing, "SUBSETS", subsets)
    assert last_round(1, 1, 5, PolishConfig(additions=1, exchanges=1)) == 1 + 5 + 1 + small + 4 + 6


# From beginning to end


class Bar:
    """What would be shown."""

    made: ClassVar = []

    def __init__(self, **given):
        self.given, self.shown, self.updates = given, [], 0
        Bar.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *given):
        pass

    def set_postfix_str(self, text, *, refresh):
        self.shown.append((text, refresh))

    def update(self):
        self.updates += 1


@pytest.mark.parametrize("progress", [True, False])
def test_polishing_goes_on_to_the_end_and_tells_of_each_step(monkeypatch, progress):
    monkeypatch.setattr(polishing, "tqdm", Bar)
    run, moved = Polish(Drawn(3), Goal(edges=5), drawn(3, 0.9), CONFIGS[1]), []
    first = (run.edges, run.loss)
    run.moves = 4
    polish(run, moved=lambda run: moved.append((run.step, run.edges)), progress=progress)
    bar = Bar.made[-1]
    assert run.ended and moved[-1] == (Step.DONE, run.edges)
    assert bar.given == {"desc": "polishing", "initial": 4, "disable": None if progress else True}
    assert bar.updates == len(moved) == len(bar.shown)
    assert bar.shown[0] == (f"shrink: {first[0]} edges, loss {first[1]:.3g}", False)
    again = Polish(Drawn(3), Goal(edges=5), drawn(3, 0.9), CONFIGS[1])
    polish(again)
    assert torch.equal(again.kept, run.kept) and Bar.made[-1].given["disable"] is True
