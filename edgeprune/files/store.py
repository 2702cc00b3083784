"""Write files atomically, read only plain files of bounded size, and save and load circuits."""

import json
import math
import os
import stat
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from io import BufferedReader
from pathlib import Path
from platform import python_version
from typing import IO, Any, Final, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from edgeprune.errors import EdgePruneError, GraphError
from edgeprune.graph import Circuit, Edge, Graph, Node, parse_ablation


class UnwritableFile(EdgePruneError):
    """A file cannot be written at the requested path."""


class CircuitFileError(EdgePruneError):
    """A file holds no circuit, or does not exist."""


LARGEST: Final = 2**29
"""Largest file that is read whole, bytes; a circuit of four million edges with scores takes a third of it."""

_LONGEST_WHOLE_NUMBER: Final = 20
"""Maximum characters of a whole number in JSON: enough for 64 bits."""


def check_writable(path: Path) -> None:
    """Check, before long work, that its result can be written to `path`.

    Raises:
        UnwritableFile: the folder does not exist or cannot be written to, or `path` is itself a folder.
    """
    try:
        usable = not path.is_dir() and path.parent.is_dir() and os.access(path.parent, os.W_OK)
    except OSError:  # the name is too long
        usable = False
    if not usable:
        raise UnwritableFile(f"Expected a file in an existing, writable folder; got {str(path)!r}")


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write to a temporary file beside `path`, then rename it; an existing file stays intact until then.

    A symbolic link is kept, and leads to the new file. Anything but a file, such as a terminal, is written to directly.

    Raises:
        UnwritableFile: the folder does not exist, or cannot be written to.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{uuid.uuid4().hex}")  # short enough for a file's name, however long `path` is
    try:
        if path.exists() and not path.is_file():
            with open(path, "wb") as file:
                write(file)
            return
        with open(temporary, "xb") as file:
            write(file)
        os.replace(temporary, path)
    except OSError as error:
        raise UnwritableFile(f"Expected a file that can be written; got {str(path)!r}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` with `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: object) -> None:
    """Write JSON that `load_json` reads, with `write_atomically`.

    Raises:
        UnwritableFile: the folder cannot be written to, or JSON cannot express `content`: it has NaN, infinity, or
            half a surrogate pair, as in the name of a file that is not UTF-8.
    """
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
        json.dumps(content, ensure_ascii=False).encode()
    except ValueError as error:
        raise UnwritableFile(f"Expected text in UTF-8 and finite numbers for {str(path)!r}; got {error}") from error
    write_text(path, text + "\n")


# Circuits


FORMAT: Final = "edgeprune circuit 1"

SCHEMA: Final = Path(__file__).with_name("circuit.schema.json")
"""Published JSON schema of a circuit's file."""


@dataclass(frozen=True)
class SavedCircuit:
    """A circuit with the other fields of its file."""

    circuit: Circuit
    scores: Mapping[Edge, float] = field(default_factory=dict[Edge, float])
    """How strongly the method keeps each edge, on the method's own scale; empty if unknown."""

    model: str = ""
    """Program or checkpoint that the circuit belongs to; empty if unknown."""

    method: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """`name`, `seed` and `config` of the method that found the circuit; empty for a certified circuit."""

    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    """Versions of the software that ran, by package."""

    family: str = ""
    """Kind of checkpoint, as `config.json` names it; empty if unknown."""

    certificate: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What was proved of the model's true circuits, as `tracr_bridge/certify/summary.py` writes it; may be empty."""

    @property
    def true(self) -> tuple[Circuit, ...]:
        """True circuits: all that the certificate lists or, without a certificate, the circuit itself."""
        listed = self.certificate.get("circuits", ())
        edges = [frozenset(map(Edge.parse, names)) for names in listed]
        return tuple(replace(self.circuit, edges=each) for each in edges) or (self.circuit,)


def save_circuit(saved: SavedCircuit | Circuit, path: Path) -> None:
    """Write a circuit as JSON that follows `SCHEMA`, with nodes and edges by name.

    Raises:
        UnwritableFile: the folder does not exist, or cannot be written to.
    """
    saved = SavedCircuit(saved) if isinstance(saved, Circuit) else saved
    graph = saved.circuit.graph
    content = {
        "format": FORMAT,
        "model": saved.model,
        "family": saved.family,
        "ablation": saved.circuit.ablation,
        "edges": saved.circuit.names(),
        "scores": {str(edge): score for edge, score in saved.scores.items()},
        "method": dict(saved.method),
        "versions": dict(saved.versions),
        "certificate": dict(saved.certificate),
        "graph": {
            "sources": [str(node) for node in graph.sources],
            "destinations": [str(node) for node in graph.destinations],
        },
    }
    optional = ("model", "family", "scores", "method", "versions", "certificate")
    content = {name: value for name, value in content.items() if value or name not in optional}
    write_json(path, content)


def load_circuit(path: Path) -> Circuit:
    """Load the circuit of a file that `save_circuit` wrote.

    Raises:
        CircuitFileError: the file does not exist, or holds no circuit.
    """
    return load_saved(path).circuit


def load_saved(path: Path) -> SavedCircuit:
    """Load a circuit with all other fields of its file.

    Raises:
        CircuitFileError: the file does not exist, or holds no circuit.
    """
    content = load_json(path)
    fault = best_match(Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).iter_errors(content))
    if fault is not None:
        where = "/".join(map(str, fault.absolute_path))
        said = " ".join(f"{where and f'in {where}: '}{fault.message}".split())  # names in a file may have newlines
        raise CircuitFileError(f"Expected a circuit in {str(path)!r}; {said:.300}")
    try:
        graph = Graph(*(tuple(map(Node.parse, content["graph"][kind])) for kind in ("sources", "destinations")))
        circuit = Circuit(graph, parse_ablation(content["ablation"]), frozenset(map(Edge.parse, content["edges"])))
        scores = {Edge.parse(name): float(score) for name, score in content.get("scores", {}).items()}
        for edge in scores:
            graph.position(edge)
        more = {name: content.get(name, {}) for name in ("method", "versions", "certificate")}
        saved = SavedCircuit(circuit, scores, content.get("model", ""), family=content.get("family", ""), **more)
        if not saved.method and circuit not in saved.true:
            raise GraphError("it was certified, and is not among the circuits of its certificate")
    except (GraphError, OverflowError) as error:
        raise CircuitFileError(f"Expected a circuit in {str(path)!r}; {error}") from error
    return saved


