"""Load true circuits from any file or folder that lists them, and find the one nearest to a circuit."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from edgeprune.files.folders import circuit_file
from edgeprune.files.schemas import Listed, checked
from edgeprune.files.store import CircuitFileError, load_circuit, load_json, load_saved
from edgeprune.graph import Ablation, Circuit, Comparison, Edge, Graph, Node, compare_circuits

TRUTH: Final = "truth.json"
"""File with the true circuits of a trained model, in a folder of its own."""

_LISTED: Final = (("certificate.json", "claims"), (TRUTH, "certificate"))
"""Files in a folder that list true circuits, each with the JSON entry that holds them."""

_EXPORT: Final = "edgeprune export "


def load_true(path: Path, ablation: Ablation) -> tuple[Circuit, ...]:
    """Return the true circuits that a file or a folder lists, smallest first.

    Args:
        path: a circuit's file gives all circuits of its certificate or, without one, its own circuit. The folder of a
            certificate or of a trained model's truth gives all that it lists. A run's folder gives its circuit. The
            folder of an exported checkpoint gives all under `ablation`.
        ablation: ablation of the circuit that is compared with them.

    Raises:
        CircuitFileError: the file does not exist, holds no circuit, or lists damaged ones.
        RunError: the folder holds a run that has not ended.
    """
    if not path.is_dir():
        return load_saved(path).true
    content: Any = load_json(circuit_file(path))
    if isinstance(content, dict) and str(content.get("format")).startswith(_EXPORT):
        return _exported(path / "circuit.json", content, ablation)
    first = load_circuit(path / "circuit.json")
    for name, entry in _LISTED:
        if os.path.lexists(path / name):  # anything but a file is refused on reading
            return _beside(path / name, entry, first)
    return load_saved(path / "circuit.json").true


def _beside(path: Path, entry: str, first: Circuit) -> tuple[Circuit, ...]:
    """Return the circuits that a file beside `circuit.json` lists; `first`, that of `circuit.json`, must be one."""
    try:
        listed = checked(Listed, load_json(path)[entry]["circuits"]).root
        found = tuple(Circuit(first.graph, first.ablation, frozenset(map(Edge.parse, names))) for names in listed)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CircuitFileError(f"Expected circuits in {str(path)!r}; it is damaged: {error}") from error
    if first not in found:
        raise CircuitFileError(f"Expected circuits in {str(path)!r}; that of circuit.json is not among them")
    return found


def _exported(path: Path, content: Any, ablation: Ablation) -> tuple[Circuit, ...]:
    """Return the true circuits of an exported checkpoint under an ablation."""
    try:
        known = content["circuits"][ablation]
        if "refused" in known:
            raise CircuitFileError(f"Expected true circuits under {ablation} in {str(path)!r}; {known['refused']}")
        graph = Graph(*(tuple(map(Node.parse, content["graph"][kind])) for kind in ("sources", "destinations")))
        listed = checked(Listed, known["certificate"]["circuits"]).root
        return tuple(Circuit(graph, ablation, frozenset(map(Edge.parse, names))) for names in listed)
    except CircuitFileError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CircuitFileError(f"Expected circuits in {str(path)!r}; it is damaged: {error!r}") from error


def nearest(found: Circuit, true: Sequence[Circuit]) -> Comparison:
    """Compare `found` with the true circuit from which it differs in the fewest edges.

    Raises:
        CircuitMismatch: a true circuit has another graph or ablation.
    """
    comparisons = [compare_circuits(found, circuit) for circuit in true]
    return min(comparisons, key=lambda each: len(each.missing) + len(each.extra))
