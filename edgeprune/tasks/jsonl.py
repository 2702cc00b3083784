"""A task of one's own: a file with one JSON object a line.

`{"clean": "2 + 2 =<predict> 4</predict>", "corrupted": "2 + 3 =<predict> 5</predict>", "split": "test"}`: the tokens to
predict are marked, and what the corrupted text marks are wrong answers; `split` may be left out.
"""

import json
from pathlib import Path
from typing import Any, Final

from edgeprune.errors import TaskError
from edgeprune.tasks.example import Example

SPLITS: Final = ("train", "validation", "test")
_FIELDS: Final = {"clean": str, "corrupted": str, "split": str}


def read_examples(path: Path) -> list[tuple[Example, str | None]]:
    """The examples of a file, in its order, each with the split that it asks for.

    Raises:
        TaskError: the file cannot be read, or a line is no example; the line is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"Expected a file of examples, one JSON object a line; cannot read {path}: {error}") from error
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
        fields: Any = json.loads(line)
        json.dumps(fields, ensure_ascii=False).encode()  # half a character, which no tokenizer takes, is an error
    except (ValueError, RecursionError) as error:
        raise TaskError(f"Expected a JSON object; {error!s:.200}") from error
    wrong = not isinstance(fields, dict) or not {"clean", "corrupted"} <= fields.keys() <= _FIELDS.keys()
    if wrong or not all(isinstance(value, str) for value in fields.values()):
        raise TaskError(f'Expected {{"clean": text, "corrupted": text}}, and perhaps "split": text; got {line!r:.200}')
    split = fields.get("split")
    if split not in (None, *SPLITS):
        raise TaskError(f"Expected a split among {', '.join(SPLITS)}; got {split!r}")
    return Example.marked(fields["clean"], fields["corrupted"]), split
