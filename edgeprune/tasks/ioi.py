"""Indirect object identification: one of two people gives something, and the prompt asks to whom.

The task is from Wang et al., "Interpretability in the Wild", arXiv:2211.00593, §2. A prompt has two names and repeats
one of them as the subject, who acts; the other is the answer. A corrupted prompt has three other names, each once (the
paper's ABC distribution). The metric is the logit of the right name minus that of the subject.

Note: templates and names are our own.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from edgeprune.tasks.encode import Encoder
from edgeprune.tasks.example import Example
from edgeprune.tasks.words import NAMES, OBJECTS, PLACES, enough

TEMPLATES: Final = (
    "After {a} and {b} met at the {place}, {c} gave the {object} to",
    "When {a} and {b} came to the {place}, {c} handed a {object} to",
    "Then {a} and {b} walked to the {place}, and {c} sold a {object} to",
    "Yesterday {a} and {b} were at the {place}. There {c} showed a {object} to",
    "As soon as {a} and {b} reached the {place}, {c} offered the {object} to",
    "While {a} and {b} were working at the {place}, {c} passed a {object} to",
    "{a} and {b} had a long talk at the {place}. In the end {c} brought a {object} to",
    "Because {a} and {b} had quarrelled at the {place}, {c} sent a {object} to",
    "Friends of {a} and {b} waited at the {place}, where {c} returned the {object} to",
    "The {place} was closed when {a} and {b} arrived, so {c} lent a {object} to",
    "{a} and {b} were lost on the way to the {place}, and {c} threw the {object} to",
    "Once {a} and {b} had left the {place}, {c} promised a {object} to",
)


def drawer(encoder: Encoder, templates: Sequence[str]) -> Callable[[Random], Example]:
    """Return a function that draws examples of these templates, with names of one token each.

    Raises:
        TaskError: fewer than six of the names are one token.
    """
    # A name has no space before it at the beginning of a text, and a space everywhere else.
    known = enough(NAMES, lambda name: None not in (encoder.word(name), encoder.word(f" {name}")), 6, "names")

    return lambda random: fill(random.choice(templates), known, random)


def fill(template: str, names: Sequence[str], random: Random) -> Example:
    """Return an example of one template, with five of the names."""
    place, thing = random.choice(PLACES), random.choice(OBJECTS)
    right, other, *others = random.sample(names, 5)
    first, second = random.sample((right, other), 2)
    clean = template.format(a=first, b=second, c=other, place=place, object=thing)
    corrupted = template.format(a=others[0], b=others[1], c=others[2], place=place, object=thing)
    return Example.ending(clean, corrupted, [f" {right}"], [f" {other}"])
