"""Results as tables for people and as JSON for programs."""

import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeprune.errors import printable
from edgeprune.formats import scores_by_edge
from edgeprune.graph import Circuit, edge_names
from edgeprune.methods import configuration
from edgeprune.store import SavedCircuit, versions
from tracr_bridge.recover import Recovery
from tracr_bridge.truth import Certificate, Status, Truth
from tracr_bridge.verify import Verification

_WIDE: Final = 200
"""Characters in a line of a table, at the most, where no terminal says how many."""

_STATUS: Final[dict[Status, str]] = {
    "unique": "unique: all true circuits were enumerated, and there is one",
    "ambiguous": "ambiguous: all true circuits were enumerated, and there are several, none inside another",
    "minimal": "minimal: no proper subset of a listed circuit is faithful; other circuits may be true too",
    "locally-minimal": "locally-minimal: without any edge, or group of edges tried, a listed circuit is not faithful; "
    "a proper subset may be",
}

_PROOF: Final = {"listed": "exact", "proved": "exact: proved itself, and not listed before"}


def certificate_json(certificate: Certificate) -> dict[str, Any]:
    """A certificate as JSON; `circuits` lists all circuits that it is about, smallest first."""
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
    """JSON knows no infinity: without some edge, outputs may be no numbers."""
    return value if math.isfinite(value) else None


def truth_json(truth: Truth, program: str) -> dict[str, Any]:
    """A truth as JSON: edges by name, and how many are structural and how many there are."""
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


def recovery_json(recovery: Recovery) -> dict[str, Any]:
    """A recovery as JSON."""
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


def saved_truth(truth: Truth, model: str) -> SavedCircuit:
    """All true circuits and their certificate, as `save_circuit` takes them; `circuit` is the smallest."""
    return SavedCircuit(truth.circuit, model=model, versions=versions(), certificate=_saved_certificate(truth))


def _saved_certificate(truth: Truth) -> dict[str, Any]:
    structural = edge_names(truth.circuit.graph, truth.structural)
    return certificate_json(truth.certificate) | {"structural": structural, "others_matter": truth.others_matter}


def saved_circuit(recovery: Recovery) -> SavedCircuit:
    """The circuit found, with its scores, what found it, and the truth, as `save_circuit` takes it."""
    circuit, name = recovery.discovery.circuit, recovery.method
    method = {"name": name, "seed": recovery.seed, "config": configuration(name)}
    method |= {"signed": True} if recovery.discovery.signed else {}
    scores = scores_by_edge(recovery.discovery.scores, circuit.graph)
    certificate = _saved_certificate(recovery.assessment.truth)
    return SavedCircuit(circuit, scores, recovery.name, method, versions(), certificate=certificate)


def verification_json(verification: Verification, program: str) -> dict[str, Any]:
    """A verification as JSON."""
    return {
        "program": program,
        "equal": verification.equal,
        "inputs": verification.inputs,
        "exhaustive": verification.exhaustive,
        "max_abs_diff": verification.max_abs_diff if math.isfinite(verification.max_abs_diff) else None,
        "mismatches": list(verification.mismatches),
    }


def as_json(value: object) -> str:
    """One line of JSON as the standard has it, which knows neither NaN nor infinity."""
    return json.dumps(value, allow_nan=False)


def certificate_rows(truth: Truth, compared: Circuit | None = None) -> list[tuple[str, str]]:
    """A certificate in words, one fact a row.

    Args:
        truth: what was certified.
        compared: of its circuits, the one that another is compared with.
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
        ("closest call", f"{certificate.margin:.3g}: smallest |difference - tolerance| among the verdicts"),
        ("smallest effect of a true edge", f"{certificate.gap.kept:.3g}"),
        ("left over by all other edges", f"{certificate.gap.dropped:.3g} (at most {certificate.atol:g} allowed)"),
    ]


def _text(text: str) -> Text:
    """A text that is no markup, and steers no terminal, whatever a program says of itself."""
    return Text(printable(text))


def print_rows(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """A titled two-column table on standard output."""
    table = Table(title=_text(title), title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*map(_text, row))
    Console().print(table)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A titled table on standard output."""
    table = Table(*header, title=_text(title), title_justify="left")
    for column in table.columns:
        column.overflow = "fold"  # where a name is cut off, it may be another's
    for row in rows:
        table.add_row(*map(_text, row))
    # A file is as wide as it has to be.
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)


def print_matrix(used: Mapping[str, Collection[str]], columns: Sequence[str]) -> None:
    """Which columns each row has, a dot each, on standard output; below, what the columns' numbers stand for.

    Args:
        used: for each row, its columns.
        columns: all columns, in order.
    """
    width = max(map(len, used))
    numbers = [f"{number:2}" for number in range(1, len(columns) + 1)]
    for digit in (0, 1):
        print(" " * width, "".join(number[digit] for number in numbers))
    for name, found in used.items():
        print(f"{printable(name):<{width}}", "".join("●" if column in found else "·" for column in columns))
    print()
    for number, column in zip(numbers, columns, strict=True):
        print(number, f"{column}: {sum(column in found for found in used.values())} of {len(used)}")


def edge_rows(recovery: Recovery) -> list[tuple[str, str, str, str]]:
    """Every edge that is true or found: its name, whether it is each, and the method's score for it."""
    graph = recovery.assessment.reference.graph
    true, found = recovery.assessment.reference.edges, recovery.discovery.circuit.edges
    rows: list[tuple[str, str, str, str]] = []
    for edge in sorted(true | found, key=lambda e: graph.position(e)[::-1]):
        score = float(recovery.discovery.scores[graph.position(edge)])
        rows.append((str(edge), "yes" if edge in true else "-", "yes" if edge in found else "-", f"{score:.3f}"))
    return rows


def summary_rows(recovery: Recovery) -> list[tuple[str, str]]:
    """A recovery in words, one fact a row."""
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


def print_recovery(recovery: Recovery) -> None:
    """A recovery as two tables: its edges, then the verdict and the certificate."""
    name, ablation = recovery.name, recovery.assessment.reference.ablation
    print_table(f"{name}, {ablation} ablation", ("edge", "true", "found", "score"), edge_rows(recovery))
    print_rows(recovery.doc, summary_rows(recovery))


def print_truth(truth: Truth, name: str, doc: str) -> None:
    """A truth as two tables: its edges, then the certificate."""
    rows = [(edge,) for edge in truth.circuit.names()]
    print_table(f"{name}, {truth.circuit.ablation} ablation", ("true edge",), rows)
    print_rows(doc, certificate_rows(truth))
