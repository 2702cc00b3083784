"""Boolean expressions: "Expression: ( True or not False ) and False is" is to go on with the expression's value.

The task is from BIG-Bench Hard (Suzgun et al., arXiv:2210.09261). Edge Pruning prunes CodeLlama on it in two settings
(arXiv:2406.16778, §5): after an instruction, and after solved examples. A corrupted prompt has an expression of the
same shape with other values and operators, and the other answer; the solved examples before it stay the same. The
metric is the logit of the right answer minus that of the other.

Note: expressions and prompts are our own. Every pair of operands but the outermost is in brackets. Prompts have many
lengths, and mean ablation wants training examples of each: it needs thousands of them. In the few-shot setting,
prompts of several splits may ask for the same expression.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Final, Literal

from edgeprune.errors import TaskError
from edgeprune.tasks.encode import Encoder
from edgeprune.tasks.example import Example

Setting = Literal["instruction", "few-shot"]

FORM: Final = "Expression: {expression} is"
"""A space comes before the expression: at the start of a line, some tokenizers split its first word."""

INSTRUCTION: Final = "Evaluate the Boolean expression. Answer with True or False.\n"
LEAVES: Final = range(3, 7)
"""Numbers of values that an expression may have."""

_SHOTS: Final = 3
_TRIES: Final = 100


@dataclass(frozen=True)
class _Shape:
    """An expression without its values and operators. `sides` is None for a value, else an operator's operands."""

    sides: tuple["_Shape", "_Shape"] | None
    negated: bool


def drawer(encoder: Encoder, setting: Setting) -> Callable[[Random], Example]:
    """Return a function that draws examples of one setting.

    Raises:
        TaskError: True or False is not one token after "is".
    """
    if None in (encoder.continuation(" is", f" {value}") for value in (True, False)):
        raise TaskError("Expected a tokenizer that has one token for each of True and False; it has not")

    def draw(random: Random) -> Example:
        clean, value, corrupted = _pair(random)
        before = INSTRUCTION
        if setting == "few-shot":
            drawn = (_pair(random)[:2] for _ in range(_TRIES))
            # Leave out the expressions that are asked for: a solved one would give the answer away.
            shots = list(islice((shot for shot in drawn if shot[0] not in (clean, corrupted)), _SHOTS))
            before = "".join(f"{FORM.format(expression=solved)} {answer}\n" for solved, answer in shots)
        clean, corrupted = (before + FORM.format(expression=expression) for expression in (clean, corrupted))
        return Example.ending(clean, corrupted, [f" {value}"], [f" {not value}"])

    return draw


def _pair(random: Random) -> tuple[str, bool, str]:
    """Return an expression, its value, and an expression of the same shape with the other value."""
    for _ in range(_TRIES):
        shape = _shape(random, random.choice(LEAVES))
        clean, value = _filled(shape, random)
        for _ in range(_TRIES):
            corrupted, other = _filled(shape, random)
            if other != value:
                return clean, value, corrupted
    raise AssertionError("every shape has expressions of either value")


def _shape(random: Random, leaves: int) -> _Shape:
    negated = random.random() < 0.25
    if leaves == 1:
        return _Shape(None, negated)
    left = random.randint(1, leaves - 1)
    return _Shape((_shape(random, left), _shape(random, leaves - left)), negated)


def _filled(shape: _Shape, random: Random, *, outermost: bool = True) -> tuple[str, bool]:
    """Return an expression of this shape, with random values and operators, as text; and its value."""
    if shape.sides is None:
        value = random.random() < 0.5
        text = str(value)
    else:
        (left, a), (right, b) = (_filled(side, random, outermost=False) for side in shape.sides)
        conjunction = random.random() < 0.5
        value = a and b if conjunction else a or b
        text = f"{left} {'and' if conjunction else 'or'} {right}"
        if not outermost or shape.negated:
            text = f"( {text} )"
    return (f"not {text}", not value) if shape.negated else (text, value)
