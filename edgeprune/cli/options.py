"""Options that several commands have: their types, and what they refuse."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from cyclopts import Group, Parameter, Token, convert
from docstring_parser import parse_from_object

from edgeprune.graph import ABLATIONS

AGAIN: Final = ": the same command goes on where it was"
"""Follows "stopped" for commands whose second run continues the first."""

CARRIED: Final = f"What a removed edge carries: {', '.join(ABLATIONS)}."


def _is_seed(_: object, value: int) -> None:
    if not 0 <= value < 2**32:
        raise ValueError(f"Expected a seed from 0 to 2**32 - 1; got {value}")


def _is_count(_: object, value: Any) -> None:
    for each in value if isinstance(value, list | tuple) else [value]:
        if each is not None and each < 1:  # None is what a setting is that was not given
            raise ValueError(f"Expected a whole number, 1 or more; got {each}")


def _is_positive(_: object, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"Expected a number above 0; got {value}")


def strict(kind: Any, tokens: Sequence[Token]) -> Any:
    """Convert what was typed, but take no fraction for a whole number; "none" is no number and no choice either."""
    for token in tokens:
        inner = get_args(kind)[0] if get_origin(kind) is list else kind
        if inner is int and not re.fullmatch(r"[+-]?[0-9]{1,20}", token.value):
            raise ValueError(f"Expected a whole number; got {token.value!r:.80}")
    return convert(kind, tokens)


Seed = Annotated[int, Parameter(validator=_is_seed, converter=strict)]
"""NumPy takes no other seeds."""

AnySeed = Annotated[int, Parameter(validator=_is_seed, converter=strict, help="Of everything random.")]

Count = Annotated[int, Parameter(validator=_is_count, converter=strict)]

Counts = Annotated[list[int] | None, Parameter(validator=_is_count, converter=strict)]

Seconds = Annotated[float, Parameter(validator=_is_positive)]

Json = Annotated[bool, Parameter(help="Print one JSON object on standard output.", show_default=False)]

Flag = Annotated[bool, Parameter(show_default=False)]

Model = Annotated[str, Parameter(help="A name on the Hugging Face hub, such as gpt2, or a folder with safetensors.")]

Task = Annotated[
    str,
    Parameter(
        help="ioi-t1, ioi, gt, gp, boolean, boolean-few-shot, or a file of examples, .jsonl (edgeprune task --help)."
    ),
]

Device = Annotated[str, Parameter(help="cpu, cuda, …; auto is a GPU if there is one.")]

NoCheck = Annotated[
    bool,
    Parameter(
        show_default=False,
        help="For a model that is known: do not compare its logits on a few prompts with AutoModelForCausalLM's, nor "
        "refuse weights that nothing reads.",
    ),
]

Split = Literal["train", "validation", "test"]


def shown(value: object) -> str:
    """Return a setting's value as help texts have it."""
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Setting:
    """A field of a settings dataclass, as an option that may be left out."""

    owner: type
    """The dataclass."""

    name: str
    kind: Any
    """The type of its values."""

    default: str
    """The default in words."""


def left_out(name: str, settings: list[Setting], group: str) -> Any:
    """Return a dataclass of options, one for each setting, that are None where they were not given.

    Args:
        name: of the dataclass.
        settings: its fields; help texts are the docstrings of the fields that they come from.
        group: what the options stand under in `--help`.
    """
    panel = Group(group, sort_key=9)
    columns = list[tuple[str, Any, Any]]()
    for each in settings:
        help = f"{described(each.owner)[each.name]} [default: {each.default}]"
        validator = _is_count if each.kind is int else None
        negative = f"--no-{each.name.replace('_', '-')}" if each.kind is bool else ()
        option = Parameter(
            help=help, group=panel, show_default=False, validator=validator, negative=negative, converter=strict
        )
        columns.append((each.name, Annotated[each.kind | None, option], field(default=None)))
    made = make_dataclass(name, columns, frozen=True, kw_only=True, namespace={"__module__": __name__})
    return Parameter(name="*")(made)


def described(owner: type) -> dict[str, str]:
    """Return the docstring of each field of a dataclass, on one line."""
    params = parse_from_object(owner).params
    return {each.arg_name: " ".join((each.description or "").split()) for each in params}


def counted(number: int, what: str) -> str:
    """Return a number of things in words: 1 seed, 2 seeds."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
