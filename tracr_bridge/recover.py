"""Discover a circuit of a compiled program and compare it with the truth."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgeprune.graph import Ablation, Circuit, Comparison, compare
from edgeprune.methods import Discovery, find_method
from tracr_bridge.compile import Compiled, compile_program
from tracr_bridge.program import Program
from tracr_bridge.truth import Truth, derive_truth, is_true_circuit


@dataclass(frozen=True)
class Recovery:
    """What a method found on a program, beside what is true."""

    program: Program
    method: str
    seed: int
    discovery: Discovery
    reference: Circuit
    """The true circuit that the one found is compared with: of several, the closest."""

    comparison: Comparison
    truth: Truth
    seconds: Mapping[str, float]
    """Wall-clock seconds of each phase run: compile, truth, discover."""

    @property
    def exact(self) -> bool:
        """Whether the circuit found is the true one, or, where several are true, is one of them."""
        return self.comparison.exact


def recover(
    program: Program, ablation: Ablation, *, method: str = "edge-pruning", seed: int = 0, progress: bool = False
) -> Recovery:
    """Compile `program`, certify its true circuit, discover one with `method`, and compare.

    The method gets the model and its inputs, and nothing of the truth.

    Raises:
        EdgePruneError: the program or the method's name is unusable.
    """
    discover = find_method(method)
    start = time.perf_counter()
    compiled = compile_program(program, seed=seed)
    compiled_at = time.perf_counter()
    truth = certify(compiled, ablation, seed=seed)
    certified_at = time.perf_counter()
    discovery = discover(compiled.model, compiled.dataset, ablation, seed=seed, progress=progress)
    discovered_at = time.perf_counter()
    seconds = {
        "compile": compiled_at - start,
        "truth": certified_at - compiled_at,
        "discover": discovered_at - certified_at,
    }
    truth = reconcile(truth, discovery.circuit)
    reference = closest(truth, discovery.circuit)
    comparison = compare(discovery.circuit, reference)
    return Recovery(program, method, seed, discovery, reference, comparison, truth, seconds)


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


def reconcile(truth: Truth, found: Circuit) -> Truth:
    """`truth`, with `found` added where running it proves it a true circuit that was not known.

    A `unique` certificate leaves no room for one. A `minimal` one does: it claimed one true circuit without
    enumerating, and a second makes it `ambiguous`.
    """
    certificate = truth.certificate
    known = {circuit.edges for circuit in certificate.circuits}
    if certificate.status == "unique" or found.edges in known:
        return truth
    if not is_true_circuit(truth.judge, found.graph, found.edges):
        return truth
    circuits = tuple(sorted((*certificate.circuits, found), key=len))
    return replace(truth, circuit=circuits[0], certificate=replace(certificate, status="ambiguous", circuits=circuits))


def closest(truth: Truth, found: Circuit) -> Circuit:
    """The true circuit from which `found` differs in the fewest edges."""
    return min(truth.certificate.circuits, key=lambda circuit: len(circuit.edges ^ found.edges))
