"""Fingerprints: equal for values that are equal bit by bit, and for others as if drawn at random from 2^64.

Whatever is fingerprinted in parts (columns, positions, inputs, sources) is scrambled anew at each level, with salts of
that level: sums of products alone would be equal for values that changed places.
"""

from enum import IntEnum
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

_FACTORS: Final = (-49064778989728563, -4265267296055464877)
"""Of the finaliser of MurmurHash3 (Appleby, 2008), as signed integers."""

_BITS: Final = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers that are as many bytes long."""

_AT_ONCE: Final = 1 << 16
"""Numbers that a processor's cache holds."""


class Level(IntEnum):
    """What is summed up; each has salts of its own."""

    COLUMN = 20240624
    POSITION = 20240625
    INPUT = 20240626
    SOURCE = 20240627
    UNREAD = 20240628


def bits_of(values: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The bits of each value, as a number; 0.0 and -0.0 have the same."""
    return (values + 0.0).contiguous().view(_BITS[values.dtype.itemsize]).long()  # -0.0 + 0.0 is 0.0


def scrambled(numbers: Int[Tensor, "*shape"], salts: Int[Tensor, "*salted"]) -> Int[Tensor, "*shape"]:
    """A number for each number and its salt, which looks random, and differs where one of the two does."""
    mixed = (numbers + salts).contiguous()
    for part in mixed.view(-1).split(_AT_ONCE):
        for factor in _FACTORS:
            part ^= (part >> 33) & 0x7FFFFFFF
            part *= factor
        part ^= (part >> 33) & 0x7FFFFFFF
    return mixed


def salt(count: int, level: Level) -> Int[Tensor, " count"]:
    """Random numbers, the same ones for the same level."""
    generator = torch.Generator().manual_seed(level)
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)
