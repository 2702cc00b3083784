"""One prompt of a task with its corrupted version, as text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from edgeprune.errors import ExampleError

_MARK: Final = re.compile(r"\s*<(?P<kind>predict|label)>(?P<answer>.*?)</(?P=kind)>", re.DOTALL)
_TAG: Final = re.compile(r"</?(predict|label)>")


@dataclass(frozen=True)
class Prediction:
    """The answers that are right at one place of a text."""

    start: int
    """Number of characters of the text before the answer."""

    right: tuple[str, ...]
    """Right answers, each one token, including the space before it."""

    wrong: tuple[str, ...] = ()
    """Wrong answers that the right ones are compared with. If empty, all other tokens are wrong."""

    label: bool = False
    """Whether the answer is left out of the text."""


@dataclass(frozen=True)
class Place:
    """A position at which outputs count, and the id that is right there."""

    position: int
    """Index of the token, counting tokens that the tokenizer adds."""

    right: int


@dataclass(frozen=True)
class Example:
    """A prompt and its corrupted version, which have the same number of tokens.

    Predictions belong to the clean text. Under resample ablation, removed edges carry values from the corrupted text.
    """

    clean: str
    corrupted: str
    predictions: tuple[Prediction, ...]
    places: tuple[Place, ...] = ()
    """Used in place of predictions if the model's outputs are not the next tokens of the text."""

    source: str = field(default="", compare=False)
    """File and line that the example was read from."""

    @staticmethod
    def ending(clean: str, corrupted: str, right: Sequence[str], wrong: Sequence[str]) -> "Example":
        """Return an example whose one prediction comes after the whole prompt."""
        return Example(clean, corrupted, (Prediction(len(clean), tuple(right), tuple(wrong)),))

    @staticmethod
    def marked(clean: str, corrupted: str) -> "Example":
        """Return an example from texts with `<predict>answer</predict>` around each token to predict.

        Space before a mark belongs to the answer. If the corrupted text is marked too, its marks are the wrong answers.
        A marked text is cut before its last mark, as no prediction depends on what follows; all other answers stay in
        the text. `<label>answer</label>` marks an answer that is not part of the text.

        Raises:
            ExampleError: the clean text has no mark; a mark is empty, nested or left open; or the two texts' marks
                differ in number or kind.
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
    """A mark, located in the text without marks."""

    start: int
    """Number of characters before its answer."""

    answer: str
    """The answer, including the space before it."""

    label: bool


def _split(marked: str) -> tuple[str, list[_Mark]]:
    """Return the text without marks, and its marks."""
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
