"""Encodes examples as tokens, and as the datasets that circuits are discovered and judged on."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Final

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from edgeprune.data import Dataset, LazyTarget
from edgeprune.errors import ExampleError, TaskError
from edgeprune.masked_model import MaskedModel
from edgeprune.metrics.answers import Answers, Metric
from edgeprune.tasks.example import Example, Prediction
from edgeprune.tasks.splitting import Pieces, Splitter, not_one_token

_LAST_WORD: Final = re.compile(r"\s?\S*$")

_UNEQUAL: Final = "clean and corrupted texts of unequally many tokens"
"""A reason for refusing examples."""


@dataclass(frozen=True)
class Encoded:
    """Examples as tokens, padded on the right."""

    tokens: Int[Tensor, "batch pos"]
    counterparts: Int[Tensor, "batch pos"]
    """The corrupted input of each clean one."""

    length: Int[Tensor, " batch"]
    positions: Int[Tensor, "batch predicted"]
    """The position of the output of each prediction: that of the token before the answer, or that of a `Place`."""

    scored: Bool[Tensor, "batch predicted"]
    """False in the padding of an example that has fewer predictions than another."""

    answers: Answers

    def __getitem__(self, rows: slice) -> "Encoded":
        """Return some of the examples, padded to the same width as all of them."""
        return Encoded(
            tokens=self.tokens[rows],
            counterparts=self.counterparts[rows],
            length=self.length[rows],
            positions=self.positions[rows],
            scored=self.scored[rows],
            answers=self.answers[torch.arange(len(self.tokens))[rows]],
        )

    def dataset(self, model: MaskedModel, *, room: int = 2**28, progress: bool = False) -> Dataset:
        """Return the examples with the full model's logits. Inputs of one length are a group.

        Args:
            model: the full model.
            room: the most numbers that are held as logits; if there are more, logits are computed when read.
            progress: show a progress bar on standard error, if that is a terminal.

        Raises:
            TaskError: padding to the longest example would change the model's outputs for a shorter one.
        """
        self._check_padding(model)
        target = LazyTarget(model, self.tokens, self.positions)
        rows = torch.arange(len(self.tokens))
        if len(rows) * target[rows[:1]].numel() <= room:
            bar = tqdm(rows.split(64), desc="full model", disable=None if progress else True)
            target = torch.cat([target[some] for some in bar])
        return Dataset(
            tokens=self.tokens,
            scored=self.scored,
            target=target,
            group=self.length,
            positions=self.positions,
            counterparts=self.counterparts,
            answers=self.answers,
        )

    def _check_padding(self, model: MaskedModel) -> None:
        width, same = self.tokens.shape[1], getattr(model, "pads", None)  # optional: `MaskedModel` has no `pads`
        others = [each for each in self.length.unique().tolist() if same is not None and not same(each, width)]
        if others:
            raise TaskError(
                f"Expected texts on one side of the length at which the model's rotations change, as all are padded to "
                f"the longest, {width} tokens; there are some of {others[0]}: put those into a task of their own"
            )


@dataclass(frozen=True)
class EncodedRow:
    """One example as ids. `right` and `wrong` hold the ids of the answers to each prediction."""

    clean: list[int]
    corrupted: list[int]
    positions: list[int]
    right: list[list[int]]
    wrong: list[list[int]]


class Encoder:
    """Encodes examples as tokens.

    Args:
        tokenizer: the model's tokenizer; a fast one, which tells the characters that each token stands for.
        context_length: the most tokens that the model takes.
        vocabulary_size: the number of ids that the model knows; None leaves ids unchecked.

    Raises:
        TaskError: the tokenizer is a slow one.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, context_length: int, vocabulary_size: int | None = None
    ) -> None:
        if not tokenizer.is_fast:
            raise TaskError(f"Expected a fast tokenizer, which has a tokenizer.json; got {type(tokenizer).__name__}")
        self.split = Splitter(tokenizer)
        self._tokenizer, self._context_length = tokenizer, context_length
        self._vocabulary_size = vocabulary_size
        self._continuations: dict[tuple[str, str], int | None] = {}
        self._others: dict[tuple[str, tuple[int, ...], str], int] = {}

    def continuation(self, text: str, answer: str) -> int | None:
        """Return `answer` as one token after `text`; None if it is several, unknown, or changes how `text` splits."""
        key = (_LAST_WORD.findall(text)[0], answer)
        if key not in self._continuations:
            before, after = (self._ids(part) for part in (key[0], "".join(key)))
            one_more = len(after) == len(before) + 1 and after[:-1] == before
            known = one_more and after[-1] != self._tokenizer.unk_token_id
            self._continuations[key] = after[-1] if known else None
        return self._continuations[key]

    def word(self, text: str) -> int | None:
        """Return the one token of a text at the beginning, or after a word if the text starts with a space. Return
        None if it is several tokens, or unknown."""
        if text.startswith(" "):
            return self.continuation("a", text)  # some tokenizers add a space where a text begins
        ids = self._ids(text)
        return ids[0] if len(ids) == 1 and ids[0] != self._tokenizer.unk_token_id else None

    def encode(self, examples: Sequence[Example], metric: Metric) -> Encoded:
        """Encode all examples, padded to the longest.

        Raises:
            TaskError: the texts of an example differ in number of tokens, are too long, or do not fit its answers. The
                message names the example.
        """
        return encoded([self.row(example, number) for number, example in enumerate(examples, start=1)], metric)

    def row(self, example: Example, number: int) -> EncodedRow:
        """Encode one example.

        Args:
            example: the example.
            number: its number, from 1, for error messages.

        Raises:
            ExampleError: its texts differ in number of tokens, are too long, or do not fit its answers.
        """
        try:
            found = self._predicted(example) if example.predictions else self._placed(example)
            self._check_length(example, found)
            self._check_ids(found)
        except ExampleError as error:
            texts = f"{example.clean!r:.200}"
            texts += f" and {example.corrupted!r:.200}" if error.reason == _UNEQUAL else ""
            source = f" ({example.source})" if example.source else ""
            raise ExampleError(f"{error}. Example {number}: {texts}{source}", reason=error.reason) from error
        return found

    def _predicted(self, example: Example) -> EncodedRow:
        """Encode an example with predictions: its text contains the answers, or they are labels."""
        last = example.predictions[-1]
        pieces = self.split(example.clean if last.label else example.clean + last.right[0])
        found = [self._found(pieces, prediction) for prediction in example.predictions]
        ends = [end for end, _ in found]
        clean = pieces.ids[: ends[-1]]
        if clean and min(ends) == 0:
            raise ExampleError(
                "Expected a token before the first answer, as outputs are measured there; this tokenizer puts none "
                "before a text",
                reason="nothing before an answer",
            )
        right, wrong = list[list[int]](), list[list[int]]()
        for prediction, (end, mine) in zip(example.predictions, found, strict=True):
            before, ids = pieces.text[: prediction.start], pieces.ids[:end]
            right.append([pieces.ids[end] if a == mine else self._other(before, ids, a) for a in prediction.right])
            wrong.append([self._other(before, ids, answer) for answer in prediction.wrong])
        return EncodedRow(clean, self._corrupted(example, pieces, ends[-1]), [end - 1 for end in ends], right, wrong)

    def _found(self, pieces: Pieces, prediction: Prediction) -> tuple[int, str | None]:
        """Return the number of tokens before an answer, those of space included; and the right answer in the text."""
        start = prediction.start
        if prediction.label:
            return self.split.end_at(pieces, start), None
        answer = max((each for each in prediction.right if pieces.text.startswith(each, start)), key=len, default=None)
        if answer is None:
            raise ExampleError(
                f"Expected answers that are whole tokens of their text; {prediction.right[0]!r} is not: mark what is "
                "no part of it <label>…</label>",
                reason="answers that are no whole tokens of their text",
            )
        return self.split.answer_at(pieces, start, start + len(answer)), answer

    def _other(self, before: str, ids: list[int], answer: str) -> int:
        """Return the one token of an answer after the text `before`, whose ids are `ids`."""
        # The cache serves many answers, such as 100 years: their tokens depend on what comes just before.
        key = (_LAST_WORD.findall(before)[0], tuple(ids[-2:]), answer)
        if key not in self._others:
            after = self.split(before + answer).ids
            if after[: len(ids)] != ids:
                raise not_one_token(answer, "comes after other tokens than the text has there, or changes them")
            if len(after) != len(ids) + 1:
                names = ", ".join(repr(self.split.shown(token)) for token in after[len(ids) :])
                raise not_one_token(answer, f"is {len(after) - len(ids)} there: {names or 'nothing'}")
            self._others[key] = after[-1]
        return self._others[key]

    def _corrupted(self, example: Example, pieces: Pieces, end: int) -> list[int]:
        """Return the corrupted text's ids. As in the clean text, space before the answer may belong to the answer."""
        last, text = example.predictions[-1], example.corrupted
        word = text.rstrip()
        space = end > 0 and pieces.spans[end - 1][1] > last.start and self.split.blank(pieces.ids[end - 1])
        if (space or text != word) and not last.label:
            answer = (last.wrong or last.right)[0]
            whole = text + (answer if text == word else answer.lstrip())
            with suppress(ExampleError):
                found = self.split(whole)
                return found.ids[: self.split.answer_at(found, len(word), len(whole))]
        return self.split(text).ids

    def _placed(self, example: Example) -> EncodedRow:
        """Encode an example with places. Its texts keep all tokens that the tokenizer adds."""
        clean, corrupted = (self.split(text, closed=True).ids for text in (example.clean, example.corrupted))
        known, length = self._vocabulary_size, len(clean)
        for place in example.places:
            if place.position >= length or (known is not None and place.right >= known):
                raise ExampleError(
                    f"Expected places below {length}, as there are tokens, and ids below {known}, as the model knows; "
                    f"got {place.position} and {place.right}",
                    reason="places or ids beyond those that there are",
                )
        right = [[place.right] for place in example.places]
        return EncodedRow(clean, corrupted, [place.position for place in example.places], right, [[] for _ in right])

    def _check_length(self, example: Example, row: EncodedRow) -> None:
        clean, corrupted = len(row.clean), len(row.corrupted)
        if clean != corrupted:
            stay = (
                "; answers stay in the text, all but the last, and need tokens in their places in the corrupted one; "
                "mark what is no part of the text <label>…</label>"
                if len(example.predictions) > 1
                else ""
            )
            raise ExampleError(
                f"Expected clean and corrupted texts with equally many tokens; got {clean} and {corrupted}{stay}",
                reason=_UNEQUAL,
            )
        if not 0 < clean <= self._context_length:
            nothing = "" if clean else ": the tokenizer puts nothing before a text, and this one begins with its answer"
            raise ExampleError(
                f"Expected texts of 1 to {self._context_length} tokens, as the model takes; got {clean}{nothing}",
                reason="texts that are too long, or have no token",
            )

    def _check_ids(self, row: EncodedRow) -> None:
        largest = max(chain(row.clean, row.corrupted, *row.right, *row.wrong))
        if self._vocabulary_size is not None and largest >= self._vocabulary_size:
            raise ExampleError(
                f"Expected tokens that the model knows, ids below {self._vocabulary_size}; got {largest}: the "
                "tokenizer is another model's",
                reason="tokens that the model does not know",
            )

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]


