"""Discover a circuit of a compiled program and compare it with the truth."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from edgeprune.graph import Ablation, Circuit, Comparison, Edge, compare
from edgeprune.masks import mask_of
from edgeprune.methods import Discovery, find_method
from edgeprune.methods.custom import time_limit
from tracr_bridge.compile import Compiled
from tracr_bridge.program import Program
from tracr_bridge.truth import Truth, derive_truth, is_true_circuit
from tracr_bridge.verify import compile_and_verify

_T = TypeVar("_T")


@dataclass(frozen=True)
class Assessment:
    """A circuit that was found, beside what is true."""

    found: Circuit
    reference: Circuit
    """The true circuit that it is compared with: of several, the one from which it differs in the fewest edges."""

    comparison: Comparison
    truth: Truth
    """With the circuit found among the true ones, if running it proved it to be one that was not known."""


@dataclass(frozen=True)
class Recovery:
    """What a method found on a program, beside what is true."""

    program: Program
    method: str
    seed: int
    discovery: Discovery
    assessment: Assessment
    seconds: Mapping[str, float]
    """Wall-clock seconds of each phase run: compile (and verify), truth, discover."""

    @property
    def exact(self) -> bool:
        """Whether the circuit found is the true one, or, where several are true, is one of them."""
        return self.assessment.comparison.exact


def recover(
    program: Program,
    ablation: Ablation,
    *,
    method: str = "edge-pruning",
    seed: int = 0,
    seconds: float = math.inf,
    progress: bool = False,
) -> Recovery:
    """See `recover_under`, with one ablation."""
    return recover_under(program, [ablation], method=method, seed=seed, seconds=seconds, progress=progress)[0]


def recover_under(
    program: Program,
    ablations: Sequence[Ablation],
    *,
    method: str = "edge-pruning",
    seed: int = 0,
    seconds: float = math.inf,
    progress: bool = False,
) -> list[Recovery]:
    """Compile and verify `program`, certify its true circuits, discover them with `method`, and compare.

    The method gets the model and its inputs, and nothing of the truth.

    Args:
        program: what to recover.
        ablations: what removed edges carry, a recovery for each; all are certified before anything is discovered.
        method: a name of the registry, or `package.module:function`.
        seed: the method's.
        seconds: how long one discovery may take.
        progress: show a progress bar on standard error, if that is a terminal.

    Raises:
        EdgePruneError: the program or the method's name is unusable, or the method breaks its contract; also where the
            compiled model does not do what RASP says, or nothing could fail under one of the ablations.
    """
    discover = find_method(method)
    compiled, compiling = _timed(lambda: compile_and_verify(program))
    truths = [_timed(partial(certify, compiled, ablation)) for ablation in ablations]
    found: list[Recovery] = []
    for ablation, (truth, certifying) in zip(ablations, truths, strict=True):
        with time_limit(seconds, method):
            run = partial(discover, compiled.model, compiled.dataset, ablation, seed=seed, progress=progress)
            discovery, discovering = _timed(run)
        phases = {"compile": compiling, "truth": certifying, "discover": discovering}
        found.append(Recovery(program, method, seed, discovery, assess(truth, discovery.circuit), phases))
    return found


def _timed(run: Callable[[], _T]) -> tuple[_T, float]:
    """What `run` returns, and its seconds."""
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def certify(compiled: Compiled, ablation: Ablation, *, seed: int = 0) -> Truth:
    """The certified true circuit of a compiled program."""
    model = compiled.model
    return derive_truth(
        model,
        compiled.dataset,
        model.structural,
        model.read,
        ablation,
        name=compiled.program.name,
        whole_domain=compiled.domain.exhaustive,
        seed=seed,
    )


def assess(truth: Truth, found: Circuit) -> Assessment:
    """Compare `found` with the truth; where several circuits are true, any of them is exact.

    A `unique` certificate leaves no room for a true circuit that was not known. A `minimal` one does: it claimed one
    without enumerating, and a second makes it `ambiguous`.

    Raises:
        CircuitMismatch: `found` is of another graph or under another ablation.
    """
    compare(found, truth.circuit)
    certificate = truth.certificate
    known = {circuit.edges for circuit in certificate.circuits}
    open_to_more = certificate.status != "unique" and found.edges not in known
    if open_to_more and is_true_circuit(truth.judge, found.graph, found.edges):
        circuits = tuple(sorted((*certificate.circuits, found), key=len))
        certificate = replace(certificate, status="ambiguous", circuits=circuits)
        truth = replace(truth, circuit=circuits[0], certificate=certificate)
    reference = min(certificate.circuits, key=lambda circuit: len(circuit.edges ^ found.edges))
    return Assessment(found, reference, compare(found, reference), truth)


def effects(assessment: Assessment) -> dict[Edge, float]:
    """What each edge that is structural or found does, as the largest difference before decoding over the whole domain.

    For a true edge: how far the true circuit without it is from the full model. For an extra one: how far the circuit
    found is without it. For any other: how far the model is without it alone.
    """
    judge, graph = assessment.truth.judge, assessment.found.graph
    true, found, extra = assessment.reference.edges, assessment.found.edges, assessment.comparison.extra
    sets = {edge: true - {edge} for edge in sorted(true)} | {edge: found - {edge} for edge in sorted(extra)}
    sets |= {edge: {*graph.edges} - {edge} for edge in sorted(assessment.truth.structural - true - extra)}
    differences = judge.differences(torch.stack([mask_of(graph, edges) for edges in sets.values()]))
    return dict(zip(sets, differences.tolist(), strict=True))
