"""Splits texts into the tokens that a model reads: their ids, their characters, and what the tokenizer adds."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from edgeprune.errors import ExampleError


@dataclass(frozen=True)
class Pieces:
    """A text as tokens."""

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]
    """Each token's characters, as start and end (exclusive); (0, 0) for tokens that the tokenizer adds. Tokens that
    share a character, each holding some of its bytes, span all of it. Some tokenizers leave spaces out."""


@dataclass(frozen=True)
class Added:
    """Tokens that a tokenizer adds to every text."""

    before: list[int]
    after: list[int]


class Splitter:
    """Splits texts into tokens.

    Args:
        tokenizer: the model's tokenizer, a fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._blank: dict[int, bool] = {}

    def __call__(self, text: str, *, closed: bool = False) -> Pieces:
        """Return a text as the tokens that the model reads.

        Tokens that the tokenizer adds before texts come once, even if the text begins with them, as chat templates do.

        Args:
            text: the text.
            closed: keep the tokens that the tokenizer adds after texts. A prompt is followed by its answer instead.

        Raises:
            ExampleError: the text has a word that the tokenizer does not know, or begins with BOS twice.
        """
        ids, spans, before, after = self._raw(text)
        if before == len(ids) and ids:  # an empty text has only added tokens
            before, after = len(self.added.before), len(self.added.after)
        if not closed and after:
            ids, spans = ids[:-after], spans[:-after]
        if before and ids[before : 2 * before] == ids[:before]:
            ids, spans = ids[before:], spans[before:]
            before = 0
        found = Pieces(text, ids, spans)
        self._check_known(found, before)
        words = (token for token in ids[1:] if not self.blank(token))
        bos = self._tokenizer.bos_token_id
        if ids and bos is not None and ids[0] == bos == next(words, None):
            raise ExampleError(
                f"Expected one {self._tokenizer.bos_token} at the beginning of a text; got two",
                reason="two BOS",
            )
        return found

    @cached_property
    def added(self) -> Added:
        """Tokens that the tokenizer adds to every text."""
        try:
            ids, _, before, after = self._raw("a")
        except ExampleError:
            return Added([], [])
        return Added(ids[:before], ids[len(ids) - after :] if before < len(ids) else [])

    def _raw(self, text: str) -> tuple[list[int], list[tuple[int, int]], int, int]:
        """Return ids, spans, and how many tokens the tokenizer added before and after the text."""
        try:
            found: Any = self._tokenizer(
                text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False
            )
        except Exception as error:  # the library raises a plain `Exception`
            raise ExampleError(
                f"Expected a text that the tokenizer can split; {error!s:.200}", reason="no tokens for a text"
            ) from error
        mask = found["special_tokens_mask"]
        before = next((number for number, added in enumerate(mask) if not added), len(mask))
        after = next((number for number, added in enumerate(reversed(mask)) if not added), len(mask))
        return found["input_ids"], found["offset_mapping"], before, after

    def _check_known(self, pieces: Pieces, before: int) -> None:
        unknown, name = self._tokenizer.unk_token_id, self._tokenizer.unk_token
        for number, (token, (start, end)) in enumerate(zip(pieces.ids, pieces.spans, strict=True)):
            # GPT-2's unknown token also ends texts, so a text may contain it on purpose.
            if token == unknown and number >= before and end > start and pieces.text[start:end] != name:
                raise ExampleError(
                    f"Expected words that the tokenizer knows; got {pieces.text[start:end]!r:.200}",
                    reason="words that the tokenizer does not know",
                )

    def blank(self, token: int) -> bool:
        """Return whether a token is only whitespace."""
        if token not in self._blank:
            text: Any = self._tokenizer.decode([token])
            self._blank[token] = not text.strip()
        return self._blank[token]

    def shown(self, token: int) -> str:
        """Return a token as text, with its space; if it is part of a character, return its name in the vocabulary."""
        name = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(name, str):
            return f"<{token}>"
        if "▁" in name:  # SentencePiece's mark for a space, which its decoders strip
            return name.replace("▁", " ")
        text: Any = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return name if "\ufffd" in text or not text else text

    def answer_at(self, pieces: Pieces, start: int, end: int) -> int:
        """Return the index of the one token that is an answer.

        Space at the answer's beginning may be part of that token, or tokens of its own before it.

        Args:
            pieces: the text with the answer.
            start: the index of the answer's first character, space included.
            end: the index after its last character.

        Raises:
            ExampleError: the answer is no token, several tokens, or part of one.
        """
        answer = pieces.text[start:end]
        word = end - len(answer.lstrip())
        touching = [number for number, (first, last) in enumerate(pieces.spans) if last > word and first < end]
        while touching and self.blank(pieces.ids[touching[0]]):
            touching.pop(0)
        if not touching:
            raise not_one_token(answer, "is none")
        first, last = pieces.spans[touching[0]][0], pieces.spans[touching[-1]][1]
        names = ", ".join(repr(self.shown(pieces.ids[number])) for number in touching)
        if first < start:
            raise not_one_token(answer, f"begins inside the token {self.shown(pieces.ids[touching[0]])!r}")
        if last > end:
            raise ExampleError(
                f"Expected answers that are whole tokens of their text; {answer!r} is not: it ends inside "
                f"{self.shown(pieces.ids[touching[-1]])!r}",
                reason="answers that are no whole tokens of their text",
            )
        if len(touching) > 1:
            raise not_one_token(answer, f"is {len(touching)}: {names}; mark one of them")
        return touching[0]

    def end_at(self, pieces: Pieces, start: int) -> int:
        """Return the number of tokens before the character at `start`.

        Raises:
            ExampleError: `start` is inside a token.
        """
        count = next((number for number, (_, last) in enumerate(pieces.spans) if last > start), len(pieces.ids))
        if count < len(pieces.ids) and pieces.spans[count][0] < start:
            raise ExampleError(
                f"Expected a token that ends where a label stands; it stands inside {self.shown(pieces.ids[count])!r}",
                reason="labels inside a token",
            )
        return count


def not_one_token(answer: str, why: str) -> ExampleError:
    """Return the error for an answer that is not one token, which no single output can give."""
    return ExampleError(
        f"Expected answers of one token of the model's; got {answer!r}, which {why}",
        reason="answers that are not one token",
    )