def encoded(rows: Sequence[EncodedRow], metric: Metric) -> Encoded:
    """Return rows as tensors, padded to the longest.

    Raises:
        TaskError: there is no row, or no row has a position at which outputs count.
    """
    if not rows:
        raise TaskError("Expected at least one example; got none")
    predicted = max(len(row.positions) for row in rows)
    if not predicted:
        raise TaskError("Expected an example with a place at which outputs count; none has one")
    positions = _padded([row.positions for row in rows], -1)
    return Encoded(
        tokens=_padded([row.clean for row in rows], 0),
        counterparts=_padded([row.corrupted for row in rows], 0),
        length=torch.tensor([len(row.clean) for row in rows]),
        positions=positions.clamp(min=0),
        scored=positions >= 0,
        answers=Answers(
            right=_ids_padded([row.right for row in rows], predicted),
            wrong=_ids_padded([row.wrong for row in rows], predicted),
            metric=metric,
        ),
    )


def _padded(rows: Sequence[Sequence[int]], filling: int, *, width: int | None = None) -> Int[Tensor, "row column"]:
    width = max(len(row) for row in rows) if width is None else width
    return torch.tensor([[*row, *[filling] * (width - len(row))] for row in rows])


def _ids_padded(rows: Sequence[Sequence[Sequence[int]]], predicted: int) -> Int[Tensor, "row predicted id"]:
    width = max([1, *(len(ids) for row in rows for ids in row)])
    filled = [[*row, *[[]] * (predicted - len(row))] for row in rows]
    return torch.stack([_padded(row, -1, width=width) for row in filled])
