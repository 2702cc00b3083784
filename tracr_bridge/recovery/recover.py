"""Discover a circuit of a model, and compare it with the truth."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import torch

from edgeprune.graph import Ablation, Circuit, Comparison, Edge, compare_circuits
from edgeprune.masks import mask_of
from edgeprune.methods import Discovery, Method, find_method
from edgeprune.methods.custom import time_limit
from tracr_bridge.certify.faithfulness import Judge
from tracr_bridge.certify.truth import Truth, gap_of, is_true, margin_of
from tracr_bridge.compile.program import Program
from tracr_bridge.recovery.known_models import known

if TYPE_CHECKING:
    from tracr_bridge.recovery.known_models import Asked

_T = TypeVar("_T")


@dataclass(frozen=True)
class Assessment:
    """A circuit that was found, compared with the truth."""

    found: Circuit
    reference: Circuit
    """The true circuit that `found` is compared with: of several, the one that differs from it in the fewest edges."""

    comparison: Comparison
    truth: Truth
    """The truth; if `found` was not listed but proved to be true, this lists it too."""

    proof: Literal["listed", "proved"] | None
    """Why `found` is true: the certificate lists it, or it was proved itself; None if it is not exact."""


@dataclass(frozen=True)
class Recovery:
    """What a method found on a model, compared with the truth."""

    name: str
    """Name of the model."""

    doc: str
    """What the model computes."""

    method: str
    seed: int
    discovery: Discovery
    assessment: Assessment
    seconds: Mapping[str, float]
    """Wall-clock seconds of each phase: `compile` (with verifying, or loading), `truth`, `discover`."""

    @property
    def exact(self) -> bool:
        """Whether the circuit found is the true circuit, or one of several."""
        return self.assessment.comparison.exact


def recover(
    subject: "Asked",
    ablation: Ablation,
    *,
    method: str = "edge-pruning-minimax",
    seed: int = 0,
    seconds: float = math.inf,
    progress: bool = False,
) -> Recovery:
    """Call `recover_under` with one ablation, and return its recovery."""
    return recover_under(subject, [ablation], method=method, seed=seed, seconds=seconds, progress=progress)[0]


def recover_under(
    subject: "Asked",
    ablations: Sequence[Ablation],
    *,
    method: str = "edge-pruning-minimax",
    seed: int = 0,
    seconds: float = math.inf,
    progress: bool = False,
) -> list[Recovery]:
    """Compile or load a model, certify its true circuits, run `method` on it, and compare what it found with the truth.

    The method gets the model and its inputs, and nothing of the truth.

    Args:
        subject: what to recover: a program, the folder of a checkpoint that `export` wrote, or a trained model.
        ablations: what removed edges carry, with one recovery each; all truths are certified before any discovery.
        method: a name in the registry, or `package.module:function`.
        seed: the method's seed.
        seconds: time limit of one discovery.
        progress: show a progress bar on standard error, if that is a terminal.

    Raises:
        EdgePruneError: the program, the folder or the method's name is unusable, the method breaks its contract, the
            compiled model does not do what RASP says, or no method could fail under one of the ablations.
    """
    discover = find_method(method, methods_for(subject))
    given, compiling = _timed(lambda: known(subject, progress=progress))
    truths = [_timed(partial(given.truth, ablation)) for ablation in ablations]
    found: list[Recovery] = []
    for ablation, (truth, certifying) in zip(ablations, truths, strict=True):
        with time_limit(seconds, method):
            run = partial(discover, given.model, given.dataset, ablation, seed=seed, progress=progress)
            discovery, discovering = _timed(run)
        phases = {"compile": compiling, "truth": certifying, "discover": discovering}
        assessment = assess(truth, discovery.circuit)
        found.append(Recovery(given.name, given.doc, method, seed, discovery, assessment, phases))
    return found


def methods_for(subject: "Asked") -> Mapping[str, Method]:
    """Return methods beside those of the registry: for a trained model, those that prune within its tolerance."""
    if isinstance(subject, Program | Path):
        return {}
    from edgeprune.methods.within_tolerance import methods_within

    return methods_within(subject.tolerance, subject.criterion)


def _timed(run: Callable[[], _T]) -> tuple[_T, float]:
    """Return the result of `run`, and its wall-clock seconds."""
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def assess(truth: Truth, found: Circuit) -> Assessment:
    """Compare `found` with the truth; if several circuits are true, any of them is exact.

    A circuit that is not listed may still be true if the list is not complete, or if edges that were not enumerated may
    matter. It is exact if it is proved to be faithful and subset-minimal, and not exact if the proof would cost too
    much. If it is proved, the certificate lists it too, and becomes `minimal` if it said that its list was complete.

    Raises:
        CircuitMismatch: `found` is of another graph or under another ablation.
    """
    compare_circuits(found, truth.circuit)
    certificate = truth.certificate
    proof = "listed" if any(circuit.edges == found.edges for circuit in certificate.circuits) else None
    others_possible = not certificate.complete or truth.others_matter
    judge = truth.judge
    if proof is None and others_possible and isinstance(judge, Judge) and is_true(judge, found.edges):
        proof = "proved"
        # A circuit that contains a true one is not true; only a list of locally minimal circuits can hold one.
        outside = [circuit for circuit in certificate.circuits if not found.edges < circuit.edges]
        circuits = tuple(sorted((*outside, found), key=len))
        gap = gap_of(judge, circuits[0])
        certificate = replace(
            certificate,
            status="minimal" if certificate.complete else certificate.status,
            circuits=circuits,
            gap=gap,
            margin=min(certificate.margin, margin_of(judge, gap)),
        )
        truth = replace(truth, circuit=circuits[0], certificate=certificate)
    reference = min(certificate.circuits, key=lambda circuit: len(circuit.edges ^ found.edges))
    return Assessment(found, reference, compare_circuits(found, reference), truth, proof)


def effects(assessment: Assessment) -> dict[Edge, float]:
    """Return the effect of each edge that is structural or found: a distance from the full model, as the judge has it.

    For a compiled program it is the largest difference before decoding over the whole domain. A true edge is removed
    from the true circuit, an extra edge from the circuit found, and any other edge from the full model.
    """
    judge, graph = assessment.truth.judge, assessment.found.graph
    true, found, extra = assessment.reference.edges, assessment.found.edges, assessment.comparison.extra
    sets = {edge: true - {edge} for edge in sorted(true)} | {edge: found - {edge} for edge in sorted(extra)}
    sets |= {edge: {*graph.edges} - {edge} for edge in sorted(assessment.truth.structural - true - extra)}
    differences = judge.differences(torch.stack([mask_of(graph, edges) for edges in sets.values()]))
    return dict(zip(sets, differences.tolist(), strict=True))
