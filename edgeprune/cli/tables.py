"""Tables on standard output, and JSON: what all commands print."""

import json
import sys
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Final, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeprune.errors import printable

_WIDE: Final = 200
"""Characters in a line of a table, at the most, where no terminal says how many."""


_json_output: list[TextIO] = []
"""Where JSON goes, if not to standard output."""


def as_json(value: object) -> str:
    """Return one line of JSON; the standard knows neither NaN nor infinity."""
    return json.dumps(value, allow_nan=False)


def print_json(value: object) -> None:
    """Print one line of JSON on standard output, which `only_json` may keep for it alone."""
    print(as_json(value), file=_json_output[-1] if _json_output else sys.stdout)


@contextmanager
def only_json() -> Generator[None]:
    """Keep standard output for `print_json`: whatever else is printed goes to standard error."""
    _json_output.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _json_output.pop()


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
