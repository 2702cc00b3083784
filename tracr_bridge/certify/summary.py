"""Writes truths and their certificates as JSON, as files and in words."""

import math
from typing import Any, Final

from edgeprune.files.store import SavedCircuit, versions
from edgeprune.graph import Circuit, edge_names
from tracr_bridge.certify.truth import Certificate, Status, Truth

_STATUS: Final[dict[Status, str]] = {
    "unique": "unique: all true circuits were enumerated, and there is one",
    "ambiguous": "ambiguous: all true circuits were enumerated, and there are several, none inside another",
    "minimal": "minimal: no proper subset of a listed circuit is faithful; other circuits may be true too",
    "locally-minimal": "locally-minimal: without any edge, or group of edges tried, a listed circuit is not faithful; "
    "a proper subset may be",
}


def certificate_json(certificate: Certificate) -> dict[str, Any]:
    """Return a certificate as JSON. `circuits` lists all its circuits, smallest first."""
    return {
        "status": certificate.status,
        "inputs": certificate.inputs,
        "pairs": certificate.pairs,
        "exhaustive": certificate.exhaustive,
        "criterion": certificate.criterion,
        "atol": certificate.atol,
        "gap": {"kept": _finite(certificate.gap.kept), "dropped": certificate.gap.dropped},
        "margin": certificate.margin,
        "choices": certificate.choices,
        "circuits": [circuit.names() for circuit in certificate.circuits],
    }


def _finite(value: float) -> float | None:
    """Return None for an infinite value, which JSON lacks: ablated outputs may be infinite or NaN."""
    return value if math.isfinite(value) else None


def truth_json(truth: Truth, program: str) -> dict[str, Any]:
    """Return a truth as JSON: edges by name, the number of structural edges and the number of all edges."""
    graph = truth.circuit.graph
    return {
        "program": program,
        "ablation": truth.circuit.ablation,
        "edges": truth.circuit.names(),
        "structural": len(truth.structural),
        "structural_edges": edge_names(graph, truth.structural),
        "total": graph.total,
        "others_matter": truth.others_matter,
        "certificate": certificate_json(truth.certificate),
    }


def saved_truth(truth: Truth, model: str) -> SavedCircuit:
    """Return the smallest listed circuit with the certificate, which lists all, as `save_circuit` takes them."""
    return SavedCircuit(truth.circuit, model=model, versions=versions(), certificate=saved_certificate(truth))


def saved_certificate(truth: Truth) -> dict[str, Any]:
    """Return a certificate as a circuit's file holds it."""
    structural = edge_names(truth.circuit.graph, truth.structural)
    return certificate_json(truth.certificate) | {"structural": structural, "others_matter": truth.others_matter}


def certificate_rows(truth: Truth, compared: Circuit | None = None) -> list[tuple[str, str]]:
    """Return a certificate in words, one fact per row.

    Args:
        truth: the truth to describe.
        compared: the circuit of the certificate that a found circuit is compared with, if any.
    """
    certificate, graph = truth.certificate, truth.circuit.graph
    by_difference = certificate.criterion == "largest difference"
    sizes = ", ".join(str(len(circuit)) for circuit in certificate.circuits)
    listed = f"{len(certificate.circuits)}, of {sizes} edges"
    if compared is not None and len(certificate.circuits) > 1:
        listed += f"; compared with the nearest, of {len(compared)}"
    if certificate.choices:
        listed += f"; {certificate.choices:,} {'partial circuits built' if by_difference else 'subsets run'}"
    runs = "pairs of clean and corrupted inputs" if truth.circuit.ablation == "resample" else "inputs"
    coverage = "all there are" if certificate.exhaustive else "a seeded sample"
    coverage = coverage if by_difference else "all that its task has"
    status = _STATUS[certificate.status] + (" (among structural edges)" if truth.others_matter else "")
    return [
        ("status", status),
        ("circuits" if certificate.status == "locally-minimal" else "true circuits", listed),
        ("edges", f"{len(truth.structural)} structural, {graph.total} in all"),
        ("run on", f"{certificate.pairs:,} {runs}, {coverage}"),
        (
            "closest call",
            f"{certificate.margin:.3g}: least |difference - tolerance| of a verdict; at most {certificate.atol:g}",
        ),
        ("smallest effect of a true edge", f"{certificate.gap.kept:.3g}"),
        ("left over by all other edges", f"{certificate.gap.dropped:.3g} (at most {certificate.atol:g} allowed)"),
    ]
