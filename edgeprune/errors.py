"""Every error that a user can cause, in one tree of `ValueError`s.

A message says what was expected, what was given, and what to do. A broken invariant of our own code is an
`AssertionError`. Where a verdict rests on the invariant, it is a `BrokenPromise`: `python -O` skips `assert`.
"""


class BrokenPromise(AssertionError):
    """An invariant of our own code does not hold, so its verdict would be worthless."""


def promise(holds: bool, what: str) -> None:  # noqa: FBT001
    """Raise BrokenPromise unless an invariant `holds`; unlike `assert`, under `python -O` too.

    Raises:
        BrokenPromise: the invariant does not hold.
    """
    if not holds:
        raise BrokenPromise(what)


class EdgePruneError(ValueError):
    """Unusable input. The command line prints the message as one line and exits with status 2."""


class GraphError(EdgePruneError):
    """A node or an edge that the graph does not have."""


class CircuitMismatch(EdgePruneError):
    """Circuits, or a circuit and a model, that do not match: another graph, or another ablation."""


class UnknownAblation(EdgePruneError):
    """An ablation other than zero, mean and resample."""


class UnknownMethod(EdgePruneError):
    """A discovery method that does not exist: no such name, module or function."""


class MethodError(EdgePruneError):
    """A discovery method that raised, took too long, or returned something that no method may return."""


class ConfigError(EdgePruneError):
    """A setting outside its stated range."""


class UnknownProgram(EdgePruneError):
    """No program of that name in the catalogue or in the file."""


class ProgramFileError(EdgePruneError):
    """A program file that is missing, is not Python, or raises when it is imported."""


class InvalidProgram(EdgePruneError):
    """A program whose declaration is unusable; the message lists every fault."""


class UnsupportedProgram(EdgePruneError):
    """RASP that Tracr cannot compile; the message names every unsupported expression."""


class InterpreterError(EdgePruneError):
    """A program whose own RASP interpreter raises on an input of its domain."""


class DegenerateProgram(EdgePruneError):
    """A fixture on which no method could fail: constant outputs, or an empty circuit."""


class ModelError(EdgePruneError):
    """A language model that cannot be loaded or used: no such name or folder, or an unsupported architecture."""


class TaskError(EdgePruneError):
    """A task that cannot be loaded or used: no such name or file, or an example that does not fit the tokenizer."""


class ExampleError(TaskError):
    """An example that cannot be used.

    Args:
        message: the full message.
        reason: a text that all examples rejected for the same reason share; `message` if empty.
    """

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class RunError(EdgePruneError):
    """A run that cannot continue: its folder holds another run or a damaged file, or its loss is NaN or infinite."""


def printable(text: str) -> str:
    """Return the text with every unprintable character but newline and tab escaped, so no terminal obeys it."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """Return an error's message as one line that is safe to print on a terminal."""
    return printable(" ".join(str(error).split()))
