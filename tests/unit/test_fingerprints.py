"""Fingerprints of values such as compiled models write: zeros, ones, and the same values in other places."""

import itertools

import pytest
import torch

from edgeprune.fingerprints import Level, bits_of, salt, scrambled


def fingerprints(values):
    """Of each row of columns."""
    return scrambled(bits_of(values), salt(values.shape[-1], Level.COLUMN)).sum(-1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("one", "other"), [(0, 1), (-1, 1), (0, 2), (0.5, 1)])
def test_vectors_of_two_values_have_fingerprints_of_their_own(dtype, one, other):
    """The last bits of such numbers are all 0, and those of their fingerprints are not."""
    places = torch.arange(1 << 16)[:, None] >> torch.arange(16) & 1
    found = fingerprints(torch.where(places == 1, other, one).to(dtype))
    assert len(found.unique()) == len(found)
    for part in (found & 0xFFFFFFFF, found >> 32 & 0xFFFFFFFF):
        # Of 2^16 random numbers below 2^32, half a pair is equal; a dozen are not once in many thousand tries.
        assert len(part.unique()) > len(found) - 12


def test_values_that_change_places_change_the_fingerprint():
    """Columns, positions, inputs and sources: a product of salts would be the same for two that are exchanged."""
    levels = (Level.SOURCE, Level.INPUT, Level.POSITION, Level.COLUMN)

    def fingerprint(values):
        numbers = bits_of(values)
        for level in reversed(levels):
            numbers = scrambled(numbers, salt(numbers.shape[-1], level)).sum(-1)
        return int(numbers)

    placed = set()
    for place in itertools.product(range(3), repeat=4):
        values = torch.zeros(3, 3, 3, 3)
        values[place] = 1.5
        placed.add(fingerprint(values))
    assert len(placed) == 81
    assert len({tuple(salt(9, level).tolist()) for level in Level}) == len(Level)


def test_zeros_of_both_signs_are_one_and_the_last_bit_counts():
    values = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0 + 2**-23], [0.0, float("nan")]])
    zero, minus, next_one, nan = fingerprints(values).tolist()
    assert zero == minus and len({zero, next_one, nan}) == 3


def test_scrambling_loses_nothing():
    numbers = torch.arange(-(1 << 15), 1 << 15)
    assert len(scrambled(numbers, torch.tensor(7)).unique()) == len(numbers)
