"""Checkpoints of long computations as files of tensors: written atomically, and validated before they are restored."""

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
"""Largest checkpoint that is read, bytes."""


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """Allowed type, shape and range of one tensor of a checkpoint. NaN is never allowed."""

    like: Tensor
    """Tensor with the required type and shape."""

    or_empty: bool = False
    """Whether a tensor of shape (0,) is allowed too."""

    columns: int | None = None
    """If given, the last axis may have any length from 0 to this, whatever its length in `like`."""

    least: int | float = -math.inf
    most: int | float = math.inf

    def fault(self, value: Tensor) -> str | None:
        """Return what is wrong with a tensor, in words; None if nothing is."""
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
    """Check that a state has exactly the allowed tensors.

    Raises:
        ValueError: a tensor is missing, is unexpected, or breaks its rule.
    """
    if names := state.keys() ^ allowed.keys():
        raise ValueError(f"it lacks {name}" if (name := min(names)) in allowed else f"it has {name:.60} too")
    for name, rule in allowed.items():
        if (fault := rule.fault(state[name])) is not None:
            raise ValueError(f"{name} is {fault}")


def part(name: str, of: Mapping[str, Allowed]) -> dict[str, Allowed]:
    """Return the rules of one part of a state, under the names `{name}/{key}` that its tensors have there."""
    return {f"{name}/{key}": rule for key, rule in of.items()}


def write_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state to a file.

    Raises:
        UnwritableFile: the disk is full, or the folder does not exist.
    """
    apart = {name: value.clone().contiguous() for name, value in state.items()}  # some share memory
    write_atomically(path, lambda file: file.write(save(apart)))


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file.

    Raises:
        ValueError: they cannot be read.
    """
    try:
        return load(read_bytes(path, most=_LARGEST))
    except (SafetensorError, KeyError, RuntimeError, TypeError, OSError, OverflowError) as error:
        raise ValueError(str(error)) from error


def restore_from(path: Path, restore: Callable[[Mapping[str, Tensor]], None]) -> None:
    """Read a state from a file, and pass it to `restore`, which checks it.

    Raises:
        RunError: the file is damaged, or holds the state of something else.
    """
    try:
        restore(read_state(path))
    except (KeyError, RuntimeError, ValueError) as error:
        raise RunError(
            f"Expected a checkpoint of this run in {str(path)!r}; it is damaged: {error!s:.200}. Put a copy in its "
            "place, or take it away to begin again"
        ) from error
