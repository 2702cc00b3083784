"""Every error that a user can cause, in one tree.

A message says what was expected, what came, and what to do. All of them are `ValueError`s. A broken promise of our own
code is an `AssertionError`: a `BrokenPromise` where a verdict rests on it, as `assert` says nothing under `python -O`.
"""


class BrokenPromise(AssertionError):
    """What our own code promises does not hold, so that its verdict would be worth nothing."""


def promise(holds: bool, what: str) -> None:  # noqa: FBT001
    """Raise where a promise that a verdict rests on is broken, under `python -O` too.

    Raises:
        BrokenPromise: it is.
    """
    if not holds:
        raise BrokenPromise(what)


class EdgePruneError(ValueError):
    """Unusable input: the command line prints the message as one line and exits with 2."""


class GraphError(EdgePruneError):
    """A node or an edge that the graph does not have."""


class CircuitMismatch(EdgePruneError):
    """Two circuits that cannot be compared: another graph, or another ablation."""


class UnknownAblation(EdgePruneError):
    """An ablation that is none of zero, mean and resample."""


class UnknownMethod(EdgePruneError):
    """A discovery method that the registry does not hold."""


class MethodError(EdgePruneError):
    """A discovery method that raised, took too long, or returned what no method may return."""


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
    """A language model cannot be had or used: no such name or folder, or a kind that is not supported."""


class TaskError(EdgePruneError):
    """A task cannot be had or used: no such name or file, or an example that does not fit the model's tokenizer."""


class ExampleError(TaskError):
    """An example that cannot be used.

    Args:
        message: the whole of it.
        reason: what examples that are refused for the same reason share.
    """

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class RunError(EdgePruneError):
    """A run that cannot go on: its folder holds another run or a damaged file, or its loss is no number any more."""


def printable(text: str) -> str:
    """A text without what would steer a terminal: all but lines and tabs that is not to be seen is escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """The message of an error as one line that a terminal can be shown."""
    return printable(" ".join(str(error).split()))
