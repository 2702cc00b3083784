"""Compile a program: Tracr's model, the same model in PyTorch, and the domain as a dataset."""

import itertools
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from numbers import Real
from typing import Any, Final, NamedTuple

import haiku as hk
import jax
import numpy as np
import torch
from tracr.compiler import compiling, validating
from tracr.compiler.assemble import AssembledTransformerModel
from tracr.rasp import rasp
from tracr.transformer.model import Transformer

from edgeprune.data import Dataset
from edgeprune.errors import UnsupportedProgram
from edgeprune.user_code import at, place_of
from tracr_bridge.compile.model import TracrModel
from tracr_bridge.compile.optimised import check_haiku
from tracr_bridge.compile.program import (
    GUARDED,
    Domain,
    Program,
    check_interpreter,
    described,
    expressions_of,
    is_finite,
    is_hashable,
)
from tracr_bridge.compile.weights import extract_weights

INPUT_BUDGET: Final = 4096
"""Maximum number of inputs to run; a seeded sample replaces a larger domain."""

VALIDATED_INPUTS: Final = 256
"""Approximate number of inputs on which RASP is searched for expressions that Tracr compiles to something else."""

_LARGEST: Final = 1e36
"""Largest absolute value of a number: Tracr multiplies values by 100, and single precision ends at 3.4e38."""

_BOS: Final = compiling.COMPILER_BOS
_PAD: Final = compiling.COMPILER_PAD

_UNCOMPILABLE: Final[dict[type[rasp.RASPExpr], str]] = {
    rasp.SelectorAnd: "composite selectors are not compiled; use one Select with a combined predicate",
    rasp.SelectorOr: "composite selectors are not compiled; use one Select with a combined predicate",
    rasp.SelectorNot: "composite selectors are not compiled; use one Select with a negated predicate",
    rasp.ConstantSelector: "constant selectors are not compiled; use a Select",
    rasp.ConstantSOp: "constant sequences are not compiled; map tokens or indices to the constant",
    rasp.Full: "constant sequences are not compiled; map tokens or indices to the constant",
    rasp.LengthType: "rasp.length is not compiled; use the width of a selector that is always true",
}


class _Reason(NamedTuple):
    """Why Tracr cannot compile the expression `name`.

    Messages state each `rule` once per expression; `got` is what first breaks it, `place` the line that raised.
    """

    name: str
    rule: str
    got: str = ""
    place: str = ""


@dataclass(frozen=True)
class Compiled:
    """A compiled program: Tracr's model, the same model in PyTorch, and the inputs on which both are checked."""

    program: Program
    assembled: AssembledTransformerModel
    model: TracrModel
    domain: Domain
    expected: tuple[tuple[Any, ...], ...]
    """RASP's output for every input of `domain`, one value per position; None where it is undefined."""

    dataset: Dataset
    """The domain as token ids: BOS first, PAD on the right. Positions where RASP's output is defined are scored."""

    @property
    def categorical(self) -> bool:
        """Whether the output is categorical (one column per value), rather than numerical (the value itself)."""
        return rasp.is_categorical(self.program.expression())

    @cached_property
    def output_values(self) -> tuple[Any, ...]:
        """The value of each output column of a categorical program; empty for a numerical one."""
        if not self.categorical:
            return ()
        encoding: dict[Any, int] = self.assembled.output_encoder.encoding_map  # pyright: ignore
        return tuple(sorted(encoding, key=encoding.__getitem__))

    def encode(self, tokens: tuple[Any, ...]) -> list[int]:
        """Return the token ids of an input, with BOS first."""
        encoding: dict[Any, int] = self.assembled.input_encoder.encoding_map  # pyright: ignore
        return [encoding[token] for token in (_BOS, *tokens)]


