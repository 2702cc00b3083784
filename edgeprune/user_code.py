"""Find where in a user's own file an error comes from: the file, the line number, and the line itself."""

import difflib
import linecache
import sysconfig
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from edgeprune.errors import printable

_Error = TypeVar("_Error", bound=BaseException)

_ROOT: Final = Path(__file__).resolve().parents[1]

_LONGEST: Final = 160
"""Largest number of characters shown of a line."""


@cache
def _libraries() -> tuple[Path, ...]:
    """Return the folders and files that are not the user's: Python's, installed packages, and ours."""
    installed = {Path(path).resolve() for name, path in sysconfig.get_paths().items() if "lib" in name}
    return (*installed, *(_ROOT / name for name in ("edgeprune", "tracr_bridge", "_edgeprune_pytest.py")))


def place_of(error: BaseException, source: Callable[..., Any] | None = None) -> str:
    """Return the innermost line of a user's file that an error went through: `mine.py, line 8: return rasp.Selct(…)`.

    Args:
        error: the error that was raised.
        source: the function that was called. If the error went through no user's file, `source`'s own file counts as
            one. If it went through no line of that either (a wrong number of arguments), the first line of `source`.

    Returns:
        The place; empty if there is none.
    """
    if isinstance(error, SyntaxError) and error.filename is not None and error.lineno is not None:
        return _written(error.filename, error.lineno)
    code = getattr(source, "__code__", None)
    home = "" if code is None else code.co_filename
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    theirs = [each for each in frames if _is_users(each[0])] or [each for each in frames if each[0] == home]
    if theirs:
        return _written(*theirs[-1]) + _meant(error)
    return "" if code is None else _written(code.co_filename, code.co_firstlineno)


def at(error: _Error, *places: str) -> _Error:
    """Record in an error the places it comes from, and return it; `told` shows them, `str(error)` does not."""
    error.__dict__["places"] = tuple(dict.fromkeys(filter(None, places)))
    return error


def places_of(error: BaseException) -> tuple[str, ...]:
    """Return the places that `at` recorded in an error."""
    return error.__dict__.get("places", ())


def told(error: BaseException, between: str = "; ") -> str:
    """Return an error's message and places, with the characters that a terminal would obey escaped."""
    return printable(between.join([str(error), *places_of(error)]))


def _is_users(file: str) -> bool:
    path = Path(file)
    return path.is_absolute() and not any(path.resolve().is_relative_to(library) for library in _libraries())


def _written(file: str, line: int) -> str:
    linecache.checkcache(file)
    text = linecache.getline(file, line).strip()
    path = Path(file)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{shown}, line {line}: {text:.{_LONGEST}}" if text else ""


def _meant(error: BaseException) -> str:
    """Return a hint at a similar name if an attribute is missing, as Python's own traceback does; else nothing."""
    if not isinstance(error, AttributeError) or error.name is None:
        return ""
    close = difflib.get_close_matches(error.name, dir(error.obj), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
