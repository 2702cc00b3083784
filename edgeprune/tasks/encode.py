"""Examples as tokens, and as the inputs that circuits are discovered and judged on."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from edgeprune.answers import Answers, Metric
from edgeprune.data import Dataset, LazyTarget
from edgeprune.errors import TaskError
from edgeprune.model import MaskedModel
from edgeprune.tasks.example import Example

_LAST_WORD = re.compile(r"\s?\S*$")


@dataclass(frozen=True)
class Encoded:
    """Examples as tokens, padded on the right."""

    tokens: Int[Tensor, "batch pos"]
    counterparts: Int[Tensor, "batch pos"]
    """Corrupted inputs."""

    length: Int[Tensor, " batch"]
    positions: Int[Tensor, "batch predicted"]
    """The position at which each prediction is made: that of the token before."""

    scored: Bool[Tensor, "batch predicted"]
    """False where an example has fewer predictions than another."""

    answers: Answers

    def __getitem__(self, rows: slice) -> "Encoded":
        """Some of the examples, padded as all of them are."""
        return Encoded(
            tokens=self.tokens[rows],
            counterparts=self.counterparts[rows],
            length=self.length[rows],
            positions=self.positions[rows],
            scored=self.scored[rows],
            answers=self.answers[torch.arange(len(self.tokens))[rows]],
        )

    def dataset(self, model: MaskedModel, *, room: int = 2**28, progress: bool = False) -> Dataset:
        """The same with the full model's logits. Inputs of one length are a group.

        Args:
            model: the full model.
            room: the most numbers that logits may be; more are not held, but computed when they are asked for.
            progress: show a progress bar on standard error, if that is a terminal.

        Raises:
            TaskError: padded to the longest example, a shorter one would be run as another model than alone.
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
        width, same = self.tokens.shape[1], getattr(model, "pads", None)  # most models do not care
        others = [each for each in self.length.unique().tolist() if same is not None and not same(each, width)]
        if others:
            raise TaskError(
                f"Expected texts on one side of the length at which the model's rotations change, as all are padded to "
                f"the longest, {width} tokens; there are some of {others[0]}: put those into a task of their own"
            )


