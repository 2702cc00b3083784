"""The state of what takes long, as a file of tensors: written whole or not at all, and given back where it is whole."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from edgeprune.errors import RunError
from edgeprune.files.store import read_bytes, write_atomically

_LARGEST: Final = 2**34
"""Bytes of a state that is read, at the most."""


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """What a tensor of a state may be, beside one that its engine would write. It is never NaN."""

    like: Tensor
    """Of the same type and shape."""

    or_empty: bool = False
    """Or without any number, along its one axis."""

    columns: int | None = None
    """If given, the last axis may be as long as 0 to this instead."""

    least: int | float = -math.inf
    most: int | float = math.inf

    def fault(self, value: Tensor) -> str | None:
        """What is wrong with a value, in words; None if nothing is."""
        wanted, got = tuple(self.like.shape), tuple(value.shape)
        free = self.columns is not None and got[:-1] == wanted[:-1] and bool(got) and got[-1] <= self.columns
        if value.dtype != self.like.dtype:
            return f"{value.dtype} and not {self.like.dtype}"
        if not (free or (self.columns is None and got == wanted) or (self.or_empty and got == (0,))):
            return f"of shape {list(got)} and not {list(wanted)}"
        if value.numel() and not bool(((value >= self.least) & (value <= self.most)).all()):
            return f"not from {self.least:g} to {self.most:g}"
        return None


def check_state(state: Mapping[str, Tensor], allowed: Mapping[str, Allowed]) -> None:
    """Whether a state has all that it should, and nothing else.

    Raises:
        ValueError: it has not.
    """
    if names := state.keys() ^ allowed.keys():
        raise ValueError(f"it lacks {name}" if (name := min(names)) in allowed else f"it has {name:.60} too")
    for name, rule in allowed.items():
        if (fault := rule.fault(state[name])) is not None:
            raise ValueError(f"{name} is {fault}")


def part(name: str, of: Mapping[str, Allowed]) -> dict[str, Allowed]:
    """The rules of a part, under the names that its tensors have in the whole."""
    return {f"{name}/{key}": rule for key, rule in of.items()}


def write_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state.

    Raises:
        UnwritableFile: there is no room, or no such folder.
    """
    apart = {name: value.clone().contiguous() for name, value in state.items()}  # some are one and the same
    write_atomically(path, lambda file: file.write(save(apart)))


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        ValueError: they cannot be read.
    """
    try:
        return load(read_bytes(path, most=_LARGEST))
    except (SafetensorError, KeyError, RuntimeError, TypeError, OSError, OverflowError) as error:
        raise ValueError(str(error)) from error


def restore_from(path: Path, restore: Callable[[Mapping[str, Tensor]], None]) -> None:
    """Give a state that was written back to what it is of, which checks it.

    Raises:
        RunError: it is damaged, or of something else.
    """
    try:
        restore(read_state(path))
    except (KeyError, RuntimeError, ValueError) as error:
        raise RunError(
            f"Expected a checkpoint of this run in {str(path)!r}; it is damaged: {error!s:.200}. Put a copy in its "
            "place, or take it away to begin again"
        ) from error
