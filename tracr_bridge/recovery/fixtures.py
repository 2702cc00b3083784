"""The pytest plugin's fixtures and mark for hand-written tests, and the messages for their misuse."""

import inspect
from collections.abc import Callable
from typing import Any, Final

import pytest

from edgeprune.errors import EdgePruneError
from edgeprune.user_code import places_of, told
from tracr_bridge.compile.program import Program

USAGE: Final = (
    "@pytest.mark.programs(name, ...) on a test with an argument program, which runs once for each name, such as "
    '"reverse" or "path/to/file.py:name"'
)


class Asked:
    """A fixture that is called like a function; errors are reported at the test's own line.

    Args:
        ask: the function that the fixture calls.
        usage: how to call the fixture, in words, for messages.
    """

    def __init__(self, ask: Callable[..., Any], usage: str) -> None:
        self._ask, self._usage = ask, usage

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, and return its result."""
        __tracebackhide__ = True
        try:
            inspect.signature(self._ask).bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"Expected {self._usage}; {error}") from None
        try:
            return self._ask(*args, **kwargs)
        except EdgePruneError as error:  # its message and its place suffice; the traceback is dropped
            for place in places_of(error):
                error.add_note(place)
            raise error.with_traceback(None) from None

    def __getattr__(self, name: str) -> Any:
        """Raise AttributeError, with a message that the fixture is to be called."""
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(f"Expected a call, {self._usage}; got .{name} of the fixture itself")

    def __repr__(self) -> str:
        """Return how to call the fixture."""
        return f"<{self._usage}>"


def misuse(marker: pytest.Mark, metafunc: pytest.Metafunc, find: Callable[[str], Program]) -> str:
    """Return what is wrong with a mark `programs`, in words; an empty text if nothing is.

    Args:
        marker: the mark.
        metafunc: the test that has it.
        find: returns the program of a name; raises EdgePruneError if there is none.
    """
    if marker.kwargs:
        return f"got the keyword {next(iter(marker.kwargs))}"
    if not marker.args:
        return "got no name"
    if "program" not in metafunc.fixturenames:
        return "the test has no such argument"
    for mark in metafunc.definition.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs.get("argnames", "")
        if "program" in (names.replace(" ", "").split(",") if isinstance(names, str) else names):
            return "the test is parametrized with program besides"
    for each in marker.args:
        if not isinstance(each, str | Program):
            return f"got {each!r:.80}, which is neither a name nor a program"
        try:
            _ = find(each) if isinstance(each, str) else each
        except EdgePruneError as error:
            return f"got {each!r}: {told(error)}"
    return ""
