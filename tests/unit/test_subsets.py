"""All subsets of a small graph's edges: which are run, which are true, and how close the closest was."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from edgeprune.errors import ModelError
from edgeprune.graph import Edge, Graph
from edgeprune.masks import mask_of
from tracr_bridge.certify import subsets as subsets_module
from tracr_bridge.certify.subsets import LossJudge, live_subsets, true_circuits

GRAPH = Graph.transformer(embeddings=("tok", "pos"), layers=1, heads=1)
SHARED = Graph.transformer(embeddings=("embed",), layers=1, heads=4, kv_heads=2)


def edges_of(*names: str) -> list[Edge]:
    return [Edge.parse(name) for name in names]


SMALL = edges_of("tok->m0", "pos->m0", "tok->a0.h0.v", "a0.h0->m0", "a0.h0->logits", "m0->logits", "tok->logits")


class Loss:
    """A loss that is said of each set of edges."""

    def __init__(self, graph: Graph, of: Any, inputs: int = 3) -> None:
        self.graph, self._of, self.inputs = graph, of, inputs
        self.masks_run, self.limits, self.sizes = 0, list[float](), list[int]()

    def __call__(self, masks, *, limit=float("inf")):
        kept = [frozenset(e for e in self.graph.edges if mask[self.graph.position(e)] > 0) for mask in masks]
        self.masks_run += len(kept)
        self.limits.append(limit)
        self.sizes.append(len(kept))
        return torch.tensor([self._of(edges) for edges in kept])


def is_live(graph: Graph, kept: frozenset[Edge]) -> bool:
    """Whether each edge leads on to the logits."""

    def leads_on(edge: Edge) -> bool:
        readers = graph.readers[edge.destination]
        return any(n.kind == "logits" for n in readers) or any(e.source in readers and leads_on(e) for e in kept)

    return all(map(leads_on, kept))


def every(edges: list[Edge]) -> list[frozenset[Edge]]:
    return [frozenset(some) for size in range(len(edges) + 1) for some in itertools.combinations(edges, size)]


@pytest.mark.parametrize(
    ("graph", "edges"),
    [
        (GRAPH, SMALL),
        (GRAPH, []),
        (GRAPH, edges_of("tok->a0.h0.q", "tok->a0.h0.k", "a0.h0->logits")),
        (GRAPH, edges_of("tok->m0", "pos->m0")),
        (SHARED, edges_of("embed->a0.h0.k", "embed->a0.h1.q", "a0.h0->logits", "a0.h1->m0", "a0.h2->m0", "m0->logits")),
    ],
)
def test_subsets_without_dead_edges_are_all_there_once(graph, edges):
    codes = live_subsets(graph, edges).tolist()
    found = [frozenset(edge for number, edge in enumerate(edges) if code >> number & 1) for code in codes]
    assert len(set(found)) == len(found)
    assert set(found) == {kept for kept in every(edges) if is_live(graph, kept)}


def test_as_many_subsets_as_are_asked_for_are_run_and_no_more(monkeypatch):
    many = len(live_subsets(GRAPH, SMALL))
    assert len(live_subsets(GRAPH, SMALL, most=many)) == many
    for of, number in ((None, len(SMALL)), (1234, "1,234")):
        with pytest.raises(ModelError) as caught:
            live_subsets(GRAPH, SMALL, most=many - 1, of=of)
        assert str(caught.value) == (
            f"Expected a graph of which all subsets can be run, at most {many - 1:,} without dead edges; this one has "
            f"{number} edges that can carry something, and more subsets: `edgeprune prune --tolerance KL --polish` "
            "finds a circuit in which no edge and no group of edges that is tried can go"
        )
    monkeypatch.setattr(subsets_module, "_BITS", len(SMALL))
    assert len(live_subsets(GRAPH, SMALL)) == many
    monkeypatch.setattr(subsets_module, "_BITS", len(SMALL) - 1)
    with pytest.raises(ModelError):
        live_subsets(GRAPH, SMALL)


TOLERANCE = 0.5
TRUE = [frozenset(edges_of("tok->logits")), frozenset(edges_of("tok->m0", "m0->logits"))]


def two(edges: frozenset[Edge]) -> float:
    """0.25 where a true circuit is inside, which is a quarter from the tolerance, else 2."""
    return 0.25 if any(circuit <= edges for circuit in TRUE) else 2.0


@pytest.mark.fakes
@pytest.mark.parametrize("at_once", [1, 3, 512])
def test_true_circuits_are_found_smallest_first_and_nothing_that_holds_one_is_run(monkeypatch, at_once):
    monkeypatch.setattr(subsets_module, "_AT_ONCE", at_once)
    loss = Loss(GRAPH, two)
    found = true_circuits(loss, SMALL, TOLERANCE)  # pyright: ignore
    live = [kept for kept in every(SMALL) if is_live(GRAPH, kept)]
    run = [kept for kept in live if not any(circuit < kept for circuit in TRUE)]
    assert found.circuits == TRUE
    assert found.runs == loss.masks_run == len(run)
    assert found.margin == 0.25
    assert {*loss.limits} == {1.0} and max(loss.sizes) == min(at_once, max(loss.sizes))


@pytest.mark.fakes
@pytest.mark.parametrize(
    ("inside", "outside", "tolerance", "margin", "many"),
    [
        (0.5, 2.0, 0.5, 0.0, 2),
        (0.0, 2.0, 0.5, 0.5, 2),
        (0.0, 0.625, 0.5, 0.125, 2),
        (0.375, 2.0, 0.5, 0.125, 2),
        (0.75, 2.0, 0.5, 0.25, 0),
    ],
)
def test_a_loss_at_the_tolerance_is_within_it_and_the_margin_is_the_smallest_distance(
    inside, outside, tolerance, margin, many
):
    loss = Loss(GRAPH, lambda edges: inside if any(circuit <= edges for circuit in TRUE) else outside)
    found = true_circuits(loss, SMALL, tolerance)  # pyright: ignore
    assert (len(found.circuits), found.margin) == (many, margin)


@pytest.mark.fakes
def test_the_empty_circuit_is_true_where_it_is_faithful():
    found = true_circuits(Loss(GRAPH, lambda edges: 0.0), SMALL, TOLERANCE)  # pyright: ignore
    assert found.circuits == [frozenset()] and (found.runs, found.margin) == (1, TOLERANCE)


@pytest.mark.fakes
def test_progress_is_shown_where_it_is_asked_for(capsys, monkeypatch):
    shown = list[Any]()

    class Bar:
        def __init__(self, **said):
            shown.append(said)
            self.done = 0

        def __enter__(self):
            return self

        def __exit__(self, *given):
            shown.append(self.done)

        def update(self, number):
            self.done += number

    monkeypatch.setattr(subsets_module, "tqdm", Bar)
    many = len(live_subsets(GRAPH, SMALL))
    for more, disable in (({}, True), ({"progress": True}, None)):
        shown.clear()
        true_circuits(Loss(GRAPH, two), SMALL, TOLERANCE, **more)  # pyright: ignore
        said, done = shown
        assert (said["total"], said["disable"], done) == (many, disable, many)


@pytest.mark.fakes
def test_a_judge_of_losses_says_what_is_within_its_tolerance():
    loss = Loss(GRAPH, lambda edges: len(edges) / 4)
    judge = LossJudge(loss, TOLERANCE)  # pyright: ignore
    sets = [SMALL[:size] for size in range(4)]
    assert judge.differences_of(sets) == [0.0, 0.25, 0.5, 0.75]
    masks = torch.stack([mask_of(GRAPH, edges) for edges in sets])
    assert judge.differences(masks).tolist() == [0.0, 0.25, 0.5, 0.75]
    assert judge.reproduces(masks).tolist() == [True, True, True, False]
    assert (judge.graph, judge.atol, judge.rows) == (GRAPH, TOLERANCE, 3 * 12)


def test_masks_keep_the_edges_of_their_codes():
    codes = np.array([0, 1, 2, 5, (1 << len(SMALL)) - 1])
    masks = subsets_module._masks(GRAPH, SMALL, codes)
    for code, mask in zip(codes.tolist(), masks, strict=True):
        kept = [edge for number, edge in enumerate(SMALL) if code >> number & 1]
        assert torch.equal(mask, mask_of(GRAPH, kept))
