"""Addition modulo 23: `17 9 = 3`. A fifth of all sums is held out; a large weight decay makes a toy get them right."""

from collections.abc import Sequence
from random import Random
from typing import Final

from edgeprune.tasks.example import Example
from edgeprune.tasks.jsonl import EVERY
from edgeprune.toys.lesson import Course, DrawExamples, Lesson, ToyConfig

MODULUS: Final = 23
HELD_OUT: Final = 0.2

Sum = tuple[int, int]


def _text(numbers: Sum) -> str:
    return f"{numbers[0]} {numbers[1]} =<predict> {sum(numbers) % MODULUS}</predict>"


def _draw(sums: Sequence[Sum]) -> DrawExamples:
    """Return a function that draws sums without replacement, or all of them if there are fewer."""
    return lambda random, count: [
        Example.marked(_text(each), _text(each)) for each in random.sample(sums, min(count, len(sums)))
    ]


def _course(random: Random) -> Course:
    sums = [(one, other) for one in range(MODULUS) for other in range(MODULUS)]
    random.shuffle(sums)

    def corrupted(numbers: Sum) -> Sum:
        """Return a sum with another answer."""
        return random.choice([other for other in sums if (sum(other) - sum(numbers)) % MODULUS])

    held_out, taught = sums[: (count := round(HELD_OUT * len(sums)))], sums[count:]
    task = ({"clean": _text(each), "corrupted": _text(corrupted(each)), "split": EVERY} for each in sums)
    return Course(_draw(taught), _draw(held_out), tuple(task))


LESSON: Final = Lesson(
    says=f"addition modulo {MODULUS}",
    tested_on="held-out sums",
    words=(*map(str, range(MODULUS)), "="),
    config=ToyConfig(
        layers=1, heads=1, tied=False, steps=1500, batch_size=MODULUS**2, learning_rate=5e-3, weight_decay=1.0
    ),
    course=_course,
)
