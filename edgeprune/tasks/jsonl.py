"""Reads a user's own task: a file with one JSON object a line.

`{"clean": "2 + 2 =<predict> 4</predict>", "corrupted": "2 + 3 =<predict> 5</predict>", "split": "test"}`: the tokens to
predict are marked. Marks of the corrupted text are wrong answers. `split` may be left out. Space before an answer is
part of the answer if the tokenizer has one token for both, and part of the prompt otherwise; so a prompt may end in a
space or a newline. All answers stay in the text, except the last, before which the text is cut. An answer that is not
part of the text, such as a label of the word before it, is marked `<label> noun</label>`.

`{"clean": "( )", "corrupted": ") )", "places": [[1, 4], [2, 3]], "split": "every"}`: for a model whose outputs are not
the next tokens, such as `edgeprune export` writes. A place is a token's position, counting the tokens that the
tokenizer adds, and the id that is right there. An example without places counts in mean ablation only. The split
`every` puts an example into all splits; it is for a file that holds a whole domain.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from edgeprune.errors import ExampleError, TaskError
from edgeprune.files.store import parse_json, read_text
from edgeprune.tasks.example import Example, Place

SPLITS: Final = ("train", "validation", "test")
EVERY: Final = "every"
"""Value of `split` for an example that is in all splits."""

_FIELDS: Final = {"clean", "corrupted", "split", "places"}


@dataclass(frozen=True)
class Line:
    """A line that is not blank: an example and the split that it names, or the line's fault."""

    number: int
    example: Example | None = None
    split: str | None = None
    fault: ExampleError | None = None


def read_examples(path: Path) -> list[tuple[Example, str | None]]:
    """Return the examples of a file in order, each with the split that it names.

    Raises:
        TaskError: the file cannot be read, or a line is not an example. The message names the line.
    """
    examples = list[tuple[Example, str | None]]()
    for line in read_lines(path):
        if line.fault is not None:
            raise line.fault
        assert line.example is not None
        examples.append((line.example, line.split))
    return examples


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a file that are not blank, including faulty ones.

    Raises:
        TaskError: the file cannot be read, or all its lines are blank.
    """
    whole = read_text(path, "a file of examples, one JSON object a line", TaskError).removeprefix("\ufeff")
    lines = whole.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found = [_line(text, number, path) for number, text in enumerate(lines, start=1) if text.strip()]
    if not found:
        raise TaskError(f"Expected examples, one JSON object a line; {path} has none")
    return found


def _line(text: str, number: int, path: Path) -> Line:
    source = f"{path}, line {number}"
    try:
        example, split = _example(text)
    except ExampleError as error:
        return Line(number, fault=ExampleError(f"{error} ({source})", reason=error.reason))
    return Line(number, replace(example, source=source), split)


def _example(line: str) -> tuple[Example, str | None]:
    fields = _fields(line)
    split = fields.get("split")
    if split not in (None, EVERY, *SPLITS):
        raise ExampleError(
            f"Expected a split among {', '.join(SPLITS)} and {EVERY}; got {split!r:.200}",
            reason="a split that is none",
        )
    marked = any(tag in fields["clean"] + fields["corrupted"] for tag in ("<predict>", "<label>"))
    if "places" in fields and marked:
        raise ExampleError(
            f"Expected either marks in the text or places; got both in {line!r:.200}", reason="marks and places"
        )
    if "places" in fields:
        return Example(fields["clean"], fields["corrupted"], (), _places(fields["places"])), split
    return Example.marked(fields["clean"], fields["corrupted"]), split


def _fields(line: str) -> dict[str, Any]:
    try:
        found: Any = parse_json(line)
    except ValueError as error:
        raise ExampleError(f"Expected a JSON object; {error!s:.200}", reason="no JSON object") from error
    wrong = not isinstance(found, dict) or not {"clean", "corrupted"} <= found.keys() <= _FIELDS
    if wrong or not all(isinstance(value, str) for name, value in found.items() if name != "places"):
        raise ExampleError(
            'Expected {"clean": text, "corrupted": text}, and perhaps "split": text and "places": [[position, id], …]; '
            f"got {line!r:.200}",
            reason="fields that are no example's",
        )
    return found


def _places(given: Any) -> tuple[Place, ...]:
    pairs: list[Any] = given if isinstance(given, list) else [None]
    if not all(
        isinstance(pair, list) and [type(number) for number in pair] == [int, int] and min(pair) >= 0  # pyright: ignore
        for pair in pairs
    ):
        raise ExampleError(
            f"Expected places, [[position, id], …], whole numbers from 0; got {given!r:.200}",
            reason="places that are none",
        )
    places = tuple(Place(position, right) for position, right in pairs)
    if len({place.position for place in places}) < len(places):
        raise ExampleError(
            f"Expected places at different positions; got {given!r:.200}", reason="two places at one position"
        )
    return places
