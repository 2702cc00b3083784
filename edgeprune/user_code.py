"""Where in a user's own file an error comes from: the file, the line's number, and the line itself."""

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
"""Characters of a line that are shown."""


@cache
def _libraries() -> tuple[Path, ...]:
    """Folders and files whose lines are none of the user's: Python's, installed packages, and ours."""
    installed = {Path(path).resolve() for name, path in sysconfig.get_paths().items() if "lib" in name}
    return (*installed, *(_ROOT / name for name in ("edgeprune", "tracr_bridge", "_edgeprune_pytest.py")))


def place_of(error: BaseException, source: Callable[..., Any] | None = None) -> str:
    """`mine.py, line 8: return rasp.Selct(…)`: the innermost line of a user's file that an error went through.

    Args:
        error: what was raised.
        source: the function that was called. Its own file counts as a user's, wherever it lies; where an error went
            through no line of it, as one about a number of arguments, its first line is the place.

    Returns:
        The place; empty where there is none.
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
    """The same error, which knows where it comes from; `told` says so, and the message alone does not."""
    error.__dict__["places"] = tuple(dict.fromkeys(filter(None, places)))
    return error


def places_of(error: BaseException) -> tuple[str, ...]:
    """Where an error comes from, as `at` was told."""
    return error.__dict__.get("places", ())


def told(error: BaseException, between: str = "; ") -> str:
    """An error's message, and where it comes from, without what would steer a terminal."""
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
    """A name close to one that there is not, as Python's own traceback has it."""
    if not isinstance(error, AttributeError) or error.name is None:
        return ""
    close = difflib.get_close_matches(error.name, dir(error.obj), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
