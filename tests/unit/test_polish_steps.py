"""Every step of polishing beside one that is written down in sets of edges, from many circuits and under many goals."""

import math
from typing import ClassVar

import pytest
import torch
from polish_in_sets import EXISTS, GRAPH, PAIRS, Drawn, Reference

from edgeprune.errors import ConfigError
from edgeprune.graph import Circuit
from edgeprune.masks import edges_of, live
from edgeprune.methods import polish as polishing
from edgeprune.methods.polish import Goal, Polish, PolishConfig, Step, check_room, last_round, polish


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


@pytest.mark.parametrize("additions", [3, 8, 64])
def test_what_is_tried_as_larger_is_an_edge_that_is_read_or_a_node_with_all_its_edges(additions):
    for seed in range(16):
        loss, kept, config = Drawn(seed), drawn(seed, (0.2, 0.4)[seed % 2]), PolishConfig(additions=additions)
        run, other = (
            Polish(loss, Goal(edges=9), kept, config),
            Reference(loss, Goal(edges=9), edges_of(GRAPH, kept), config),
        )
        larger = [edges_of(GRAPH, each) for each in run._larger()]
        assert set(larger) == set(other.larger()) and len(larger) <= additions + len(GRAPH.sources)


@pytest.mark.parametrize("each", [1, None, 64])  # or as many as there are
@pytest.mark.parametrize("size", [0, 3, 8])
def test_a_circuit_is_cut_down_by_what_is_missed_least(monkeypatch, each, size):
    """Of up to so many edges each is left out on trial; of more, slopes say what is missed."""
    for seed in range(6):
        loss, kept = Drawn(seed), drawn(seed, 0.6)
        at = int(kept.sum()) if each is None else each
        monkeypatch.setattr(polishing, "_EACH", at)
        run = Polish(loss, Goal(edges=9), kept, PolishConfig())
        other = Reference(loss, Goal(edges=9), edges_of(GRAPH, kept), PolishConfig(), each=at)
        assert edges_of(GRAPH, run._cut(run.kept, size)) == other.cut(other.kept, size)


def test_of_no_circuits_none_is_the_best():
    run = Polish(Drawn(0), Goal(edges=9), drawn(0, 0.6), PolishConfig())
    none = run.kept[None][:0]
    assert run._order(none).shape == run._order(none, per_edge=True).shape == (0,)
    assert run._take_best(none, math.inf, Step.GROW) is False and run.step == Step.SHRINK


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


def test_edges_are_added_up_to_the_size_however_little_they_help():
    class Slight(Drawn):
        """A loss of which each edge takes a thousandth."""

        def loss(self, masks):
            return (1 - 0.001 * masks.flatten(-2).sum(-1)).double()

    kept = drawn(0, 0.35)
    run = Polish(Slight(0), Goal(edges=int(kept.sum()) + 5), kept, PolishConfig())
    run.step = Step.GROW
    while run.step == Step.GROW:
        run.advance()
    assert run.edges == int(kept.sum()) + 5 and run.loss == pytest.approx(1 - 0.001 * run.edges)


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
    """Of 3 edges all 7 sets are run, and of very many each edge alone; an edge is in four groups, and pairs are few.

    Each exchange is glanced at and run; and the full graph is cut down, from 1,024 edges on, half of the excess a time.
    """
    config = PolishConfig(additions=10, exchanges=3, nodes=2)
    assert last_round(2, 5, 3, config) == 10 + 3 + 2 * 9 + (10 + 6 + 4) + 7 + 11 + math.comb(11, 2)
    cut = 1024 + 513 + 258 + 130 + 66 + 34 + 18 + 10 + 6 + 4
    assert last_round(99, 99, 3, config) == 10 + 3 + 2 * 9 + cut + 7 + 12 + math.comb(12, 2)
    assert last_round(99, 99, 100_000, config) == 10 + 100_000 + 2 * 9 + 100_000 + 396 + 1024
    assert last_round(2, 5, 0, config) == 10 + 2 * 9 + (10 + 5 + 2 + 1)


@pytest.mark.parametrize(("subsets", "small"), [(4, 5), (14, 5), (15, 15), (24, 15), (25, 25)])
def test_sets_of_a_size_are_counted_where_all_up_to_it_may_be(monkeypatch, subsets, small):
    """Of 5 edges there are 5 alone, 15 with all pairs, 25 with three of them."""
    monkeypatch.setattr(polishing, "SUBSETS", subsets)
    assert last_round(1, 1, 5, PolishConfig(additions=1, exchanges=1)) == 1 + 5 + 2 * 1 + small + 4 + 6


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


def test_a_better_start_has_the_size_that_was_asked_for_where_growth_was_stuck(monkeypatch):
    """And the masks that it takes fit into the room that there is."""
    seen = []
    loss, kept = Drawn(0), drawn(0, 0.35)
    run = Polish(loss, Goal(edges=int(kept.sum()) + 4), kept, CONFIGS[1])
    cut = Polish._cut

    def noted(self, circuit, size, *, each=None):
        if each is not None:
            seen.append((int(circuit.sum()), size, each))
        return cut(self, circuit, size, each=each)

    monkeypatch.setattr(Polish, "_cut", noted)
    monkeypatch.setattr(Polish, "_take_promising", lambda *_: False)
    monkeypatch.setattr(polishing, "_ROOM", 7 * kept.numel() + 1)
    run.step = Step.EXCHANGE
    run.advance()
    assert seen == [(len(GRAPH.edges), int(kept.sum()) + 4, 7)]