def load_json(path: Path, what: str = "a circuit's file", error: type[EdgePruneError] = CircuitFileError) -> Any:
    """Read a JSON file in which all numbers are finite.

    Args:
        path: the file.
        what: what the file should hold, in words, for messages.
        error: the type of exception to raise.

    Raises:
        EdgePruneError: of type `error`: the file does not exist, or is not JSON.
    """
    text = read_text(path, what, error)
    try:
        return parse_json(text)
    except ValueError as fault:
        raise error(f"Expected {what} in {str(path)!r}; it is none: {fault!s:.200}") from fault


def read_text(path: Path, what: str, error: type[EdgePruneError]) -> str:
    """Read a plain file as UTF-8 text.

    Raises:
        EdgePruneError: of type `error`: the file cannot be read, is not a plain file, is too large, or is not UTF-8.
    """
    try:
        return read_bytes(path).decode()
    except (OSError, ValueError) as fault:  # ValueError: bytes that are not UTF-8, or an invalid file name
        reason = fault.strerror if isinstance(fault, OSError) and fault.strerror else fault
        raise error(f"Expected {what}; cannot read {str(path)!r}: {reason!s:.200}") from fault


def read_bytes(path: Path, *, most: int = LARGEST) -> bytes:
    """Read a plain file as bytes.

    Raises:
        OSError: it cannot be read, has more than `most` bytes, or is a folder, or a device or pipe, which may not end.
    """
    with open_plain(path) as file:
        large = os.fstat(file.fileno()).st_size > most
        found = b"" if large else file.read(most + 1)  # the file may have grown since
    if large or len(found) > most:
        raise OSError(f"it has more than {most:,} bytes")
    return found


def open_plain(path: Path) -> BufferedReader:
    """Open a plain file for reading; anything else is refused without waiting for it.

    Raises:
        OSError: it cannot be opened, or is a folder, a device or a pipe.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # or opening a pipe would wait
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is no plain file")
        return os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


def parse_json(text: str) -> Any:
    """Parse JSON in which all numbers are finite.

    Raises:
        ValueError: the text is not JSON, is nested too deeply, or has NaN, infinity, an overlong whole number, half a
            surrogate pair or a repeated name.
    """
    try:
        content = json.loads(
            text, parse_constant=_no_number, parse_float=_finite, parse_int=_whole, object_pairs_hook=_once
        )
        json.dumps(content, ensure_ascii=False).encode()  # fails on half a surrogate pair, which cannot be printed
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object whose names are unique; json itself would silently keep the last of two."""
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, times), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!r:.200} stands in it {times} times")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text:.40} is no number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _whole(text: str) -> int:
    if len(text) > _LONGEST_WHOLE_NUMBER:
        raise ValueError(f"a whole number of {len(text):,} characters is too large")
    return int(text)


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of Python, this package, and the packages that results depend on."""
    found = {"python": python_version()}
    for name in (
        "edgeprune",
        "tracr-pypi",
        "torch",
        "jax",
        "jaxlib",
        "dm-haiku",
        "numpy",
        "scikit-learn",
        "transformers",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a folder, without being installed
            found[name] = "not installed"
    return found
