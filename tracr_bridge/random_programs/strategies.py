"""Random programs and their inputs, for Hypothesis.

    @given(rasp_programs())
    def test_mine(program): ...

A program is drawn from its output inwards: first what an expression is, then what it reads, so that Hypothesis shrinks
one by putting `rasp.tokens` in the place of what is read. Every draw is valid by construction: only what Tracr compiles
is drawn, each function is total on the values that Tracr may hand it, and RASP's interpreter is asked whether a value
can be undefined. Draws whose output never varies, or never reads a token, are drawn anew.

Many draws need a length: the width of a selector that is always true, on positions, tokens or constants. Its head
attends uniformly; under zero ablation its query and key edges can often go together, though none of them can alone.
"""

from dataclasses import dataclass
from typing import Any, Final

from hypothesis import strategies as st

from edgeprune.errors import DegenerateProgram, InvalidProgram
from tracr_bridge.compile.program import Program, TokenSequence, check_interpreter
from tracr_bridge.random_programs.expressions import Draw, Writer

VOCABULARIES: Final = (("a", "b"), (0, 1), ("a", "b", "c"), (0, 1, 2), ("a", "b", "c", "d"))
"""Vocabularies that are drawn from, smallest first."""

MOST_INPUTS: Final = 128
"""The largest domain drawn."""


@dataclass(frozen=True)
class DrawnProgram(Program):
    """A random program, which prints as the text that declares it."""

    def __repr__(self) -> str:
        return f"\n{self.source}"


def program_from(source: str) -> DrawnProgram:
    """The program that a drawn file declares."""
    namespace: dict[str, Any] = {"__name__": "drawn"}
    exec(compile(source, "<drawn program>", "exec"), namespace)
    (program,) = (value for value in namespace.values() if isinstance(value, Program))
    declared: dict[str, Any] = {**vars(program), "source": source}
    return DrawnProgram(**declared)


@st.composite
def rasp_programs(draw: Draw, *, max_expressions: int = 9, causal: bool | None = None) -> DrawnProgram:
    """Programs that Tracr compiles, with small domains and varied outputs.

    They shrink toward fewer expressions, then a smaller vocabulary, then shorter inputs.

    Args:
        draw: given by Hypothesis.
        max_expressions: maps, aggregates and widths in one program, at the most.
        causal: whether attention sees earlier positions only; either, unless given.
    """
    return draw(_sources(max_expressions=max_expressions, causal=causal).map(program_from).filter(_is_varied))


def inputs_for(program: Program, *, budget: int = MOST_INPUTS) -> st.SearchStrategy[TokenSequence]:
    """Inputs of the domain of `program`, shortest first; of a seeded sample of it beyond `budget`."""
    return st.sampled_from(program.domain(budget=budget, seed=0).inputs)


def _is_varied(program: Program) -> bool:
    try:
        program.check()
        outputs = check_interpreter(program, program.domain(budget=MOST_INPUTS, seed=0))
    except (DegenerateProgram, InvalidProgram):
        return False
    # More outputs than lengths: some vary among inputs of one length, which is what resample ablation draws from.
    return len(set(map(tuple, outputs))) > len(set(map(len, outputs)))


@st.composite
def _sources(draw: Draw, *, max_expressions: int, causal: bool | None) -> str:
    vocab = draw(st.sampled_from(VOCABULARIES))
    longest = max(n for n in range(1, 7) if sum(len(vocab) ** k for k in range(1, n + 1)) <= MOST_INPUTS)
    length = draw(st.sampled_from(sorted([*range(1, longest + 1), *range(2, longest + 1)])))  # 1 half as often
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
