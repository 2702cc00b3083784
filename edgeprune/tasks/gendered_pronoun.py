"""Gendered pronoun: predict "he" or "she" after a name.

The task is from Mathwin et al., "Identifying a Preliminary Circuit for Predicting Gendered Pronouns in GPT-2 Small",
2023; Edge Pruning uses it (arXiv:2406.16778). "So Evan is such a good friend, isn't" is to go on with "he". A corrupted
prompt has a name of the other gender. The metric is the logit of the right pronoun minus that of the other.

Note: names, adjectives and nouns are our own.
"""

from collections.abc import Callable
from random import Random
from typing import Final

from edgeprune.tasks.encode import Encoder
from edgeprune.tasks.example import Example
from edgeprune.tasks.words import ADJECTIVES, MEN, PEOPLE, WOMEN, enough

TEMPLATES: Final = (
    "So {name} is such a {adjective} {person}, isn't",
    "Surely {name} was a {adjective} {person}, wasn't",
    "Now {name} has become a {adjective} {person}, hasn't",
)
PRONOUNS: Final = (" she", " he")


def drawer(encoder: Encoder) -> Callable[[Random], Example]:
    """Return a function that draws examples with names of one token each.

    Raises:
        TaskError: fewer than three names of a gender are one token.
    """

    def usable(name: str) -> bool:
        return encoder.word(f" {name}") is not None

    known = [enough(WOMEN, usable, 3, "names of women"), enough(MEN, usable, 3, "names of men")]

    def draw(random: Random) -> Example:
        gender = random.randrange(2)
        words = {"adjective": random.choice(ADJECTIVES), "person": random.choice(PEOPLE)}
        template = random.choice(TEMPLATES)
        clean, corrupted = (template.format(name=random.choice(known[g]), **words) for g in (gender, 1 - gender))
        return Example.ending(clean, corrupted, [PRONOUNS[gender]], [PRONOUNS[1 - gender]])

    return draw
