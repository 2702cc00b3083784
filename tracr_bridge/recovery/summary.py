"""Recoveries as JSON, as saved circuits, and in words."""

from typing import Any, Final

from edgeprune.files.other_tools import scores_by_edge
from edgeprune.files.store import SavedCircuit, versions
from edgeprune.graph import edge_names
from edgeprune.methods import configuration
from tracr_bridge.certify.summary import certificate_json, certificate_rows, saved_certificate
from tracr_bridge.recovery.recover import Recovery

_PROOF: Final = {"listed": "exact", "proved": "exact: proved itself, and not listed before"}


def recovery_json(recovery: Recovery) -> dict[str, Any]:
    """Return a recovery as JSON."""
    graph = recovery.assessment.reference.graph
    return {
        "program": recovery.name,
        "ablation": recovery.assessment.reference.ablation,
        "method": recovery.method,
        "seed": recovery.seed,
        "exact": recovery.exact,
        "proof": recovery.assessment.proof,
        "missing": edge_names(graph, recovery.assessment.comparison.missing),
        "extra": edge_names(graph, recovery.assessment.comparison.extra),
        "found": recovery.discovery.circuit.names(),
        "truth": recovery.assessment.reference.names(),
        "total": graph.total,
        "others_matter": recovery.assessment.truth.others_matter,
        "certificate": certificate_json(recovery.assessment.truth.certificate),
        "seconds": {phase: round(seconds, 3) for phase, seconds in recovery.seconds.items()},
    }


def saved_circuit(recovery: Recovery) -> SavedCircuit:
    """Return the circuit found, with its scores, its method and the certificate, as `save_circuit` takes it."""
    circuit, name = recovery.discovery.circuit, recovery.method
    method = {"name": name, "seed": recovery.seed, "config": configuration(name)}
    method |= {"signed": True} if recovery.discovery.signed else {}
    scores = scores_by_edge(recovery.discovery.scores, circuit.graph)
    certificate = saved_certificate(recovery.assessment.truth)
    return SavedCircuit(circuit, scores, recovery.name, method, versions(), certificate=certificate)


def edge_rows(recovery: Recovery) -> list[tuple[str, str, str, str]]:
    """Return for every edge that is true or found: its name, whether it is true, whether it is found, and its score."""
    graph = recovery.assessment.reference.graph
    true, found = recovery.assessment.reference.edges, recovery.discovery.circuit.edges
    rows: list[tuple[str, str, str, str]] = []
    for edge in sorted(true | found, key=lambda e: graph.position(e)[::-1]):
        score = float(recovery.discovery.scores[graph.position(edge)])
        rows.append((str(edge), "yes" if edge in true else "-", "yes" if edge in found else "-", f"{score:.3f}"))
    return rows


def summary_rows(recovery: Recovery) -> list[tuple[str, str]]:
    """Return a recovery in words, one fact a row."""
    missing, extra = recovery.assessment.comparison.missing, recovery.assessment.comparison.extra
    proof = recovery.assessment.proof
    verdict = f"not exact: {len(missing)} missing, {len(extra)} extra" if proof is None else _PROOF[proof]
    timing = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in recovery.seconds.items())
    return [
        ("recovery", verdict),
        ("method", f"{recovery.method}, seed {recovery.seed}"),
        *certificate_rows(recovery.assessment.truth, recovery.assessment.reference),
        ("took", timing),
    ]