def compile_program(program: Program, *, budget: int = INPUT_BUDGET, seed: int = 0) -> Compiled:
    """Compile `program` with Tracr and run it on its domain.

    Args:
        program: the program to compile.
        budget: maximum number of inputs; a seeded sample replaces a larger domain, and is marked as not exhaustive.
        seed: seed of that sample.

    Raises:
        InvalidProgram: the declaration has faults, the domain is empty, or an output is unhashable or not finite.
        InterpreterError: RASP's interpreter raises on an input.
        UnsupportedProgram: Tracr cannot compile the program; the message lists every reason.
        DegenerateProgram: the output never varies.
    """
    program.check()
    domain = program.domain(budget=budget, seed=seed)
    static = _static_reasons(program)
    if static:  # RASP may be unable to run expressions that Tracr cannot compile
        raise _unsupported(program, static)
    expected = tuple(tuple(output) for output in check_interpreter(program, domain))
    dynamic = [*_dynamic_reasons(program, domain), *_Tables(program).reasons]
    if dynamic:
        raise _unsupported(program, dynamic)
    check_haiku()
    assembled = _assemble(program)
    model = _build_model(program, assembled)
    tokens, group = _tokens(program, assembled, domain)
    scored = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, output in enumerate(expected):
        scored[row, 1 : len(output) + 1] = torch.tensor([value is not None for value in output])
    with torch.no_grad():
        target = model(tokens)
    logits = rasp.is_categorical(program.expression())
    dataset = Dataset(tokens=tokens, scored=scored, target=target, group=group, logits=logits)
    return Compiled(program, assembled, model, domain, expected, dataset)


def _assemble(program: Program) -> AssembledTransformerModel:
    def compile_rasp() -> AssembledTransformerModel:
        with hk.custom_creator(_no_random_parameters), hk.intercept_methods(_only_shapes):
            return compiling.compile_rasp_to_model(
                program.expression(),
                vocab=set(program.vocab),
                max_seq_len=program.max_seq_len,
                causal=program.causal,
                compiler_bos=_BOS,
                compiler_pad=_PAD,
            )

    try:
        with _without_arithmetic_warnings():
            # Haiku accepts a custom parameter creator only inside a transform.
            return hk.transform(compile_rasp).apply({}, None)
    except (Exception, SystemExit) as error:  # Tracr's passes and a user's lambdas may raise anything
        wide = _Tables(program).wide_aggregates() if "could not broadcast" in str(error) else []
        if wide:
            raise _unsupported(program, wide) from error
        message = f"Tracr cannot compile {program.name}: {described(error)}"
        raise at(UnsupportedProgram(message), place_of(error, program.build)) from error


