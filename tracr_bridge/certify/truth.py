"""Derives the true circuits of a model, and the certificate that says how far they are proved.

A true circuit is faithful (it alone reproduces the full model), and no proper subset of it is. Ablation is not
monotone, so a model may have several true circuits, and edges that cannot go one by one may go together.
`docs/truth.md` says what each status of a certificate implies, and proves it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from edgeprune.data import Dataset
from edgeprune.errors import DegenerateProgram, UnsupportedProgram, promise
from edgeprune.graph import Ablation, Circuit, Edge
from edgeprune.groups import masks_without, removals
from edgeprune.masks import mask_of
from edgeprune.metrics.distances import ATOL
from tracr_bridge.certify.behaviours import minimal_circuits
from tracr_bridge.certify.elimination import eliminate
from tracr_bridge.certify.faithfulness import Judge, JudgedModel
from tracr_bridge.certify.subsets import LossJudge

Status = Literal["unique", "ambiguous", "minimal", "locally-minimal"]
"""How far the listed circuits are proved.

- `unique`: all true circuits were enumerated; there is one.
- `ambiguous`: all true circuits were enumerated; there are several, none inside another.
- `minimal`: listed circuits are true, as no proper subset is faithful; there may be others, and smaller ones.
- `locally-minimal`: listed circuits are faithful, and are not without any edge or set of edges that was tried. A proper
  subset may still be faithful.
"""

STATUSES: Final[tuple[Status, ...]] = get_args(Status)

Criterion = Literal["largest difference", "mean KL", "largest KL"]
"""What has to be within the tolerance: the largest difference from the full model's outputs before decoding, or the
KL divergence from the full model in nats, as the mean over inputs or on every input."""

ROUNDING: Final = 0.25
"""Largest share of the tolerance that rounding in single precision may take up."""


@dataclass(frozen=True)
class Gap:
    """How clearly the smallest listed circuit is separated from all other edges, in the criterion's units."""

    kept: float
    """The smallest difference from the full model after taking one edge out of the circuit."""

    dropped: float
    """The difference of the circuit itself from the full model, with every other edge ablated."""


@dataclass(frozen=True)
class Certificate:
    """What was proved about the listed circuits, and on which inputs."""

    status: Status
    inputs: int
    """Number of inputs of the domain that were run."""

    pairs: int
    """Number of runs that a verdict covers: inputs, or pairs of clean and corrupted inputs under resample."""

    exhaustive: bool
    """Whether these are all inputs or pairs of the domain, not a sample. False for trained models."""

    atol: float
    gap: Gap
    margin: float
    """The smallest `|difference - tolerance|` among the verdicts that the certificate rests on."""

    choices: int
    """Number of partial circuits built, or subsets run, to find all true circuits; 0 if enumeration cost too much."""

    circuits: tuple[Circuit, ...]
    """All listed circuits, smallest first."""

    criterion: Criterion = "largest difference"

    @property
    def complete(self) -> bool:
        """Whether all true circuits are proved to be listed."""
        return self.status in ("unique", "ambiguous")


@dataclass(frozen=True)
class Truth:
    """What is known of a model's true circuits under one ablation: the smallest one listed, and the certificate."""

    circuit: Circuit
    structural: frozenset[Edge]
    certificate: Certificate
    judge: Judge | LossJudge
    others_matter: bool = False
    """Whether edges that are not structural may matter, as norms read every source. The certificate leaves them out."""


def is_faithful(judge: Judge, edges: Iterable[Edge]) -> bool:
    """Return whether `edges` alone reproduce the full model."""
    return bool(judge.reproduces(mask_of(judge.model.graph, edges)[None]))


def is_true(judge: Judge, edges: frozenset[Edge]) -> bool | None:
    """Return whether `edges` are faithful and no proper subset of them is, or None if that costs too much to decide."""
    if not edges or not is_faithful(judge, edges):
        return is_faithful(judge, edges)
    if bool(judge.reproduces(torch.stack([mask_of(judge.model.graph, kept) for kept in _without_one(edges)])).any()):
        return False
    found = minimal_circuits(judge, sorted(edges))
    return None if found is None else found.circuits == [edges]


