"""A task beside a model, before anything is pruned: its examples as tokens, and what the full model answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import torch
from transformers import PreTrainedTokenizerBase

from edgeprune.data import LazyTarget
from edgeprune.errors import ExampleError, ModelError, TaskError
from edgeprune.models.transformer import Transformer
from edgeprune.tasks import Encoder, Example, Sizes, divide, is_file, make_examples, metric_of
from edgeprune.tasks.encode import Encoded, EncodedRow, encoded
from edgeprune.tasks.jsonl import read_lines

MEASURED: Final = 200
"""Examples that the full model answers; of more, so many are drawn."""

_AT_ONCE: Final = 16
"""Examples that it answers at a time."""

_LEAST: Final = 0.9
"""Share of a model's ids that its own tokenizer has at the least; some models have a few more, to a round number."""


@dataclass(frozen=True)
class Refusal:
    """Lines of a file that cannot be used, all for one reason."""

    reason: str
    lines: int
    """How many."""

    first: int
    """The number of the first of them."""

    message: str
    """What is said of that one."""


@dataclass(frozen=True)
class Answer:
    """What the full model answers at one place."""

    position: int
    """Of the token at which it is measured, those that the tokenizer adds being counted."""

    token: str
    """That token."""

    right: list[str]
    wrong: list[str]
    """None of them: all other tokens."""

    answer: str
    """The most probable token."""

    probability: float
    is_right: bool
    prefers_right: bool
    """Whether the task's metric is above 0: right ones are preferred to wrong ones."""


@dataclass(frozen=True)
class Shown:
    """An example as the model sees it."""

    name: str
    clean: list[str]
    corrupted: list[str]
    answers: list[Answer]


@dataclass(frozen=True)
class DryRun:
    """What is found."""

    examples: int
    usable: int
    refused: list[Refusal]
    splits: dict[str, int]
    """How many examples `prune` would take, with as many as it takes by default; none where it could not."""

    fault: str | None
    """Why the task cannot be used, though some examples could."""

    shown: list[Shown]
    measured: int
    """Examples that the full model answered."""

    places: int
    """Places in them at which outputs count."""

    right: float
    """Share of these at which the most probable token is right."""

    preferred: float
    """Share of these at which right ones are preferred to wrong ones."""

    notes: list[str]


_Fault = tuple[str, int, str]
"""A reason, a line's number, and all that is said of it."""


@dataclass(frozen=True)
class _Read:
    """Examples, each with the row that it is in tokens."""

    examples: list[Example]
    rows: list[EncodedRow]
    names: list[str]
    refused: list[Refusal]
    splits: dict[str, int]
    fault: str | None


def dry_run(
    task: str, model: Transformer, tokenizer: PreTrainedTokenizerBase, *, show: int = 3, seed: int = 0
) -> DryRun:
    """Read a task, and have the full model answer some of it.

    Args:
        task: a name of `tasks.TASKS`, or a file of examples.
        model: the full model.
        tokenizer: the model's.
        show: how many examples to show.
        seed: by which examples are drawn and dealt to splits, as `prune --data-seed` is.

    Raises:
        TaskError: there is no such task or file, or the tokenizer does not fit it.
        ModelError: the model's outputs are no numbers.
    """
    encoder = Encoder(tokenizer, context_length=model.context_length, vocabulary_size=model.vocabulary_size)
    read = _of_file(Path(task), encoder, seed) if is_file(task) else _of_name(task, encoder, seed)
    total = len(read.rows) + sum(refusal.lines for refusal in read.refused)
    notes = _notes(read, encoder, model, tokenizer)
    if not any(row.positions for row in read.rows):
        fault = read.fault or "Expected an example with a place at which outputs count; none has one"
        return DryRun(total, len(read.rows), read.refused, {}, fault, [], 0, 0, 0.0, 0.0, notes)
    together = encoded(read.rows, metric_of(task))
    many = len(read.rows)
    some = list(range(many)) if many <= MEASURED else sorted(Random(seed).sample(range(many), MEASURED))
    counted = [answer for each in _answers(model, encoder, together, some) for answer in each]
    first = list(range(min(show, many)))
    shown = [
        Shown(
            read.names[row],
            [encoder.split.shown(token) for token in read.rows[row].clean],
            [encoder.split.shown(token) for token in read.rows[row].corrupted],
            answers,
        )
        for row, answers in zip(first, _answers(model, encoder, together, first), strict=True)
    ]
    places = max(1, len(counted))
    return DryRun(
        total,
        many,
        read.refused,
        read.splits,
        read.fault,
        shown,
        len(some),
        len(counted),
        sum(answer.is_right for answer in counted) / places,
        sum(answer.prefers_right for answer in counted) / places,
        notes,
    )


