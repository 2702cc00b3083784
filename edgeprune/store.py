"""Files that are never seen half written; circuits as JSON."""

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from edgeprune.errors import EdgePruneError
from edgeprune.graph import Circuit, Edge, Graph, Node, parse_ablation


class UnwritableFile(EdgePruneError):
    """A file that cannot be written where it was asked for."""


class CircuitFileError(EdgePruneError):
    """A file that holds no circuit."""


def check_writable(path: Path) -> None:
    """Find out before long work whether its result can be written to `path`.

    Raises:
        UnwritableFile: the folder does not exist or cannot be written to, or `path` is itself a folder.
    """
    try:
        usable = not path.is_dir() and path.parent.is_dir() and os.access(path.parent, os.W_OK)
    except OSError:  # a name that is too long
        usable = False
    if not usable:
        raise UnwritableFile(f"Expected a file in an existing, writable folder; got {str(path)!r}")


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write to a temporary file beside `path`, then rename it: whatever stood there stays whole until then.

    Raises:
        UnwritableFile: the folder does not exist, or cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            write(file)
        os.replace(temporary, path)
    except OSError as error:
        raise UnwritableFile(f"Expected a file that can be written; got {str(path)!r}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as `write_atomically` does."""
    write_atomically(path, lambda file: file.write(text.encode()))


def save_circuit(circuit: Circuit, path: Path) -> None:
    """Write `circuit` as JSON: its ablation, its graph's sources and destinations, and its edges, all by name.

    Raises:
        UnwritableFile: the folder does not exist, or cannot be written to.
    """
    content = {
        "ablation": circuit.ablation,
        "sources": [str(node) for node in circuit.graph.sources],
        "destinations": [str(node) for node in circuit.graph.destinations],
        "edges": circuit.names(),
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def load_circuit(path: Path) -> Circuit:
    """The circuit that `save_circuit` wrote.

    Raises:
        CircuitFileError: there is no such file, or it holds no circuit.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        graph = Graph(*(tuple(map(Node.parse, content[kind])) for kind in ("sources", "destinations")))
        return Circuit(graph, parse_ablation(content["ablation"]), frozenset(map(Edge.parse, content["edges"])))
    except OSError as error:
        raise CircuitFileError(f"Expected a circuit's file; got {str(path)!r}: {error.strerror}") from error
    except KeyError as error:
        raise CircuitFileError(f"Expected a circuit in {str(path)!r}; it has no {error}") from error
    except (
        TypeError,
        AttributeError,
        ValueError,
        RecursionError,
    ) as error:  # not JSON, not of this form, no such node or edge
        raise CircuitFileError(f"Expected a circuit in {str(path)!r}; {error}") from error
