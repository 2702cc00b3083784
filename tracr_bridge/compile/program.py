"""Programs: a RASP expression, its vocabulary and its domain of inputs."""

import inspect
import itertools
import math
import operator
import random
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any, Final, SupportsIndex

from tracr.compiler.compiling import COMPILER_BOS, COMPILER_PAD
from tracr.rasp import causal_eval, rasp

from edgeprune.errors import DegenerateProgram, InterpreterError, InvalidProgram
from edgeprune.user_code import at, place_of

TokenSequence = tuple[Any, ...]

_SEARCHED: Final = 1_000_000
"""Maximum number of sequences to test with `valid`. If there are more, the domain is sampled rather than listed; if no
tested sequence is valid, it counts as empty."""

GUARDED: Final = "lambda x, y: x / y if y else 0"
"""A division that never raises, for error messages."""


class Interpreter(rasp.DefaultRASPEvaluator):
    """RASP's interpreter for one input; evaluates each expression once, even if several others read it."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, tuple[rasp.RASPExpr, Any]] = {}
        """Results by `id` of the expression; expressions are kept too, so that no `id` is reused."""

        self.failed: rasp.RASPExpr | None = None
        """The innermost expression that was being evaluated when an error was raised; None if none was."""

    def evaluate(self, expr: rasp.RASPExpr, xs: Any) -> Any:
        """Return the value of `expr` on `xs`; later calls return the stored value."""
        if id(expr) not in self._known:
            try:
                self._known[id(expr)] = expr, super().evaluate(expr, xs)
            except (Exception, SystemExit):  # a user's lambda may raise anything
                self.failed = expr if self.failed is None else self.failed
                raise
        return self._known[id(expr)][1]

    def is_undefined(self, sop: rasp.SOp) -> bool:
        """Return whether `sop` was evaluated and is None at some position."""
        return id(sop) in self._known and any(value is None for value in self._known[id(sop)][1])


class CausalInterpreter(Interpreter, causal_eval.CausalEvaluator):
    """RASP's interpreter for one input, under a causal mask."""


@dataclass(frozen=True)
class Domain:
    """The inputs that a program is run on."""

    inputs: tuple[TokenSequence, ...]
    """Token sequences without BOS, sorted by length, then in the vocabulary's order."""

    exhaustive: bool
    """Whether `inputs` holds all valid sequences, rather than a seeded sample."""


