"""The true circuit of a model, and the certificate that says how far it is proved.

A true circuit is sufficient (it alone reproduces the full model) and irreducible (with any one edge taken out it no
longer does). Ablation is not monotone, so edges that are necessary one by one are only a candidate, and a model may
have several true circuits.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from edgeprune.data import Dataset
from edgeprune.errors import DegenerateProgram
from edgeprune.graph import Ablation, Circuit, Edge, Graph, live_edges
from edgeprune.masks import mask_of
from edgeprune.metrics import ATOL
from edgeprune.model import MaskedModel
from tracr_bridge.judge import Judge
from tracr_bridge.subsets import live_subsets

ORDERS: Final = 64
"""Seeded orders of elimination where subsets are too many to enumerate."""

SUBSET_BUDGET: Final = 1 << 16
"""Subsets that are enumerated to prove uniqueness, at the most."""

ROW_BUDGET: Final = 8_000_000
"""Masked inputs that enumeration may run, at the most."""

Status = Literal["unique", "minimal", "ambiguous"]


@dataclass(frozen=True)
class Gap:
    """How clear the cut between true and other edges is; both before decoding, over the whole domain."""

    kept: float
    """The smallest difference that taking one edge out of the circuit makes."""

    dropped: float
    """The largest difference that is left with every other edge ablated."""


@dataclass(frozen=True)
class Certificate:
    """What was proved, and on what."""

    status: Status
    """`unique`: all subsets enumerated, exactly one true circuit. `minimal`: one found, every elimination order ends
    there, not enumerated. `ambiguous`: several true circuits."""

    inputs: int
    """Inputs of the domain that were run."""

    pairs: int
    """Runs that a verdict covers: inputs, or pairs of clean and corrupted inputs under resample."""

    exhaustive: bool
    """Whether those are all there are."""

    atol: float
    gap: Gap
    enumerated: int
    """Subsets enumerated; 0 where they were too many."""

    orders: int
    """Elimination orders run; 0 where subsets were enumerated."""

    candidate: Circuit
    """The structural edges whose removal alone, from the full model, breaks reproduction."""

    circuits: tuple[Circuit, ...]
    """Every true circuit found, smallest first."""


@dataclass(frozen=True)
class Truth:
    """The true circuit under one ablation, with its certificate."""

    circuit: Circuit
    structural: frozenset[Edge]
    certificate: Certificate
    judge: Judge
    others_matter: bool = False
    """Whether edges that are not structural may matter too, as to a norm; the certificate has not looked at them."""


def is_true_circuit(judge: Judge, graph: Graph, edges: frozenset[Edge]) -> bool:
    """Whether `edges` are sufficient and irreducible."""
    if not bool(judge.reproduces(mask_of(graph, edges)[None])):
        return False
    fewer = [mask_of(graph, kept) for kept in _without_one(sorted(edges))]
    return not fewer or not bool(judge.reproduces(torch.stack(fewer)).any())


def derive_truth(
    model: MaskedModel,
    dataset: Dataset,
    structural: frozenset[Edge],
    read: Sequence[Tensor],
    ablation: Ablation,
    *,
    name: str = "the model",
    atol: float = ATOL,
    whole_domain: bool = True,
    seed: int = 0,
    orders: int = ORDERS,
) -> Truth:
    """Derive and certify the true circuit of `model` on `dataset`.

    Args:
        model: the model.
        dataset: its domain.
        structural: edges that can carry anything at all; the others are taken to be never true.
        read: the weights `[d_model, out]` that each destination reads with.
        ablation: what removed edges carry.
        name: of the program, for messages.
        atol: largest difference that counts as the same output.
        whole_domain: whether `dataset` is the whole domain, rather than a sample of it.
        seed: of elimination orders and of the pairs' order.
        orders: elimination orders, where subsets are too many to enumerate.

    Raises:
        DegenerateProgram: the empty circuit reproduces the model, so that nothing could fail on it.
    """
    judge = Judge(model, dataset, ablation, atol=atol, seed=seed)
    graph = model.graph
    edges = sorted(structural, key=lambda e: graph.position(e)[::-1])
    full = mask_of(graph, edges)[None]
    assert bool(judge.reproduces(full)), "edges outside the structural set change the output"
    empty = judge.differences(mask_of(graph, [])[None])[0]
    if empty <= atol:
        raise DegenerateProgram(
            f"Expected a program with a circuit under {ablation} ablation; {name} gives the same output with every "
            f"edge ablated (difference {float(empty):.1g}), so nothing could fail on it: choose another ablation, or "
            "a domain on which the output depends on more than the length"
        )
    inert = inert_edges(judge, read, edges)
    varying = [edge for edge in edges if edge not in inert]
    assert bool(judge.reproduces(mask_of(graph, varying)[None])), "an edge that carries the same either way matters"
    spared = judge.reproduces(torch.stack([mask_of(graph, set(edges) - {edge}) for edge in varying])).tolist()
    candidate = frozenset(edge for edge, spare in zip(varying, spared, strict=True) if not spare)
    enumerated = _enumerate(judge, graph, varying)
    if enumerated is None:
        found, subsets = _eliminate(judge, graph, varying, candidate, orders=orders, seed=seed), 0
    else:
        found, subsets = enumerated
    certificate = _certificate(judge, Circuit(graph, ablation, candidate), found, subsets, orders)
    certificate = replace(certificate, exhaustive=whole_domain and judge.exhaustive)
    return Truth(certificate.circuits[0], structural, certificate, judge)


def _certificate(
    judge: Judge, candidate: Circuit, found: Iterable[frozenset[Edge]], subsets: int, orders: int
) -> Certificate:
    """What it says where `found` are the true circuits, by `subsets` enumerated or, where that is 0, by `orders`."""
    circuits = tuple(
        replace(candidate, edges=kept) for kept in sorted(found, key=lambda kept: (len(kept), sorted(kept)))
    )
    alone: Status = "unique" if subsets else "minimal"
    return Certificate(
        status=alone if len(circuits) == 1 else "ambiguous",
        inputs=len(judge.dataset),
        pairs=judge.pairs,
        exhaustive=judge.exhaustive,
        atol=judge.atol,
        gap=_gap(judge, circuits[0]),
        enumerated=subsets,
        orders=0 if subsets else orders,
        candidate=candidate,
        circuits=circuits,
    )


def inert_edges(judge: Judge, read: Sequence[Tensor], edges: Iterable[Edge]) -> frozenset[Edge]:
    """Edges that carry the same clean and ablated, whatever else is ablated; no true circuit holds one.

    An embedding does not depend on any mask, and neither does a node all of whose inputs are inert. Where such a
    source's clean and ablated values look the same to a destination on the whole domain, the edge is inert, and told to
    be without a masked run.
    """
    graph = judge.model.graph
    edges = list(edges)
    agree = judge.edges_agree(read, mask_of(graph, edges) > 0)
    inert: set[Edge] = set()
    for source in graph.sources:
        if all(edge in inert for edge in edges if source in graph.readers[edge.destination]):
            inert |= {edge for edge in edges if edge.source == source and agree[graph.position(edge)]}
    return frozenset(inert)


def _without_one(edges: Sequence[Edge]) -> list[list[Edge]]:
    return [[other for other in edges if other != edge] for edge in edges]


def _masks(graph: Graph, edges: Sequence[Edge], kept: Tensor) -> Tensor:
    """Masks `[subset, source, destination]` of rows of `kept` (`[subset, edge]`)."""
    masks = torch.zeros(len(kept), len(graph.sources), len(graph.destinations))
    rows, columns = zip(*(graph.position(edge) for edge in edges), strict=True)
    masks[:, list(rows), list(columns)] = kept.float()
    return masks


def _enumerate(judge: Judge, graph: Graph, edges: Sequence[Edge]) -> tuple[list[frozenset[Edge]], int] | None:
    """All true circuits and the number of subsets tried, or None where that would cost too much.

    A true circuit has live edges alone: an edge that leads nowhere can be taken out of it. So all subsets whose every
    edge is live are tried, and a set is irreducible if, for each of its edges, the live part of the rest is none of the
    sufficient ones.
    """
    subsets = live_subsets(graph, edges, limit=SUBSET_BUDGET)
    if subsets is None:
        return None
    screened = judge.screen(lambda rows: _masks(graph, edges, subsets[rows]), len(subsets))
    if int(screened.sum()) * judge.pairs > ROW_BUDGET:
        return None
    passed = torch.nonzero(screened)[:, 0]
    verdict = (
        torch.cat([judge.reproduces(_masks(graph, edges, subsets[rows])) for rows in passed.split(2048)])
        if len(passed)
        else torch.zeros(0, dtype=torch.bool)
    )
    kept = subsets[passed[verdict]].numpy()
    sufficient = {frozenset(edge for edge, keep in zip(edges, row, strict=True) if keep) for row in kept}
    found = [each for each in sufficient if not any(live_edges(graph, each - {edge}) in sufficient for edge in each)]
    return found, len(subsets)


def _eliminate(
    judge: Judge, graph: Graph, edges: Sequence[Edge], candidate: frozenset[Edge], *, orders: int, seed: int
) -> list[frozenset[Edge]]:
    """True circuits at which seeded orders of elimination end, all orders run abreast.

    Each order takes edges out one at a time, from all of them, where the rest still reproduces, until no edge can go.
    The last order tries the edges outside `candidate` first, so that it ends in the candidate where that is true.

    On the way a few pairs stand for all. Only where an order ends is everything run: a pair on which that fails joins
    the few, and the order starts again. So what is handed back is proved, and most of what is run fails at once.
    """
    rng = np.random.default_rng(seed)
    ranking = np.stack([rng.permutation(len(edges)) for _ in range(orders)])
    inside = np.array([edge in candidate for edge in edges])
    ranking[-1] = np.argsort(inside, kind="stable")
    order = torch.from_numpy(ranking)
    kept = torch.ones(order.shape, dtype=torch.bool)
    unproved = torch.arange(orders)
    while len(unproved):
        known = judge.counterexamples
        kept[unproved] = _take_out(judge, graph, edges, order[unproved])
        ends, end_of = torch.unique(kept, dim=0, return_inverse=True)
        unproved = torch.nonzero(~judge.reproduces(_masks(graph, edges, ends))[end_of])[:, 0]
        assert not len(unproved) or judge.counterexamples > known, "a pair fails in one batch and not in another"
    return [
        frozenset(edge for edge, keep in zip(edges, row, strict=True) if keep)
        for row in torch.unique(kept, dim=0).tolist()
    ]


def _take_out(judge: Judge, graph: Graph, edges: Sequence[Edge], order: Tensor) -> Tensor:
    """Where each order of elimination (`[order, edge]`) ends, as far as the judge's first pairs tell.

    At its end no edge can go, which is certain; that what is left reproduces everywhere is not.
    """
    kept = torch.ones(order.shape, dtype=torch.bool)
    lanes = torch.arange(len(order))
    changed = True
    while changed:
        before = kept.clone()
        for step in order.T:
            trial = kept.clone()
            trial[lanes, step] = False
            alive = kept[lanes, step]
            distinct, lane_of = torch.unique(trial[alive], dim=0, return_inverse=True)
            if len(distinct):
                verdict = judge.seems_to_reproduce(_masks(graph, edges, distinct))[lane_of]
                kept[lanes[alive][verdict]] = trial[alive][verdict]
        changed = bool((kept != before).any())
    return kept


def _gap(judge: Judge, circuit: Circuit) -> Gap:
    edges = sorted(circuit.edges)
    sets = [circuit.edges, *_without_one(edges)]
    differences = judge.differences(torch.stack([mask_of(circuit.graph, kept) for kept in sets])).tolist()
    return Gap(kept=min(differences[1:]), dropped=differences[0])
