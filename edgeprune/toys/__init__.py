"""Small GPT-2s trained here on a known task, to prune where no model hub can be reached."""

from collections.abc import Mapping
from typing import Final

from edgeprune.toys import ioi, modular_addition, parentheses, sort
from edgeprune.toys.lesson import Lesson as Lesson
from edgeprune.toys.lesson import ToyConfig as ToyConfig

LESSONS: Final[Mapping[str, Lesson]] = {
    "ioi": ioi.LESSON,
    "sort": sort.LESSON,
    "parentheses": parentheses.LESSON,
    "modular-addition": modular_addition.LESSON,
}
