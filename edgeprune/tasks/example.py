"""One prompt of a task beside its corrupted version, as text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgeprune.errors import TaskError

_MARK = re.compile(r"\s*<predict>(?P<answer>.*?)</predict>", re.DOTALL)


@dataclass(frozen=True)
class Prediction:
    """What is to come at one place of a text."""

    start: int
    """How many characters come before it."""

    right: tuple[str, ...]
    """Right continuations, each one token, with the space before it."""

    wrong: tuple[str, ...] = ()
    """Wrong ones that they are measured against; none stands for all other tokens."""


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

    @staticmethod
    def ending(clean: str, corrupted: str, right: Sequence[str], wrong: Sequence[str]) -> "Example":
        """An example whose one prediction comes after the whole prompt."""
        return Example(clean, corrupted, (Prediction(len(clean), tuple(right), tuple(wrong)),))

    @staticmethod
    def marked(clean: str, corrupted: str) -> "Example":
        """An example with `<predict>answer</predict>` around each token that is to be predicted.

        Space before a mark belongs to the answer. Where the corrupted text is marked as well, what it marks are the
        wrong answers. Both texts end before the last mark, what comes after it having no part in any prediction.

        Raises:
            TaskError: there is no mark, an empty one or one left open; or the texts have unlike numbers of marks.
        """
        text, answers = _split(clean)
        other, wrong = _split(corrupted)
        if not answers:
            raise TaskError(f"Expected <predict>answer</predict> somewhere in the clean text; got {clean!r:.200}")
        if wrong and len(wrong) != len(answers):
            raise TaskError(
                f"Expected as many marks in the corrupted text as in the clean one, {len(answers)}, or none; "
                f"got {len(wrong)} in {corrupted!r:.200}"
            )
        against = [(answer,) for _, answer in wrong] or [()] * len(answers)
        predictions = tuple(
            Prediction(start, (right,), () if others == (right,) else others)
            for (start, right), others in zip(answers, against, strict=True)
        )
        return Example(text[: answers[-1][0]], other[: wrong[-1][0]] if wrong else other, predictions)


def _split(marked: str) -> tuple[str, list[tuple[int, str]]]:
    """The text without marks, and for each where it starts and what it holds, space included."""
    text, found, end = "", list[tuple[int, str]](), 0
    for match in _MARK.finditer(marked):
        text += marked[end : match.start()]
        space = match[0][: len(match[0]) - len(match[0].lstrip())]
        found.append((len(text), space + match["answer"]))
        text, end = text + found[-1][1], match.end()
    text += marked[end:]
    if "<predict>" in text or "</predict>" in text or not all(answer.strip() for _, answer in found):
        raise TaskError(f"Expected every <predict> closed by </predict>, with an answer between; got {marked!r:.200}")
    return text, found