def derive_truth(
    model: JudgedModel,
    dataset: Dataset,
    structural: frozenset[Edge],
    read: Sequence[Tensor],
    ablation: Ablation,
    *,
    name: str = "the model",
    atol: float = ATOL,
    whole_domain: bool = True,
    seed: int = 0,
) -> Truth:
    """Derive and certify the true circuits of `model` on `dataset`.

    Args:
        model: the model.
        dataset: its domain.
        structural: edges that can carry anything at all; all others are assumed to be in no true circuit.
        read: the weights `[d_model, out]` that each destination reads with.
        ablation: what removed edges carry.
        name: name of the program, for messages.
        atol: the largest difference that counts as the same output.
        whole_domain: whether `dataset` is the whole domain, rather than a sample of it.
        seed: seed of the order in which pairs are run, and of elimination where enumeration costs too much.

    Raises:
        DegenerateProgram: the empty circuit reproduces the model, so no method could fail on it.
        UnsupportedProgram: structural edges alone are off by more than `ROUNDING` times `atol`.
    """
    judge = Judge(model, dataset, ablation, atol=atol, seed=seed)
    graph = model.graph
    edges = sorted(structural, key=lambda e: graph.position(e)[::-1])
    _check_ends(judge, edges, name)
    inert = inert_edges(judge, read, edges)
    varying = [edge for edge in edges if edge not in inert]
    status, found, choices = _search(judge, varying, seed)
    circuits = tuple(
        Circuit(graph, ablation, kept) for kept in sorted(found, key=lambda kept: (len(kept), sorted(kept)))
    )
    gap = gap_of(judge, circuits[0])
    certificate = Certificate(
        status=status,
        inputs=len(dataset),
        pairs=judge.pairs,
        exhaustive=whole_domain and judge.exhaustive,
        atol=atol,
        gap=gap,
        margin=margin_of(judge, gap),
        choices=choices,
        circuits=circuits,
    )
    return Truth(circuits[0], structural, certificate, judge)


def _check_ends(judge: Judge, edges: Sequence[Edge], name: str) -> None:
    """Check that all structural edges reproduce the model, and that the empty circuit does not.

    Raises:
        DegenerateProgram: the empty circuit gives the model's outputs.
        UnsupportedProgram: all structural edges together do not.
    """
    graph, atol = judge.model.graph, judge.atol
    (full,) = judge.differences(mask_of(graph, edges)[None]).tolist()
    if not full <= ROUNDING * atol:
        sources = judge.model.sources(judge.dataset.tokens)
        raise UnsupportedProgram(
            f"Expected structural edges alone to give the outputs of {name} to within {ROUNDING * atol:g}; they are "
            f"off by {full:.3g} under {judge.ablation} ablation: values of up to {float(sources.abs().max()):.3g} are "
            "too large for single precision, or for norms that read them all; make them smaller"
        )
    if is_faithful(judge, []):
        (empty,) = judge.differences(mask_of(graph, [])[None]).tolist()
        raise DegenerateProgram(
            f"Expected a program with a circuit under {judge.ablation} ablation; {name} gives the same output with "
            f"every edge ablated (difference {empty:.1g}), so nothing could fail on it: choose another ablation, or "
            "a domain on which the output depends on more than the length"
        )


def _search(judge: Judge, edges: Sequence[Edge], seed: int) -> tuple[Status, list[frozenset[Edge]], int]:
    """Return how far circuits within `edges` are proved, the circuits, and the number of partial circuits built."""
    found = minimal_circuits(judge, edges)
    if found is not None:
        promise(bool(found.circuits), "a faithful set has a subset-minimal one inside")
        return "unique" if len(found.circuits) == 1 else "ambiguous", found.circuits, found.choices
    ends = eliminate(judge, edges, seed=seed)
    inside = [minimal_circuits(judge, sorted(end)) for end in ends]
    proved = {circuit for each in inside if each is not None for circuit in each.circuits}
    if proved:
        return "minimal", list(proved), 0
    ends = [end for end in ends if not any(other < end for other in ends)]
    moves = removals(judge.model.graph, edges)
    for end in ends:
        gone = torch.tensor([edge not in end for edge in edges])
        without = torch.unique(moves[(moves & ~gone).any(1)] | gone, dim=0)
        judge.reproduces(masks_without(judge.model.graph, edges, without))  # updates the margin
    return "locally-minimal", ends, 0


def inert_edges(judge: Judge, read: Sequence[Tensor], edges: Iterable[Edge]) -> frozenset[Edge]:
    """Return the edges that carry the same value clean and ablated, whatever else is ablated. No true circuit has one.

    An embedding does not depend on any mask, nor does a node whose inputs are all inert. An edge from such a source is
    inert if its destination reads the clean and ablated values as equal on the whole domain. No masked run is needed to
    show it.
    """
    graph = judge.model.graph
    edges = list(edges)
    agree = judge.edges_agree(read, mask_of(graph, edges) > 0)
    inert: set[Edge] = set()
    for source in graph.sources:
        if all(edge in inert for edge in edges if source in graph.readers[edge.destination]):
            inert |= {edge for edge in edges if edge.source == source and agree[graph.position(edge)]}
    return frozenset(inert)


def _without_one(edges: Iterable[Edge]) -> list[list[Edge]]:
    edges = sorted(edges)
    return [[other for other in edges if other != edge] for edge in edges]


def gap_of(judge: Judge | LossJudge, circuit: Circuit) -> Gap:
    """Return the smallest difference after taking one edge out of a circuit, and that of the circuit itself."""
    sets = [circuit.edges, *_without_one(circuit.edges)]
    differences = judge.differences(torch.stack([mask_of(circuit.graph, kept) for kept in sets])).tolist()
    return Gap(kept=min(differences[1:]), dropped=differences[0])


def margin_of(judge: Judge, gap: Gap) -> float:
    """Return the smallest `|difference - tolerance|` among a judge's verdicts so far and the two values of a gap."""
    return min(judge.margin, abs(gap.kept - judge.atol), abs(gap.dropped - judge.atol))
