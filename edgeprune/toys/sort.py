"""Sorting five different numbers: `7 2 19 4 11 = 2 4 7 11 19`.

One layer with one head and no MLP is enough: Bagiński and Kolly, "One Attention Head Is All You Need for Sorting
Fixed-Length Lists" (2023).
"""

from itertools import islice
from random import Random
from typing import Final

from edgeprune.tasks.example import Example
from edgeprune.tasks.jsonl import EVERY
from edgeprune.toys.lesson import Course, Lesson, ToyConfig

NUMBERS: Final = 20
LENGTH: Final = 5
HELD_OUT: Final = 2000
"""Lists drawn for testing, and left out of training."""

EXAMPLES: Final = 1024
"""Number of examples in the task's file; there are 1,860,480 lists."""

Numbers = tuple[int, ...]


def _drawn(random: Random) -> Numbers:
    return tuple(random.sample(range(NUMBERS), LENGTH))


def _marked(numbers: Numbers) -> str:
    right = "".join(f"<predict> {number}</predict>" for number in sorted(numbers))
    return f"{' '.join(map(str, numbers))} ={right}"


def _example(numbers: Numbers) -> Example:
    return Example.marked(_marked(numbers), _marked(numbers))


def _course(random: Random) -> Course:
    held_out = {_drawn(random) for _ in range(HELD_OUT)}

    def teach(random: Random, count: int) -> list[Example]:
        drawn = iter(lambda: _drawn(random), None)
        return [_example(numbers) for numbers in islice((each for each in drawn if each not in held_out), count)]

    def test(random: Random, count: int) -> list[Example]:
        return [_example(numbers) for numbers in random.choices(sorted(held_out), k=count)]

    drawn = ({"clean": _marked(_drawn(random)), "corrupted": _marked(_drawn(random))} for _ in range(EXAMPLES))
    return Course(teach, test, tuple(line | {"split": EVERY} for line in drawn))


LESSON: Final = Lesson(
    says="five numbers, sorted",
    tested_on="numbers of held-out lists",
    words=(*map(str, range(NUMBERS)), "="),
    config=ToyConfig(layers=1, heads=1, tied=False, mlp=False, steps=1000),
    course=_course,
)