class Encoder:
    """Makes tokens of examples.

    Args:
        tokenizer: the model's; a fast one, which tells which characters each token stands for.
        context_length: the most tokens that the model takes.
        vocabulary_size: how many ids the model knows, if that is to be checked.

    Raises:
        TaskError: the tokenizer is a slow one.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, context_length: int, vocabulary_size: int | None = None
    ) -> None:
        if not tokenizer.is_fast:
            raise TaskError(f"Expected a fast tokenizer, which has a tokenizer.json; got {type(tokenizer).__name__}")
        self._tokenizer, self._context_length = tokenizer, context_length
        self._vocabulary_size = vocabulary_size
        self._continuations: dict[tuple[str, str], int | None] = {}

    def continuation(self, text: str, answer: str) -> int | None:
        """The one token that `answer` is after `text`; None where it is several, or changes how the text is split."""
        key = (_LAST_WORD.findall(text)[0], answer)
        if key not in self._continuations:
            before, after = (self._ids(part) for part in (key[0], "".join(key)))
            one_more = len(after) == len(before) + 1 and after[:-1] == before
            known = one_more and after[-1] != self._tokenizer.unk_token_id
            self._continuations[key] = after[-1] if known else None
        return self._continuations[key]

    def word(self, text: str) -> int | None:
        """The one token that a text is at the beginning, or after a word if it starts with a space; None where it is
        several, or unknown."""
        if text.startswith(" "):
            return self.continuation("a", text)  # some tokenizers put a space of their own where a text begins
        ids = self._ids(text)
        return ids[0] if len(ids) == 1 and ids[0] != self._tokenizer.unk_token_id else None

    def encode(self, examples: Sequence[Example], metric: Metric) -> Encoded:
        """All examples, padded to the longest.

        Raises:
            TaskError: texts of an example differ in tokens, are too long, or do not fit its answers; it is named.
        """
        if not examples:
            raise TaskError("Expected at least one example; got none")
        rows = [self._row(f"Example {number}", example) for number, example in enumerate(examples, start=1)]
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

    def _row(self, name: str, example: Example) -> "_Row":
        clean, corrupted = (self._tokenizer(text)["input_ids"] for text in (example.clean, example.corrupted))
        if len(clean) != len(corrupted):
            raise TaskError(
                f"Expected clean and corrupted texts with equally many tokens; got {len(clean)} and {len(corrupted)}. "
                f"{name}: {example.clean!r} and {example.corrupted!r}"
            )
        if not 0 < len(clean) <= self._context_length:
            raise TaskError(
                f"Expected texts of 1 to {self._context_length} tokens, as the model takes; got {len(clean)}. "
                f"{name}: {example.clean!r:.200}"
            )
        if self._vocabulary_size is not None and max(*clean, *corrupted) >= self._vocabulary_size:
            raise TaskError(
                f"Expected tokens that the model knows, ids below {self._vocabulary_size}; got "
                f"{max(*clean, *corrupted)}: the tokenizer is another model's. {name}: {example.clean!r:.200}"
            )
        if not example.predictions:
            self._check_places(name, example, clean, corrupted)
            places = example.places
            right: list[list[int]] = [[place.right] for place in places]
            return _Row(clean, corrupted, [place.position for place in places], right, [[] for _ in places])
        ends = {end: place for place, (start, end) in enumerate(self._offsets(example.clean)) if end > start}
        positions, right, wrong = list[int](), list[list[int]](), list[list[int]]()
        for prediction in example.predictions:
            text = example.clean[: prediction.start]
            if prediction.start not in ends:
                raise TaskError(
                    f"Expected a token that ends where an answer begins. {name}: {text!r} does not end in one"
                )
            positions.append(ends[prediction.start])
            right.append([self._answer(name, text, answer) for answer in prediction.right])
            wrong.append([self._answer(name, text, answer) for answer in prediction.wrong])
            after = clean[positions[-1] + 1 : positions[-1] + 2]
            if after and after[0] not in right[-1]:
                raise TaskError(
                    f"Expected answers that are whole tokens of their text; {prediction.right[0]!r} is not. {name}: "
                    f"{example.clean!r:.200}"
                )
        return _Row(clean, corrupted, positions, right, wrong)

    def _check_places(self, name: str, example: Example, clean: list[int], corrupted: list[int]) -> None:
        known, length = self._vocabulary_size, len(clean)
        if self._tokenizer.unk_token_id in (*clean, *corrupted):
            raise TaskError(f"Expected words that the tokenizer knows. {name}: {example.clean!r:.200}")
        for place in example.places:
            if place.position >= length or (known is not None and place.right >= known):
                raise TaskError(
                    f"Expected places below {length}, as there are tokens, and ids below {known}, as the model knows; "
                    f"got {place.position} and {place.right}. {name}: {example.clean!r:.200}"
                )

    def _answer(self, name: str, text: str, answer: str) -> int:
        token = self.continuation(text, answer)
        if token is None or (self._vocabulary_size is not None and token >= self._vocabulary_size):
            raise TaskError(
                f"Expected answers of one token of the model's; got {answer!r}, which is several, unknown, or changes "
                f"those before it. {name}: {text!r}"
            )
        return token

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        return self._tokenizer(text, return_offsets_mapping=True)["offset_mapping"]  # pyright: ignore[reportReturnType]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class _Row:
    """One example as ids; right and wrong ones for each of its predictions."""

    clean: list[int]
    corrupted: list[int]
    positions: list[int]
    right: list[list[int]]
    wrong: list[list[int]]


def _padded(rows: Sequence[Sequence[int]], filling: int, *, width: int | None = None) -> Int[Tensor, "row column"]:
    width = max(len(row) for row in rows) if width is None else width
    return torch.tensor([[*row, *[filling] * (width - len(row))] for row in rows])


def _ids_padded(rows: Sequence[Sequence[Sequence[int]]], predicted: int) -> Int[Tensor, "row predicted id"]:
    width = max([1, *(len(ids) for row in rows for ids in row)])
    filled = [[*row, *[[]] * (predicted - len(row))] for row in rows]
    return torch.stack([_padded(row, -1, width=width) for row in filled])
