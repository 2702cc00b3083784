"""Fingerprints: equal for values that are equal bit by bit, and different for all others but one in 2^64."""

from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

_SEED: Final = 20240624
_BITS: Final = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers that are as many bytes long."""


def fingerprint(values: Float[Tensor, "*rest column"]) -> Int[Tensor, "*rest"]:
    """The fingerprint of each row of columns: the sum of its bits times fixed random numbers, modulo 2^64."""
    bits = (values + 0.0).contiguous().view(_BITS[values.dtype.itemsize]).long()  # -0.0 + 0.0 is 0.0
    return (bits * salt(values.shape[-1])).sum(-1)


def salt(count: int, seed: int = 0) -> Int[Tensor, " count"]:
    """Odd random numbers, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(_SEED + seed)
    return torch.randint(-(2**62), 2**62, (count,), generator=generator) * 2 + 1
