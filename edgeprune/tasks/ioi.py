"""Indirect object identification: of two people one gives something, and to whom is asked.

Wang et al., "Interpretability in the Wild", arXiv:2211.00593, §2: two names, one of which comes again as the one who
acts; the other is the answer. Corrupted prompts have three names of others, each once (their ABC distribution). The
metric is the logit of the right name above that of the one who acts.

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
    """Draws examples of these templates, with names that are one token each.

    Raises:
        TaskError: the tokenizer knows fewer than six of the names.
    """
    # A name may come first in a text, where it has no space before it.
    known = enough(NAMES, lambda name: None not in (encoder.word(name), encoder.word(f" {name}")), 6, "names")

    return lambda random: fill(random.choice(templates), known, random)


def fill(template: str, names: Sequence[str], random: Random) -> Example:
    """An example of one template, with five of the names."""
    place, thing = random.choice(PLACES), random.choice(OBJECTS)
    right, other, *others = random.sample(names, 5)
    first, second = random.sample((right, other), 2)
    clean = template.format(a=first, b=second, c=other, place=place, object=thing)
    corrupted = template.format(a=others[0], b=others[1], c=others[2], place=place, object=thing)
    return Example.ending(clean, corrupted, [f" {right}"], [f" {other}"])
