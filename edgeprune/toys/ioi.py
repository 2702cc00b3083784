"""Indirect object identification, as in `tasks.ioi`.

A fifth of the names is held out for each template. In training, these names occur in prompts of other templates but
never in that template's own, so answers on them cannot have been memorised.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Final

from tokenizers import pre_tokenizers

from edgeprune.tasks.ioi import TEMPLATES, fill
from edgeprune.tasks.words import NAMES, OBJECTS, PLACES
from edgeprune.toys.lesson import Course, DrawExamples, Lesson, ToyConfig

HELD_OUT: Final = 0.2
"""Share of the names that a template is tested with and not trained with."""


def _words() -> tuple[str, ...]:
    blank = {"a": "", "b": "", "c": "", "place": "", "object": ""}
    splitter = pre_tokenizers.Whitespace()
    words = {word for template in TEMPLATES for word, _ in splitter.pre_tokenize_str(template.format(**blank))}
    return tuple(sorted(words | {*NAMES, *PLACES, *OBJECTS}))


def _course(random: Random) -> Course:
    held_out = {template: random.sample(NAMES, round(HELD_OUT * len(NAMES))) for template in TEMPLATES}
    taught = {template: [name for name in NAMES if name not in held_out[template]] for template in TEMPLATES}

    def draw(names: Mapping[str, Sequence[str]]) -> DrawExamples:
        return lambda random, count: [
            fill(template, names[template], random) for template in random.choices(TEMPLATES, k=count)
        ]

    return Course(draw(taught), draw(held_out))


LESSON: Final = Lesson(
    says="indirect object identification",
    tested_on="prompts with held-out names",
    words=_words(),
    config=ToyConfig(),
    course=_course,
    all_tokens=True,
)
