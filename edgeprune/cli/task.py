"""`edgeprune task`: what a task becomes in a model's tokens. Heavy modules are imported late."""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from edgeprune.cli.options import Count, Device, Json, Model, NoCheck, Seed
from edgeprune.cli.tables import print_json

if TYPE_CHECKING:
    from edgeprune.runs.dry_run import Answer, DryRun, Shown

_HEAD: Final = 10
"""Tokens that are shown of the beginning of a long text."""

_TAIL: Final = 90
"""Those of its end."""


_SEED: Final = "By which examples are drawn and dealt to splits, as --data-seed of prune is."


def task(
    task: str,
    /,
    *,
    model: Model,
    examples: Count = 3,
    device: Device = "auto",
    no_check: NoCheck = False,
    seed: Annotated[Seed, Parameter(help=_SEED)] = 0,
    json: Json = False,
) -> bool:
    """Show a task in a model's tokens, what the model answers, and which examples are refused and why.

    Args:
        task: A file of examples, .jsonl, or ioi-t1, ioi, gt, gp, boolean or boolean-few-shot.
        examples: How many to show.
    """
    from edgeprune.errors import TaskError
    from edgeprune.models.load import load_model
    from edgeprune.runs.dry_run import dry_run
    from edgeprune.tasks import is_file

    is_file(task)  # refused before a model is loaded
    loaded, tokenizer = load_model(model, device=device, check=not no_check)
    found = dry_run(task, loaded, tokenizer, show=examples, seed=seed)
    if json:
        print_json({"task": task, "model": model} | asdict(found))
    else:
        print("\n".join(_lines(found)))
    if found.fault is not None:
        raise TaskError(found.fault)
    return not found.refused


def _lines(found: "DryRun") -> list[str]:
    """All that is found, for a terminal."""
    lines = [line for shown in found.shown for line in (*_example(shown), "")]
    refused = found.examples - found.usable
    lines.append(f"examples  {found.examples:,}: {found.usable:,} usable, {refused:,} refused")
    for refusal in found.refused:
        where = (
            f"line {refusal.first}" if refusal.lines == 1 else f"{refusal.lines:,} lines, first line {refusal.first}"
        )
        lines.append(f"refused   {where}: {refusal.reason}. {' '.join(refusal.message.split())}")
    if found.splits:
        lines.append(f"splits    {', '.join(f'{split} {size:,}' for split, size in found.splits.items())}")
    if found.measured:
        lines.append(
            f"answers   of {found.measured:,} examples, {found.places:,} places: the model's most probable token is "
            f"right at {found.right:.1%}; right ones are preferred to wrong ones at {found.preferred:.1%}"
        )
    return [*lines, *(f"note      {note}" for note in found.notes)]


def _example(shown: "Shown") -> list[str]:
    measured = {answer.position for answer in shown.answers}
    return [
        shown.name,
        f"  clean      {_tokens(shown.clean, measured)}",
        f"  corrupted  {_tokens(shown.corrupted, ())}",
        *(f"  at {answer.position:<8}{_answer(answer)}" for answer in shown.answers),
    ]


def _tokens(tokens: Sequence[str], measured: Collection[int]) -> str:
    """In quotes, in which a newline is \\n; in brackets those at which outputs are measured."""
    said = [f"[{token!r}]" if position in measured else repr(token) for position, token in enumerate(tokens)]
    if len(said) > _HEAD + _TAIL:
        said[_HEAD:-_TAIL] = [f"… {len(said) - _HEAD - _TAIL:,} more …"]
    return " ".join(said)


def _answer(answer: "Answer") -> str:
    right, wrong = (_several(tokens) for tokens in (answer.right, answer.wrong))
    against = f", wrong {wrong}" if answer.wrong else ""
    verdict = "right" if answer.is_right else "not right"
    return (
        f"after {answer.token!r}, right {right}{against}; the model: {answer.answer!r} "
        f"{answer.probability:.3f}, {verdict}"
    )


def _several(tokens: Sequence[str]) -> str:
    """A few of them."""
    more = f" and {len(tokens) - 4} more" if len(tokens) > 5 else ""
    return ", ".join(map(repr, tokens[: 4 if more else 5])) + more
