"""A dry run of a task before anything is pruned: its examples as tokens, and the full model's answers."""

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
"""Maximum number of examples that the full model answers; of more, this many are drawn."""

_AT_ONCE: Final = 16
"""Examples per forward pass."""

_LEAST: Final = 0.9
"""Minimum size of a tokenizer as a share of its model's vocabulary; some models round their vocabulary up."""


@dataclass(frozen=True)
class Refusal:
    """Lines of a file that are refused for one reason."""

    reason: str
    lines: int
    """Number of refused lines."""

    first: int
    """Line number of the first, from 1."""

    message: str
    """Full error message for the first."""


@dataclass(frozen=True)
class Answer:
    """The full model's answer at one scored position."""

    position: int
    """Position at which the output is measured, counting the tokens that the tokenizer adds."""

    token: str
    """Token at that position."""

    right: list[str]
    wrong: list[str]
    """Wrong answers; empty stands for all other tokens."""

    answer: str
    """Most probable token."""

    probability: float
    is_right: bool
    prefers_right: bool
    """Whether the task's metric is above 0: the model prefers right answers to wrong ones."""


@dataclass(frozen=True)
class Shown:
    """An example as the model sees it."""

    name: str
    clean: list[str]
    corrupted: list[str]
    answers: list[Answer]


@dataclass(frozen=True)
class DryRun:
    """Result of a dry run."""

    examples: int
    usable: int
    refused: list[Refusal]
    splits: dict[str, int]
    """Number of usable examples in each split, at the default `Sizes`; empty if they cannot be split."""

    fault: str | None
    """Why the task as a whole cannot be used; None if it can, apart from refused lines."""

    shown: list[Shown]
    measured: int
    """Number of examples that the full model answered."""

    places: int
    """Number of scored positions in them."""

    right: float
    """Share of these positions at which the most probable token is right."""

    preferred: float
    """Share of these positions at which the model prefers right answers to wrong ones."""

    notes: list[str]


_Fault = tuple[str, int, str]
"""Reason, line number and full error message."""


@dataclass(frozen=True)
class _Read:
    """Usable examples, each with its row of tokens, and the refused lines."""

    examples: list[Example]
    rows: list[EncodedRow]
    names: list[str]
    refused: list[Refusal]
    splits: dict[str, int]
    fault: str | None


def dry_run(
    task: str, model: Transformer, tokenizer: PreTrainedTokenizerBase, *, show: int = 3, seed: int = 0
) -> DryRun:
    """Read a task, and run the full model on up to `MEASURED` of its examples.

    Args:
        task: a name in `tasks.TASKS`, or a file of examples.
        model: the full model.
        tokenizer: the model's tokenizer.
        show: number of examples to show.
        seed: seed for drawing examples and splitting them, as `prune --data-seed`.

    Raises:
        TaskError: there is no such task or file, or the tokenizer does not fit it.
        ModelError: the model's outputs are not finite.
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
    """Read all lines of a file; a faulty line is recorded, and reading goes on."""
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
    """Group faults by reason, most frequent first."""
    found = dict[str, list[_Fault]]()
    for fault in faults:
        found.setdefault(fault[0], []).append(fault)
    refusals = [Refusal(reason, len(each), each[0][1], each[0][2]) for reason, each in found.items()]
    return sorted(refusals, key=lambda refusal: (-refusal.lines, refusal.first))


@torch.no_grad()
def _answers(model: Transformer, encoder: Encoder, examples: Encoded, rows: Sequence[int]) -> list[list[Answer]]:
    """Return the model's answers at each scored position of the given rows, one list per row."""
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
    """Return remarks on what is allowed but may be unintended."""
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
