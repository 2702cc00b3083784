"""One prompt of a task beside its corrupted version, as text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from edgeprune.errors import ExampleError

_MARK: Final = re.compile(r"\s*<(?P<kind>predict|label)>(?P<answer>.*?)</(?P=kind)>", re.DOTALL)
_TAG: Final = re.compile(r"</?(predict|label)>")


@dataclass(frozen=True)
class Prediction:
    """What is to come at one place of a text."""

    start: int
    """How many characters come before it."""

    right: tuple[str, ...]
    """Right continuations, each one token, with the space before it."""

    wrong: tuple[str, ...] = ()
    """Wrong ones that they are measured against; none stands for all other tokens."""

    label: bool = False
    """Whether the text goes on without it."""


@dataclass(frozen=True)
class Place:
    """A token at which outputs count, and the id that is right there."""

    position: int
    """Of the token, those that the tokenizer adds being counted."""

    right: int


@dataclass(frozen=True)
class Example:
    """A prompt and its corrupted version, which have the same number of tokens.

    Predictions belong to the clean text. The corrupted one is what removed edges see under resample ablation.
    """

    clean: str
    corrupted: str
    predictions: tuple[Prediction, ...]
    places: tuple[Place, ...] = ()
    """In place of predictions, where the text itself does not go on with what is to come."""

    source: str = field(default="", compare=False)
    """Where it was read: a file and a line."""

    @staticmethod
    def ending(clean: str, corrupted: str, right: Sequence[str], wrong: Sequence[str]) -> "Example":
        """An example whose one prediction comes after the whole prompt."""
        return Example(clean, corrupted, (Prediction(len(clean), tuple(right), tuple(wrong)),))

    @staticmethod
    def marked(clean: str, corrupted: str) -> "Example":
        """An example with `<predict>answer</predict>` around each token that is to be predicted.

        Space before a mark belongs to the answer. Where the corrupted text is marked as well, what it marks are the
        wrong answers. Both texts end before the last mark, what comes after it having no part in any prediction; all
        other answers stay in the text. `<label>answer</label>` is the same of an answer that is no part of the text.

        Raises:
            ExampleError: there is no mark, an empty one or one left open; or the texts have unlike marks.
        """
        text, marks = _split(clean)
        other, wrong = _split(corrupted)
        if not marks:
            raise ExampleError(
                f"Expected <predict>answer</predict> somewhere in the clean text; got {clean!r:.200}",
                reason="no mark in the clean text",
            )
        if wrong and [mark.label for mark in wrong] != [mark.label for mark in marks]:
            kinds = "" if len(wrong) != len(marks) else ", of other kinds,"
            raise ExampleError(
                f"Expected as many marks in the corrupted text as in the clean one, {len(marks)}, or none; "
                f"got {len(wrong)}{kinds} in {corrupted!r:.200}",
                reason="unlike marks in the two texts",
            )
        against = [(mark.answer,) for mark in wrong] or [()] * len(marks)
        predictions = tuple(
            Prediction(mark.start, (mark.answer,), () if others == (mark.answer,) else others, label=mark.label)
            for mark, others in zip(marks, against, strict=True)
        )
        return Example(text[: marks[-1].start], other[: wrong[-1].start] if wrong else other, predictions)


class _Mark(NamedTuple):
    """A mark, once the text stands without marks."""

    start: int
    """How many characters come before its answer."""

    answer: str
    """With the space before it."""

    label: bool


def _split(marked: str) -> tuple[str, list[_Mark]]:
    """The text without marks, and its marks."""
    text, found, end = "", list[_Mark](), 0
    for match in _MARK.finditer(marked):
        text += marked[end : match.start()]
        space = match[0][: len(match[0]) - len(match[0].lstrip())]
        found.append(_Mark(len(text), space + match["answer"], match["kind"] == "label"))
        text, end = text + ("" if found[-1].label else found[-1].answer), match.end()
    text += marked[end:]
    if _TAG.search(text) or any(_TAG.search(mark.answer) or not mark.answer.strip() for mark in found):
        kind = "label" if "label>" in marked and "predict>" not in marked else "predict"
        raise ExampleError(
            f"Expected every <{kind}> closed by </{kind}>, with an answer between; got {marked!r:.200}",
            reason="a mark that is empty, nested or left open",
        )
    return text, found