def _of_name(task: str, encoder: Encoder, seed: int) -> _Read:
    splits = make_examples(task, encoder, Sizes(), seed=seed)
    examples = [example for split in splits.values() for example in split]
    names = [f"{split} {number}" for split, each in splits.items() for number in range(1, len(each) + 1)]
    rows = [encoder.row(example, number) for number, example in enumerate(examples, start=1)]
    return _Read(examples, rows, names, [], {split: len(each) for split, each in splits.items()}, None)


def _of_file(path: Path, encoder: Encoder, seed: int) -> _Read:
    """All lines of a file; what is wrong with one does not end the reading."""
    usable, rows, names, faults = list[tuple[Example, str | None]](), list[EncodedRow](), list[str](), list[_Fault]()
    for number, line in enumerate(read_lines(path), start=1):
        try:
            if line.fault is not None:
                raise line.fault
            assert line.example is not None
            rows.append(encoder.row(line.example, number))
            usable.append((line.example, line.split))
            names.append(f"line {line.number}" + (f", {line.split}" if line.split else ""))
        except ExampleError as error:
            faults.append((error.reason, line.number, str(error)))
    splits, fault = dict[str, int](), None
    try:
        splits = {split: len(each) for split, each in divide(path, usable, Sizes(), seed=seed).items()}
    except TaskError as error:
        fault = str(error) if usable else f"Expected examples that can be used; {path} has none: {faults[0][2]}"
    return _Read([example for example, _ in usable], rows, names, _grouped(faults), splits, fault)


def _grouped(faults: Sequence[_Fault]) -> list[Refusal]:
    """By reason, most frequent first."""
    found = dict[str, list[_Fault]]()
    for fault in faults:
        found.setdefault(fault[0], []).append(fault)
    refusals = [Refusal(reason, len(each), each[0][1], each[0][2]) for reason, each in found.items()]
    return sorted(refusals, key=lambda refusal: (-refusal.lines, refusal.first))


@torch.no_grad()
def _answers(model: Transformer, encoder: Encoder, examples: Encoded, rows: Sequence[int]) -> list[list[Answer]]:
    """What the model answers at each place of some examples."""
    outputs, found = LazyTarget(model, examples.tokens, examples.positions), list[list[Answer]]()
    for some in torch.tensor(rows, dtype=torch.long).split(_AT_ONCE):
        logits = outputs[some].float().cpu()
        scored, wanted = examples.scored[some], examples.answers[some]
        if not logits[scored].isfinite().all():
            raise ModelError("Expected a model whose outputs are numbers; this one gives NaN or infinity as it is")
        probability, best = logits.softmax(-1).max(-1)
        preference = wanted.preference(logits)
        for row, number in enumerate(some.tolist()):
            answers = list[Answer]()
            for place in scored[row].nonzero()[:, 0].tolist():
                position = int(examples.positions[number, place])
                right, wrong = (
                    [int(token) for token in ids[row, place] if token >= 0] for ids in (wanted.right, wanted.wrong)
                )
                top = int(best[row, place])
                answers.append(
                    Answer(
                        position,
                        encoder.split.shown(int(examples.tokens[number, position])),
                        [encoder.split.shown(token) for token in right],
                        [encoder.split.shown(token) for token in wrong],
                        encoder.split.shown(top),
                        float(probability[row, place]),
                        top in right,
                        bool(preference[row, place] > 0),
                    )
                )
            found.append(answers)
    return found


def _notes(read: _Read, encoder: Encoder, model: Transformer, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What is no fault, and may not be meant."""
    notes, added = list[str](), encoder.split.added
    if added.after and any(example.predictions for example in read.examples):
        names = " ".join(map(encoder.split.shown, added.after))
        notes.append(f"the tokenizer appends {names} to texts; it is left out, as answers come after prompts")
    if added.before:
        names = " ".join(map(encoder.split.shown, added.before))
        if own := sum(example.clean.startswith(names) for example in read.examples):
            notes.append(f"{own} texts begin with {names}, which the tokenizer puts before texts: it is put once")
    if same := sum(row.clean == row.corrupted for row in read.rows):
        notes.append(
            f"{same} of {len(read.rows)} corrupted texts are the clean ones: under resample ablation removing edges "
            "changes nothing there"
        )
    if not _LEAST * model.vocabulary_size <= len(tokenizer) <= model.vocabulary_size:
        notes.append(
            f"the tokenizer has {len(tokenizer):,} tokens and the model {model.vocabulary_size:,}: it may be another "
            "model's"
        )
    return notes
