"""Random programs and their inputs, for Hypothesis.

    @given(rasp_programs())
    def test_mine(program): ...

A program is drawn from its output inwards: first what an expression is, then what it reads. Hypothesis can then shrink
an expression by replacing what it reads with `rasp.tokens`. Every draw is valid by construction: only expressions that
Tracr compiles are drawn, each function is total on the values that Tracr may pass to it, and RASP's interpreter shows
whether a value can be undefined. Programs whose output never varies, or never reads a token, are drawn again.

Many programs need a length: the width of an always-true selector on positions, tokens or constants. Its head attends
uniformly. Under zero ablation, its query and key edges can often be removed together, although none can be alone.
"""

from dataclasses import dataclass
from typing import Any, Final

from hypothesis import strategies as st

from edgeprune.errors import DegenerateProgram, InvalidProgram
from tracr_bridge.compile.program import Program, TokenSequence, check_interpreter
from tracr_bridge.random_programs.expressions import Draw, Writer

VOCABULARIES: Final = (("a", "b"), (0, 1), ("a", "b", "c"), (0, 1, 2), ("a", "b", "c", "d"))
"""Vocabularies to draw from, smallest first."""

MOST_INPUTS: Final = 128
"""Maximum number of inputs in a drawn program's domain."""


@dataclass(frozen=True)
class DrawnProgram(Program):
    """A random program; its repr is the text that declares it."""

    def __repr__(self) -> str:
        return f"\n{self.source}"


def program_from(source: str) -> DrawnProgram:
    """Return the program that a drawn file declares."""
    namespace: dict[str, Any] = {"__name__": "drawn"}
    exec(compile(source, "<drawn program>", "exec"), namespace)
    (program,) = (value for value in namespace.values() if isinstance(value, Program))
    declared: dict[str, Any] = {**vars(program), "source": source}
    return DrawnProgram(**declared)


@st.composite
def rasp_programs(draw: Draw, *, max_expressions: int = 9, causal: bool | None = None) -> DrawnProgram:
    """A strategy of programs that Tracr compiles, with small domains and varied outputs.

    Programs shrink toward fewer expressions, then a smaller vocabulary, then shorter inputs.

    Args:
        draw: passed by Hypothesis.
        max_expressions: maximum number of maps, aggregates and widths in one program.
        causal: whether a position attends only to itself and earlier positions; None draws either.
    """
    return draw(_sources(max_expressions=max_expressions, causal=causal).map(program_from).filter(_is_varied))


def inputs_for(program: Program, *, budget: int = MOST_INPUTS) -> st.SearchStrategy[TokenSequence]:
    """Return a strategy of inputs of `program`'s domain, shortest first; a domain beyond `budget` is sampled."""
    return st.sampled_from(program.domain(budget=budget, seed=0).inputs)


def _is_varied(program: Program) -> bool:
    try:
        program.check()
        outputs = check_interpreter(program, program.domain(budget=MOST_INPUTS, seed=0))
    except (DegenerateProgram, InvalidProgram):
        return False
    # More outputs than lengths: some inputs of equal length have different outputs, as resample ablation requires.
    return len(set(map(tuple, outputs))) > len(set(map(len, outputs)))


@st.composite
def _sources(draw: Draw, *, max_expressions: int, causal: bool | None) -> str:
    vocab = draw(st.sampled_from(VOCABULARIES))
    longest = max(n for n in range(1, 7) if sum(len(vocab) ** k for k in range(1, n + 1)) <= MOST_INPUTS)
    length = draw(st.sampled_from(sorted([*range(1, longest + 1), *range(2, longest + 1)])))  # 1 is half as likely
    shortest = draw(st.sampled_from((1, 1, 1, length)))
    masked: bool = draw(st.booleans()) if causal is None else causal
    writer = Writer(draw, vocab, shortest, length, masked, left=max_expressions)
    output = writer.output(4)
    lengths = f"max_seq_len={length}" + (f", min_seq_len={shortest}" if shortest > 1 else "")
    body = "\n".join(f"    {line}" for line in writer.lines)
    return f'''from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab={vocab!r}, {lengths}{", causal=True" if masked else ""})
def drawn() -> rasp.SOp:
    """A random program."""
{body}
    return {output.name}
'''
