"""What a JSON file holds, read as a dataclass: of exactly its fields and types, and within its ranges."""

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import RootModel, TypeAdapter, ValidationError

from edgeprune.errors import EdgePruneError
from edgeprune.files.store import load_json

_SHOWN: Final = 3
"""Faults that a message lists, at the most."""

_Kind = TypeVar("_Kind")


class Listed(RootModel[list[list[str]]]):
    """Circuits, each as the names of its edges."""


@cache
def _adapter(kind: type[Any]) -> Any:
    """A `TypeAdapter`, whose own type beartype has no words for."""
    return TypeAdapter(kind)


def checked(kind: type[_Kind], content: Any) -> _Kind:
    """What content that was read from JSON says, as an object of a dataclass or model; other fields are passed over.

    Raises:
        ValueError: it has other types, or values that are out of range; the message says where.
    """
    try:
        return _adapter(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise ValueError(_in_words(error)) from error


def parse(kind: type[_Kind], content: Any) -> _Kind:
    """What content that was read from JSON says, as an object of a dataclass.

    Raises:
        ValueError: it has other fields or types, or values that are out of range.
    """
    found: Any = checked(kind, content)
    try:
        written = json.loads(json.dumps(asdict(found)))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if written != content:
        differing = " ".join(", ".join(_differing(written, content)).split())  # names in a file may have lines
        raise ValueError(f"it lacks, or has beside what it should: {differing}")
    return found


def load(kind: type[_Kind], path: Path, what: str, error: type[EdgePruneError]) -> _Kind:
    """What a JSON file says, as an object of a dataclass.

    Raises:
        EdgePruneError: of type `error`: there is no such file, it is none, or its content is not of that kind.
    """
    content = load_json(path, what, error)
    try:
        return parse(kind, content)
    except ValueError as fault:
        raise error(f"Expected {what} in {str(path)!r}; it is none: {fault}") from fault


def _in_words(error: ValidationError) -> str:
    """The first faults, each with its place."""
    faults = [
        f"in {'/'.join(map(str, fault['loc']))}: {fault['msg']}" if fault["loc"] else fault["msg"]
        for fault in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return f"{' '.join('; '.join(faults[:_SHOWN]).split()):.300}"


def _differing(written: Any, content: Any) -> list[str]:
    """Names of fields that the one has and the other has not, or has otherwise."""
    if not isinstance(written, dict) or not isinstance(content, dict):
        return []
    found = list[str]()
    for name in dict.fromkeys([*written, *content]):
        if name not in written or name not in content:
            found.append(f"{name:.40}")
        elif written[name] != content[name]:
            found += [f"{name}/{inner}" for inner in _differing(written[name], content[name])] or [name]
    return found[:_SHOWN]
