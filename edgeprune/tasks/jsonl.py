"""A task of one's own: a file with one JSON object a line.

`{"clean": "2 + 2 =<predict> 4</predict>", "corrupted": "2 + 3 =<predict> 5</predict>", "split": "test"}`: the tokens to
predict are marked, and what the corrupted text marks are wrong answers; `split` may be left out.

`{"clean": "( )", "corrupted": ") )", "places": [[1, 4], [2, 3]], "split": "every"}`: of a model whose outputs are not
the next tokens, such as `edgeprune export` writes. Each place is a token, counted with those that the tokenizer adds,
and the id that is right there; an example without any plays its part in means alone. The split `every` is that of an
example in all splits, of a file that holds a whole domain.
"""

from pathlib import Path
from typing import Any, Final

from edgeprune.errors import TaskError
from edgeprune.store import parse_json, read_text
from edgeprune.tasks.example import Example, Place

SPLITS: Final = ("train", "validation", "test")
EVERY: Final = "every"
"""In place of a split: the example is in all of them."""

_FIELDS: Final = {"clean", "corrupted", "split", "places"}


def read_examples(path: Path) -> list[tuple[Example, str | None]]:
    """The examples of a file, in its order, each with the split that it asks for.

    Raises:
        TaskError: the file cannot be read, or a line is no example; the line is named.
    """
    lines = read_text(path, "a file of examples, one JSON object a line", TaskError).split("\n")
    examples = list[tuple[Example, str | None]]()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                examples.append(_example(line))
            except TaskError as error:
                raise TaskError(f"{error} ({path}, line {number})") from error
    if not examples:
        raise TaskError(f"Expected examples, one JSON object a line; {path} has none")
    return examples


def _example(line: str) -> tuple[Example, str | None]:
    try:
        fields: Any = parse_json(line)
    except ValueError as error:
        raise TaskError(f"Expected a JSON object; {error!s:.200}") from error
    wrong = not isinstance(fields, dict) or not {"clean", "corrupted"} <= fields.keys() <= _FIELDS
    if wrong or not all(isinstance(value, str) for name, value in fields.items() if name != "places"):
        raise TaskError(
            'Expected {"clean": text, "corrupted": text}, and perhaps "split": text and "places": [[position, id], …]; '
            f"got {line!r:.200}"
        )
    split = fields.get("split")
    if split not in (None, EVERY, *SPLITS):
        raise TaskError(f"Expected a split among {', '.join(SPLITS)} and {EVERY}; got {split!r}")
    if "places" in fields and "<predict>" in fields["clean"] + fields["corrupted"]:
        raise TaskError(f"Expected either marks in the text or places; got both in {line!r:.200}")
    if "places" in fields:
        return Example(fields["clean"], fields["corrupted"], (), _places(fields["places"])), split
    return Example.marked(fields["clean"], fields["corrupted"]), split


def _places(given: Any) -> tuple[Place, ...]:
    pairs: list[Any] = given if isinstance(given, list) else [None]
    if not all(
        isinstance(pair, list) and [type(number) for number in pair] == [int, int] and min(pair) >= 0  # pyright: ignore
        for pair in pairs
    ):
        raise TaskError(f"Expected places, [[position, id], …], whole numbers from 0; got {given!r:.200}")
    places = tuple(Place(position, right) for position, right in pairs)
    if len({place.position for place in places}) < len(places):
        raise TaskError(f"Expected places at different positions; got {given!r:.200}")
    return places
