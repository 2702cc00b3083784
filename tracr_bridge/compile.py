"""A program → the compiled model, its PyTorch twin and its domain as a dataset."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from numbers import Real
from typing import Any, Final

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
from tracr_bridge.model import TracrModel
from tracr_bridge.program import Domain, Program, check_interpreter, expressions_of, is_hashable
from tracr_bridge.weights import extract_weights

INPUT_BUDGET: Final = 4096
"""Inputs of a domain that are run before a seeded sample stands in for it."""

VALIDATED_INPUTS: Final = 256
"""Inputs on which RASP is searched for expressions that Tracr compiles to something else."""

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


@dataclass(frozen=True)
class Compiled:
    """A program, Tracr's model of it, the same model in PyTorch, and the inputs on which they are judged."""

    program: Program
    assembled: AssembledTransformerModel
    model: TracrModel
    domain: Domain
    expected: tuple[tuple[Any, ...], ...]
    """RASP's own output for every input of `domain`; None where it is undefined."""

    dataset: Dataset
    """The domain as tokens: BOS first, PAD on the right; scored where RASP's output is defined."""

    @property
    def categorical(self) -> bool:
        """Whether outputs are one column a value, rather than the value itself."""
        return rasp.is_categorical(self.program.expression())

    @cached_property
    def output_values(self) -> tuple[Any, ...]:
        """The value that each output column of a categorical program stands for."""
        if not self.categorical:
            return ()
        encoding: dict[Any, int] = self.assembled.output_encoder.encoding_map  # pyright: ignore
        return tuple(sorted(encoding, key=encoding.__getitem__))

    def encode(self, tokens: tuple[Any, ...]) -> list[int]:
        """Token ids of an input, BOS first."""
        encoding: dict[Any, int] = self.assembled.input_encoder.encoding_map  # pyright: ignore
        return [encoding[token] for token in (_BOS, *tokens)]


def compile_program(program: Program, *, budget: int = INPUT_BUDGET, seed: int = 0) -> Compiled:
    """Compile `program` with Tracr and lay out its domain.

    Args:
        program: what to compile.
        budget: the most inputs to run; beyond it the domain is a seeded sample, and says so.
        seed: of that sample.

    Raises:
        InvalidProgram: its declaration has faults, or its domain is empty.
        InterpreterError: RASP's interpreter raises on an input.
        UnsupportedProgram: Tracr cannot compile it; every reason is named.
        DegenerateProgram: its output never varies.
    """
    program.check()
    domain = program.domain(budget=budget, seed=seed)
    static = _static_reasons(program)
    if static:  # RASP may be unable to run what Tracr cannot compile
        raise _unsupported(program, static)
    expected = tuple(tuple(output) for output in check_interpreter(program, domain))
    dynamic = _dynamic_reasons(program, domain)
    if dynamic:
        raise _unsupported(program, dynamic)
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
        # Haiku takes a creator of parameters inside a transform alone.
        return hk.transform(compile_rasp).apply({}, None)
    except Exception as error:  # Tracr raises whatever its passes meet: NotImplementedError, TypeError, AssertionError
        reason = " ".join(str(error).split()) or "no reason given"
        raise UnsupportedProgram(f"Tracr cannot compile {program.name}: {type(error).__name__}: {reason}") from error


# To learn which parameters there are, Tracr runs its model on random ones, and JAX compiles every operation anew for
# each shape. Embeddings are real from the start; all else Tracr overwrites, so that zeros and shapes alone are enough.


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
    return TracrModel(extract_weights(assembled), token_ids=occurring)


def _tokens(
    program: Program, assembled: AssembledTransformerModel, domain: Domain
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `[input, 1 + longest]` and the group of each input, its length counted from the shortest."""
    encoding: dict[Any, int] = assembled.input_encoder.encoding_map  # pyright: ignore
    lengths = np.array([len(tokens) for tokens in domain.inputs])
    ids = np.full((len(domain.inputs), 1 + int(lengths.max())), encoding[_PAD])
    ids[:, 0] = encoding[_BOS]
    for row, tokens in enumerate(domain.inputs):
        ids[row, 1 : len(tokens) + 1] = [encoding[token] for token in tokens]
    group = np.unique(lengths, return_inverse=True)[1]
    return torch.from_numpy(ids), torch.from_numpy(group)


def _unsupported(program: Program, reasons: list[tuple[str, str]]) -> UnsupportedProgram:
    listed = "; ".join(f"{name}: {reason}" for name, reason in dict.fromkeys(reasons))
    return UnsupportedProgram(f"Tracr cannot compile {program.name}: {listed}")


def _static_reasons(program: Program) -> list[tuple[str, str]]:
    """(expression, reason) for everything that needs no input to be rejected."""
    expression = program.expression()
    reasons = [(found.expr.name, _one_line(found.reason)) for found in validating.static_validate(expression)]
    if isinstance(expression, rasp.TokensType):
        reasons.append((expression.name, "the output is an input, so that no layer computes it; put a Map around it"))
    reasons += [(e.name, _UNCOMPILABLE[type(e)]) for e in expressions_of(expression) if type(e) in _UNCOMPILABLE]
    return reasons


def _dynamic_reasons(program: Program, domain: Domain) -> list[tuple[str, str]]:
    """(expression, reason) for every value that Tracr does not reproduce.

    Tracr's own dynamic validation ignores causal masks, so it would reject programs that Tracr compiles.
    """
    step = max(1, len(domain.inputs) // VALIDATED_INPUTS)
    expressions = [e for e in expressions_of(program.expression()) if isinstance(e, rasp.SOp)]
    reasons: list[tuple[str, str]] = []
    for tokens in domain.inputs[::step]:
        interpreter = program.interpreter()
        values = {id(e): list(interpreter.evaluate(e, list(tokens))) for e in expressions}
        for expression in expressions:
            reason = _value_reason(expression, values[id(expression)])
            if reason is None and isinstance(expression, rasp.Aggregate):
                reason = _aggregate_reason(expression, values[id(expression)], values[id(expression.sop)])
            if reason is not None:
                reasons.append((expression.name, reason))
    return reasons


def _value_reason(expression: rasp.SOp, values: list[Any]) -> str | None:
    odd = [value for value in values if not is_hashable(value)]
    if odd:
        return f"values are such as can be hashed; got {odd[0]!r}"
    numbers = [value for value in values if value is not None]
    if rasp.is_numerical(expression):
        odd = [value for value in numbers if not isinstance(value, Real)]
        if odd:
            return f"numerical values are real numbers; got {odd[0]!r}"
        if isinstance(expression, rasp.Map) and rasp.is_categorical(expression.inner) and min(numbers, default=0) < 0:
            return f"a Map of a categorical to a number below 0 is clipped at 0; got {min(numbers)!r}"
    return None


def _aggregate_reason(expression: rasp.Aggregate[Any], output: list[Any], values: list[Any]) -> str | None:
    if not all(map(is_hashable, values)):
        return None  # said of the expression that has them
    if rasp.is_categorical(expression) and not {*output} <= {*values, None}:
        return "a categorical aggregate cannot average; select one value a position"
    if rasp.is_numerical(expression) and not {*values} <= {0, 1, None}:
        return f"a numerical aggregate averages 0 and 1 only; got {sorted({*values} - {None}, key=repr)}"
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())
