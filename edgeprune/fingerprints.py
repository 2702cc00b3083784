"""Fingerprints: 64-bit numbers, equal for values that are equal bit by bit, and as if drawn at random for others.

Each level of parts (columns, positions, inputs, sources) scrambles its numbers again, with that level's salts. Sums of
products alone would be equal for values that swapped places.
"""

from enum import IntEnum
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

_FACTORS: Final = (-49064778989728563, -4265267296055464877)
"""The factors of MurmurHash3's finaliser (Appleby, 2008), as signed integers."""

_BITS: Final = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer type of each size in bytes."""

_AT_ONCE: Final = 1 << 16
"""Numbers scrambled at a time: as many as fit in a processor's cache."""


class Level(IntEnum):
    """The parts that a fingerprint sums over; each level's value is the seed of its salts."""

    COLUMN = 20240624
    POSITION = 20240625
    INPUT = 20240626
    SOURCE = 20240627
    UNREAD = 20240628


def bits_of(values: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Return each value's bits as an integer; 0.0 and -0.0 give the same integer."""
    return (values + 0.0).contiguous().view(_BITS[values.dtype.itemsize]).long()  # -0.0 + 0.0 is 0.0


def scrambled(numbers: Int[Tensor, "*shape"], salts: Int[Tensor, "*salted"]) -> Int[Tensor, "*shape"]:
    """Return a random-looking number for each sum of a number and its salt; different sums give different numbers."""
    mixed = (numbers + salts).contiguous()
    for part in mixed.view(-1).split(_AT_ONCE):
        for factor in _FACTORS:
            part ^= (part >> 33) & 0x7FFFFFFF
            part *= factor
        part ^= (part >> 33) & 0x7FFFFFFF
    return mixed


def salt(count: int, level: Level) -> Int[Tensor, " count"]:
    """Return random 64-bit integers, the same ones for the same level."""
    generator = torch.Generator().manual_seed(level)
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)
