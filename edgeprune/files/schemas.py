"""Read JSON files as dataclasses: with exactly the dataclass's fields and types, and values within range."""

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import RootModel, TypeAdapter, ValidationError

from edgeprune.errors import EdgePruneError
from edgeprune.files.store import load_json

_SHOWN: Final = 3
"""Maximum number of faults in a message."""

_Kind = TypeVar("_Kind")


class Listed(RootModel[list[list[str]]]):
    """Circuits, each as the list of its edges' names."""


@cache
def _adapter(kind: type[Any]) -> Any:
    """Return the `TypeAdapter` of a type; it is annotated as Any, as beartype cannot check its own type."""
    return TypeAdapter(kind)


def checked(kind: type[_Kind], content: Any) -> _Kind:
    """Return content that was read from JSON as a dataclass or pydantic model; other fields are ignored.

    Raises:
        ValueError: a type is wrong, or a value is out of range; the message says where.
    """
    try:
        return _adapter(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise ValueError(_in_words(error)) from error


def parse(kind: type[_Kind], content: Any) -> _Kind:
    """Return content that was read from JSON as a dataclass that has exactly its fields.

    Raises:
        ValueError: fields or types differ, or a value is out of range.
    """
    found: Any = checked(kind, content)
    try:
        written = json.loads(json.dumps(asdict(found)))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if written != content:
        differing = " ".join(", ".join(_differing(written, content)).split())  # names in a file may have newlines
        raise ValueError(f"it lacks, or has beside what it should: {differing}")
    return found


def load(kind: type[_Kind], path: Path, what: str, error: type[EdgePruneError]) -> _Kind:
    """Return what a JSON file holds, as a dataclass.

    Raises:
        EdgePruneError: of type `error`: the file does not exist, is not JSON, or its content does not fit `kind`.
    """
    content = load_json(path, what, error)
    try:
        return parse(kind, content)
    except ValueError as fault:
        raise error(f"Expected {what} in {str(path)!r}; it is none: {fault}") from fault


def _in_words(error: ValidationError) -> str:
    """Return the first faults as text, each with its place in the content."""
    faults = [
        f"in {'/'.join(map(str, fault['loc']))}: {fault['msg']}" if fault["loc"] else fault["msg"]
        for fault in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return f"{' '.join('; '.join(faults[:_SHOWN]).split()):.300}"


def _differing(written: Any, content: Any) -> list[str]:
    """Return names of the first fields that only one side has, or whose values differ."""
    if not isinstance(written, dict) or not isinstance(content, dict):
        return []
    found = list[str]()
    for name in dict.fromkeys([*written, *content]):
        if name not in written or name not in content:
            found.append(f"{name:.40}")
        elif written[name] != content[name]:
            found += [f"{name}/{inner}" for inner in _differing(written[name], content[name])] or [name]
    return found[:_SHOWN]
