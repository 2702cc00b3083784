"""Whether ten parentheses are balanced: `( ( ) ) ( ) ( ( ) ) = balanced`.

Half of all examples are balanced. Of the others, half have equally many opening and closing parentheses. A fifth of all
strings is held out.
"""

from collections.abc import Sequence
from itertools import accumulate, product
from random import Random
from typing import Final

from edgeprune.tasks.example import Example
from edgeprune.tasks.jsonl import EVERY
from edgeprune.toys.lesson import Course, DrawExamples, Lesson, ToyConfig

LENGTH: Final = 10
HELD_OUT: Final = 0.2
EXAMPLES: Final = 512
"""Number of examples in the task's file."""

ANSWERS: Final = {True: "balanced", False: "unbalanced"}

String = tuple[str, ...]
Kinds = tuple[list[String], list[String], list[String]]


def balanced(string: String) -> bool:
    """Return whether each closing parenthesis has an opening one before it, and each opening one is closed."""
    depths = list(accumulate(1 if each == "(" else -1 for each in string))
    return min(depths) >= 0 and depths[-1] == 0


def _kinds(strings: Sequence[String]) -> Kinds:
    """Return balanced strings, unbalanced ones with equally many of each parenthesis, and all other strings."""
    right = [string for string in strings if balanced(string)]
    nearly = [s for s in strings if s.count("(") * 2 == LENGTH and not balanced(s)]
    return right, nearly, [s for s in strings if s.count("(") * 2 != LENGTH]


def _text(string: String) -> str:
    return f"{' '.join(string)} =<predict> {ANSWERS[balanced(string)]}</predict>"


def _pair(kinds: Kinds, random: Random) -> tuple[str, str]:
    """Return a text, and one with the other answer."""
    right, nearly, others = kinds
    texts = _text(random.choice(right)), _text(random.choice(random.choice((nearly, others))))
    return texts if random.random() < 0.5 else (texts[1], texts[0])


def _draw(kinds: Kinds) -> DrawExamples:
    return lambda random, count: [Example.marked(*_pair(kinds, random)) for _ in range(count)]


def _course(random: Random) -> Course:
    strings = list(product("()", repeat=LENGTH))
    random.shuffle(strings)
    tested = {string for some in _kinds(strings) for string in some[: round(HELD_OUT * len(some))]}
    taught, held_out = (_kinds([s for s in strings if (s in tested) == test]) for test in (False, True))
    pairs = (_pair(_kinds(strings), random) for _ in range(EXAMPLES))
    task = ({"clean": clean, "corrupted": corrupted, "split": EVERY} for clean, corrupted in pairs)
    return Course(_draw(taught), _draw(held_out), tuple(task))


LESSON: Final = Lesson(
    says="whether ten parentheses are balanced",
    tested_on="held-out strings",
    words=("(", ")", "=", *ANSWERS.values()),
    config=ToyConfig(layers=2, heads=1, width=32, mlp=False, tied=False, steps=1000),
    course=_course,
)