@contextmanager
def _without_arithmetic_warnings() -> Generator[None]:
    """Suppress Tracr's log messages about ArithmeticErrors that it ignores; `_Tables` reports those that matter."""

    def matters(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Encountered arithmetic error")

    # Tracr logs through the root logger. If that had no handler, Python would install one permanently.
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    root.addFilter(matters)
    try:
        yield
    finally:
        root.removeFilter(matters)
        root.removeHandler(handler)


# Tracr finds its parameters by running its model on random ones, and JAX compiles every operation for each new shape.
# We avoid that: embeddings start with their real values and Tracr overwrites the rest, so zeros and shapes suffice.


def _no_random_parameters(
    create: Callable[..., Any], shape: Sequence[int], dtype: Any, init: Callable[..., Any], context: Any
) -> Any:
    return create(shape, dtype, init) if "embed" in context.module_name else np.zeros(shape, dtype)


def _only_shapes(run: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    if not isinstance(context.module, Transformer) or context.method_name != "__call__":
        return run(*args, **kwargs)
    shapes = jax.eval_shape(partial(run, **kwargs), *args)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def _build_model(program: Program, assembled: AssembledTransformerModel) -> TracrModel:
    encoding: dict[Any, int] = assembled.input_encoder.encoding_map  # pyright: ignore
    occurring = [encoding[token] for token in (_BOS, *program.vocab)]
    with np.errstate(over="ignore", invalid="ignore"):  # products may overflow; only whether they are 0 matters
        return TracrModel(extract_weights(assembled), token_ids=occurring)


def _tokens(
    program: Program, assembled: AssembledTransformerModel, domain: Domain
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids `[input, 1 + longest]`, and each input's group: the rank of its length, 0 for the shortest."""
    encoding: dict[Any, int] = assembled.input_encoder.encoding_map  # pyright: ignore
    lengths = np.array([len(tokens) for tokens in domain.inputs])
    ids = np.full((len(domain.inputs), 1 + int(lengths.max())), encoding[_PAD])
    ids[:, 0] = encoding[_BOS]
    for row, tokens in enumerate(domain.inputs):
        ids[row, 1 : len(tokens) + 1] = [encoding[token] for token in tokens]
    group = np.unique(lengths, return_inverse=True)[1]
    return torch.from_numpy(ids), torch.from_numpy(group)


def _unsupported(program: Program, reasons: Sequence[_Reason]) -> UnsupportedProgram:
    first: dict[tuple[str, str], _Reason] = {}
    for reason in reasons:
        first.setdefault(reason[:2], reason)
    listed = "; ".join(f"{name}: {rule}" + (f"; got {got}" if got else "") for name, rule, got, _ in first.values())
    message = f"Tracr cannot compile {program.name}: {listed}"
    return at(UnsupportedProgram(message), *(reason.place for reason in first.values()))


def _static_reasons(program: Program) -> list[_Reason]:
    """Return the reasons for rejection that can be found without running an input."""
    expression = program.expression()
    every = list(expressions_of(expression))
    # Tracr's own search skips expressions whose name it has already seen, so one search starts from each expression.
    found = [fault for e in every for fault in validating.static_validate(e)]
    reasons = [_Reason(fault.expr.name, " ".join(fault.reason.split())) for fault in found]
    if isinstance(expression, rasp.TokensType):
        rule = "the output is an input, so that no layer computes it; put a Map around it"
        reasons.append(_Reason(expression.name, rule))
    return reasons + [_Reason(e.name, _UNCOMPILABLE[type(e)]) for e in every if type(e) in _UNCOMPILABLE]


def _dynamic_reasons(program: Program, domain: Domain) -> list[_Reason]:
    """Return a reason for each value that Tracr does not reproduce, on about `VALIDATED_INPUTS` inputs of the domain.

    Tracr's own dynamic validation ignores causal masks, so it would reject programs that Tracr compiles.
    """
    step = max(1, len(domain.inputs) // VALIDATED_INPUTS)
    expressions = [e for e in expressions_of(program.expression()) if isinstance(e, rasp.SOp)]
    reasons: list[_Reason] = []
    for tokens in domain.inputs[::step]:
        evaluated = program.evaluate_all(expressions, tokens)
        values = {id(e): found for e, found in zip(expressions, evaluated, strict=True)}
        for expression in expressions:
            reason = _value_reason(expression, values[id(expression)])
            if reason is None and isinstance(expression, rasp.Aggregate):
                reason = _aggregate_reason(expression, values[id(expression)], values[id(expression.sop)])
            if reason is not None:
                reasons.append(reason)
    return reasons


def _value_reason(expression: rasp.SOp, values: Sequence[Any], *, tabulated: bool = False) -> _Reason | None:
    """Return the first fault in an expression's values: those on one input or, if `tabulated`, all in Tracr's table."""
    odd = [value for value in values if not is_hashable(value)]
    if odd:
        return _Reason(expression.name, "values are such as can be hashed", repr(odd[0]))
    if not rasp.is_numerical(expression):
        return None
    numbers = [value for value in values if value is not None]
    odd = [value for value in numbers if not isinstance(value, Real) or not is_finite(value)]
    if odd:
        return _Reason(expression.name, "numerical values are real numbers", repr(odd[0]))
    odd = [value for value in numbers if abs(value) > _LARGEST]
    if odd:
        rule = f"numerical values are at most {_LARGEST:g}, as Tracr computes in single precision"
        return _Reason(expression.name, rule, str(odd[0])[:20])
    if isinstance(expression, rasp.Map) and rasp.is_categorical(expression.inner):
        if tabulated and len(numbers) < len(values):
            return _Reason(expression.name, "a numerical Map of a categorical gives a number for every value", "None")
        if not tabulated and min(numbers, default=0) < 0:  # harmless if no input gives it
            rule = "a Map of a categorical to a number below 0 is clipped at 0"
            return _Reason(expression.name, rule, repr(min(numbers)))
    return None


_BINARY: Final = "a numerical aggregate averages 0 and 1 only"
_RAISES: Final = (
    "its lambda raises on values that Tracr tabulates, whether or not an input gives them; let it return something "
    f"for them too, as in `{GUARDED}`"
)


def _aggregate_reason(expression: rasp.Aggregate[Any], output: list[Any], values: list[Any]) -> _Reason | None:
    if not all(map(is_hashable, values)):
        return None  # reported for the expression that has these values
    if rasp.is_categorical(expression) and not {*output} <= {*values, None}:
        return _Reason(expression.name, "a categorical aggregate cannot average; select one value a position")
    if rasp.is_numerical(expression) and not {*values} <= {0, 1, None}:
        return _Reason(expression.name, _BINARY, repr(sorted({*values} - {None}, key=repr)))
    return None


class _Tables:
    """The values that Tracr assumes for each expression, computed as Tracr's `infer_bases` computes them.

    Tracr calls a lambda on every combination of its operands' values, including combinations that no input gives.

    Args:
        program: a program without static faults, on which the interpreter never raises.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._values: dict[int, list[Any]] = {}
        self.reasons: list[_Reason] = []
        """Every fault in the tables that stops Tracr."""

        self._expressions = list(expressions_of(program.expression()))
        self._fill(program.expression())

    def wide_aggregates(self) -> list[_Reason]:
        """Return a reason for each aggregate with more values than a head of the model has room for."""
        # A head needs the width of its queries plus BOS and "one", or of its keys plus BOS; all heads get the largest.
        selects = [e for e in self._expressions if isinstance(e, rasp.Select)]
        room = max(max(self._size(select.queries) + 2, self._size(select.keys) + 1) for select in selects)
        rule = (
            f"it moves more values than the {room} that a head holds, a limit of Tracr, whose heads are as wide as the "
            "widest keys or queries of a Select; aggregate sequences of fewer values one by one and join them with a "
            "SequenceMap, or select by keys of more values"
        )
        wide = [e for e in self._expressions if isinstance(e, rasp.Aggregate) and rasp.is_categorical(e)]
        return [_Reason(e.name, rule, f"{self._size(e)} values") for e in wide if self._size(e) > room]

    def _size(self, expression: rasp.SOp) -> int:
        return len(self._values[id(expression)])

    def _fill(self, expression: rasp.RASPExpr) -> None:
        if id(expression) in self._values:
            return
        for child in expression.children:
            self._fill(child)
        results = self._results(expression)
        if isinstance(expression, rasp.SOp):
            linear = isinstance(expression, rasp.LinearSequenceMap)
            factors = [expression.fst_fac, expression.snd_fac] if linear else []
            reason = _value_reason(expression, results + factors, tabulated=True)
            self.reasons += [] if reason is None else [reason]
        elif any(not isinstance(value, Real | np.bool_) for value in results):
            self.reasons.append(_Reason(expression.name, "its predicate gives something else than True or False"))
        # A dict keeps the order, so that messages are the same in every process.
        kept = dict.fromkeys(value for value in results if value is not None and is_hashable(value))
        self._values[id(expression)] = list(kept)

    def _results(self, expression: rasp.RASPExpr) -> list[Any]:
        if isinstance(expression, rasp.TokensType):
            return list(self._program.vocab)
        if isinstance(expression, rasp.IndicesType):
            return list(range(self._program.max_seq_len))
        if isinstance(expression, rasp.SelectorWidth):
            return list(range(self._program.max_seq_len + 1))
        if isinstance(expression, rasp.Map):
            return self._called(expression, expression.f, [expression.inner])
        if isinstance(expression, rasp.SequenceMap):
            return self._called(expression, expression.f, [expression.fst, expression.snd])
        if isinstance(expression, rasp.Select):
            return self._called(expression, expression.predicate, [expression.keys, expression.queries])
        if isinstance(expression, rasp.Aggregate):
            values = self._values[id(expression.sop)]
            if rasp.is_categorical(expression):
                return values
            try:
                if {int(value) for value in values} <= {0, 1}:
                    lengths = range(1, self._program.max_seq_len + 1)
                    return [value / length for value in values for length in lengths]
            except (TypeError, ValueError, OverflowError):
                pass  # for example, letters
            self.reasons.append(_Reason(expression.name, _BINARY, repr(sorted(values, key=repr))))
        return []

    def _called(self, expression: rasp.RASPExpr, function: Callable[..., Any], operands: list[rasp.SOp]) -> list[Any]:
        """Return a lambda's results on every combination of operand values, and record each error that stops Tracr."""
        results: list[Any] = []
        for values in itertools.product(*(self._values[id(operand)] for operand in operands)):
            try:
                results.append(function(*values))
            except (Exception, SystemExit) as error:  # a user's lambda may raise anything
                if not (isinstance(error, ArithmeticError) and _is_ignored(expression, values)):
                    got = f"{described(error)} on ({', '.join(map(repr, values))})"
                    self.reasons.append(_Reason(expression.name, _RAISES, got, place_of(error, function)))
        return results


def _is_ignored(expression: rasp.RASPExpr, values: tuple[Any, ...]) -> bool:
    """Return whether every pass of Tracr ignores an ArithmeticError on these values, assuming that they never occur."""
    if isinstance(expression, rasp.Map):
        return rasp.is_numerical(expression.inner)
    if isinstance(expression, rasp.LinearSequenceMap):
        return True
    return isinstance(expression, rasp.SequenceMap) and expression.fst is expression.snd and values[0] != values[1]