@dataclass(frozen=True)
class Program:
    """A RASP program, with everything needed to compile and check it."""

    name: str
    doc: str
    """One sentence that says what the program computes."""

    build: Callable[[], rasp.SOp]
    vocab: TokenSequence
    max_seq_len: int
    causal: bool = False
    """Whether a position attends only to itself and earlier positions."""

    valid: Callable[[TokenSequence], bool] | None = None
    """Restricts the domain to the sequences for which it returns true; None allows all."""

    min_seq_len: int = 1
    source: str = field(default="", repr=False, compare=False)
    """Text of the file that declares the program; empty if it was not loaded from a file."""

    def __post_init__(self) -> None:
        """Convert whole numbers of other types, such as NumPy's, to int."""
        for name in ("max_seq_len", "min_seq_len"):
            object.__setattr__(self, name, _as_int(getattr(self, name)))

    def expression(self) -> rasp.SOp:
        """Return the RASP expression, which is built once."""
        return self._expression

    @cached_property
    def _expression(self) -> Any:
        return self.build()  # a user's function may return anything; `check` reports that

    def interpreter(self) -> "Interpreter":
        """Return a new RASP interpreter, for one input."""
        return CausalInterpreter() if self.causal else Interpreter()

    def evaluate(self, tokens: TokenSequence) -> list[Any]:
        """Return RASP's output on `tokens` (without BOS), one value per position; None where it is undefined.

        Raises:
            InterpreterError: RASP's interpreter raises.
        """
        return self.evaluate_all([self.expression()], tokens)[0]

    def evaluate_all(self, expressions: Iterable[rasp.SOp], tokens: TokenSequence) -> list[list[Any]]:
        """Return the values of each expression on `tokens`.

        Raises:
            InterpreterError: RASP's interpreter raises; the message names the expression, the input and the remedy.
        """
        interpreter = self.interpreter()
        try:
            return [list(interpreter.evaluate(expression, list(tokens))) for expression in expressions]
        except (Exception, SystemExit) as error:  # a user's lambda may raise anything
            name = "its output" if interpreter.failed is None else interpreter.failed.name
            raise at(
                InterpreterError(
                    f"RASP's interpreter raises in {name} of {self.name}, on input {list(tokens)}: "
                    f"{described(error)}; {_remedy(interpreter, error)}"
                ),
                place_of(error, function_of(interpreter.failed) or self.build),
            ) from error

    def check(self) -> None:
        """Raise if the declaration has faults.

        Raises:
            InvalidProgram: the declaration has faults; the message lists them all.
        """
        built, place = _expression_faults(self)
        if faults := _declaration_faults(self) + built:
            raise at(InvalidProgram(f"{self.name} cannot be used: {'; '.join(faults)}"), place)

    def domain(self, *, budget: int, seed: int) -> Domain:
        """Return all valid inputs if they can be listed and fit the budget, else a seeded sample of about that size.

        Raises:
            InvalidProgram: no valid sequence was found, or `valid` raises.
        """
        lengths = range(self.min_seq_len, self.max_seq_len + 1)
        total = sum(len(self.vocab) ** length for length in lengths)
        if total <= _SEARCHED:
            inputs = tuple(tokens for tokens in self._sequences() if self._is_valid(tokens))
            exhaustive = len(inputs) <= budget
            if not exhaustive:
                inputs = _sample_listed(inputs, budget, seed)
        else:
            exhaustive = False
            inputs = self._sample_drawn(budget, seed)
        if not inputs:
            tried = "every sequence" if total <= _SEARCHED else f"each of the {_SEARCHED:,} sequences drawn"
            raise InvalidProgram(
                f"{self.name} cannot be used: its domain is empty, as `valid` is false for {tried} of "
                f"{self.min_seq_len} to {self.max_seq_len} tokens; widen it, or take a smaller vocab or max_seq_len"
            )
        return Domain(inputs, exhaustive)

    def _sequences(self) -> Iterator[TokenSequence]:
        for length in range(self.min_seq_len, self.max_seq_len + 1):
            yield from itertools.product(self.vocab, repeat=length)

    def _is_valid(self, tokens: TokenSequence) -> bool:
        if self.valid is None:
            return True
        try:
            return bool(self.valid(tokens))
        except (Exception, SystemExit) as error:  # a user's function may raise anything
            message = f"{self.name} cannot be used: `valid` raises {described(error)} on {list(tokens)}"
            raise at(InvalidProgram(message), place_of(error, self.valid)) from error

    def _sample_drawn(self, budget: int, seed: int) -> tuple[TokenSequence, ...]:
        """Return distinct valid sequences, an equal share for each length, drawn without listing the domain."""
        rng = random.Random(seed)
        lengths = range(self.min_seq_len, self.max_seq_len + 1)
        share = max(1, budget // len(lengths))
        drawn: list[TokenSequence] = []
        for length in lengths:
            wanted = min(share, len(self.vocab) ** length)
            chosen: set[TokenSequence] = set()
            for _ in range(_SEARCHED // len(lengths)):
                if len(chosen) == wanted:
                    break
                tokens = tuple(rng.choices(self.vocab, k=length))
                if self._is_valid(tokens):
                    chosen.add(tokens)
            drawn += sorted(chosen, key=lambda tokens: [self.vocab.index(token) for token in tokens])
        return tuple(drawn)


def _sample_listed(inputs: tuple[TokenSequence, ...], budget: int, seed: int) -> tuple[TokenSequence, ...]:
    """Return a seeded sample in the listed order; the shares of each length are as even as the inputs allow."""
    rng = random.Random(seed)
    by_length = [list(group) for _, group in itertools.groupby(inputs, key=len)]
    left, chosen = budget, list[TokenSequence]()
    # Short lengths have few inputs; the unused part of their share goes to longer lengths.
    for rank, group in enumerate(by_length):
        share = min(len(group), max(1, left // (len(by_length) - rank)))
        chosen += [group[i] for i in sorted(rng.sample(range(len(group)), share))]
        left -= share
    return tuple(chosen)


def rasp_program(
    *,
    vocab: Iterable[Any],
    max_seq_len: SupportsIndex,
    causal: bool = False,
    valid: Callable[[TokenSequence], bool] | None = None,
    min_seq_len: SupportsIndex = 1,
) -> Callable[[Callable[[], rasp.SOp]], Program]:
    """Return a decorator that turns a function into a `Program`, named after it and described by its docstring.

    Args:
        vocab: tokens, without BOS and PAD, in the order of the domain; a set is sorted.
        max_seq_len: length of the longest input, in tokens without BOS.
        causal: whether a position attends only to itself and earlier positions.
        valid: restricts the domain to the sequences for which it returns true.
        min_seq_len: length of the shortest input, in tokens without BOS.
    """

    def declare(build: Callable[[], rasp.SOp]) -> Program:
        doc = " ".join((inspect.getdoc(build) or "").split("\n\n")[0].split())
        tokens = sorted(vocab, key=repr) if isinstance(vocab, Set) else vocab  # a set's own order differs between runs
        name = getattr(build, "__name__", "program")
        return Program(name, doc, build, tuple(tokens), _as_int(max_seq_len), causal, valid, _as_int(min_seq_len))

    return declare


def check_interpreter(program: Program, domain: Domain) -> list[list[Any]]:
    """Return RASP's output on every input of `domain`.

    Raises:
        InterpreterError: the interpreter raises on an input.
        InvalidProgram: an output is neither None nor a hashable, finite value.
        DegenerateProgram: the output never varies, so no method could fail on it.
    """
    outputs = [program.evaluate(tokens) for tokens in domain.inputs]
    for tokens, output in zip(domain.inputs, outputs, strict=True):
        odd = [value for value in output if not _is_usable(value)]
        if odd:
            raise InvalidProgram(
                f"{program.name} cannot be used: on {list(tokens)} it gives {odd[0]!r}; outputs are None, or "
                "values that are hashable and, where they are numbers, finite"
            )
    values = {value for output in outputs for value in output if value is not None}
    if len(values) < 2:
        found = f"always {values.pop()!r}" if values else "undefined at every position"
        tried = f"all {len(outputs)} inputs" if domain.exhaustive else f"a sample of {len(outputs)} inputs"
        raise DegenerateProgram(
            f"Expected outputs that vary; those of {program.name} are {found} on {tried}, so "
            "nothing could fail on it: widen vocab, max_seq_len or `valid`, or change what it computes"
        )
    return outputs


def function_of(expression: rasp.RASPExpr | None) -> Callable[..., Any] | None:
    """Return the function that a user gave an expression; None if there is none, or RASP itself made it."""
    function = getattr(expression, "f", None) or getattr(expression, "predicate", None)
    return None if getattr(function, "__module__", "") == rasp.__name__ else function


def _as_int(value: Any) -> Any:
    """Return `value` as an int if it is a whole number of any type; return a bool or anything else unchanged."""
    if isinstance(value, bool):
        return value
    try:
        return operator.index(value)
    except TypeError:  # `check` reports it
        return value


def _remedy(interpreter: Interpreter, error: BaseException) -> str:
    """Return advice on how to fix an error of RASP's interpreter."""
    failed = interpreter.failed
    if isinstance(failed, rasp.Select):
        undefined = [sop.name for sop in (failed.keys, failed.queries) if interpreter.is_undefined(sop)]
        if undefined:
            return (
                f"{' and '.join(dict.fromkeys(undefined))} is None at some positions: give {failed.name} a lambda that "
                f"is False for None, as in `{_predicate_without_none(failed.predicate)}`"
            )
    if isinstance(error, ArithmeticError):
        return f"guard its lambda, as in `{GUARDED}`, or narrow the domain with `valid`"
    if isinstance(failed, rasp.Aggregate):
        return "let its selector select one position, or aggregate numbers"
    return "mend its lambda, or narrow the domain with `valid`"


def _predicate_without_none(predicate: object) -> str:
    comparison = predicate.value if isinstance(predicate, rasp.Comparison) else "..."
    if comparison in ("True", "False", "..."):
        return f"lambda key, query: None not in (key, query) and {comparison}"
    return f"lambda key, query: None not in (key, query) and key {comparison} query"


def described(error: BaseException) -> str:
    """Return an error's type and text on one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # a user's error class may raise anything
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_usable(value: Any) -> bool:
    return is_hashable(value) and is_finite(value)


def is_finite(value: Any) -> bool:
    """Return whether `value` is neither NaN nor infinite; True for anything that is not a real number."""
    try:
        return not isinstance(value, Real) or math.isfinite(value)
    except OverflowError:  # an int too large for a float
        return True


def is_hashable(value: Any) -> bool:
    """Return whether `value` can be hashed; a tuple can if all its items can."""
    try:
        hash(value)
    except Exception:  # a user's class may raise anything
        return False
    return True


def expressions_of(output: rasp.SOp) -> Iterator[rasp.RASPExpr]:
    """Yield `output` and every expression that it depends on, each once, breadth first."""
    seen: set[int] = set()
    queue: list[rasp.RASPExpr] = [output]
    while queue:
        expression = queue.pop(0)
        if id(expression) not in seen:
            seen.add(id(expression))
            queue.extend(expression.children)
            yield expression


def _declaration_faults(program: Program) -> list[str]:
    faults: list[str] = []
    if not program.vocab:
        faults.append("vocab is empty; name at least two tokens")
    if not all(map(is_hashable, program.vocab)):
        faults.append(f"vocab holds what cannot be hashed: {list(program.vocab)}; take strings, numbers or tuples")
    elif len(set(program.vocab)) < len(program.vocab):
        faults.append(f"vocab names a token twice: {list(program.vocab)}")
    if len({type(token) for token in program.vocab}) > 1:
        faults.append(f"vocab mixes types: {list(program.vocab)}; tokens are all of one type")
    for name, token in (("BOS", COMPILER_BOS), ("PAD", COMPILER_PAD)):
        if token in program.vocab:
            faults.append(f"vocab holds {token!r}, which the compiler keeps for {name}")
    lengths: dict[str, object] = {"max_seq_len": program.max_seq_len, "min_seq_len": program.min_seq_len}
    odd = [f"{name} is {value!r}; it is a whole number" for name, value in lengths.items() if type(value) is not int]
    if odd:
        return faults + odd
    if program.max_seq_len < 1:
        faults.append(f"max_seq_len is {program.max_seq_len}; it is at least 1")
    elif not 1 <= program.min_seq_len <= program.max_seq_len:
        faults.append(f"min_seq_len is {program.min_seq_len}; it is from 1 to max_seq_len, {program.max_seq_len}")
    return faults


def _expression_faults(program: Program) -> tuple[list[str], str]:
    """Return the faults of the expression, and where they are: the line that raises, else the declaration."""
    declared = place_of(InvalidProgram(), program.build)
    try:
        expression: object = program._expression  # pyright: ignore[reportPrivateUsage]
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        return [f"building it raises {described(error)}"], place_of(error, program.build)
    if not isinstance(expression, rasp.SOp):
        return [f"it returns {type(expression).__name__}; a program returns a rasp.SOp"], declared
    if any(isinstance(inner, rasp.TokensType) for inner in expressions_of(expression)):
        return [], ""
    return ["it never reads rasp.tokens, so that its output cannot depend on the input's tokens"], declared
