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


def finalised(number):
    """The finaliser of MurmurHash3, of whole numbers without a sign; as signed ones."""
    number %= 1 << 64
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        number = (number ^ (number >> 33)) * factor % (1 << 64)
    number ^= number >> 33
    return number - (1 << 64) * (number >> 63)


@pytest.mark.parametrize("at_once", [1, 3, 1 << 16])
def test_a_number_and_its_salt_are_scrambled_as_murmurhash3_does(monkeypatch, at_once):
    monkeypatch.setattr("edgeprune.fingerprints._AT_ONCE", at_once)
    numbers = torch.tensor([[0, 1, -1], [2**63 - 1, -(2**63), 123456789]])
    salts = torch.tensor([0, 7, -(2**62)])
    before = numbers.clone()
    expected = [[finalised(n + s) for n, s in zip(row, salts.tolist(), strict=True)] for row in numbers.tolist()]
    assert scrambled(numbers, salts).tolist() == expected
    assert torch.equal(numbers, before) and finalised(1) % (1 << 64) == 0xB456BCFC34C2CB2C


def test_salts_are_drawn_from_all_numbers_of_64_bits_and_are_the_same_every_time():
    state = torch.get_rng_state()
    for level in Level:
        salts = salt(1000, level)
        assert torch.equal(salts, salt(1000, level)) and len(salts.unique()) == 1000
        quarters = torch.bincount((salts >> 62) + 2)
        assert len(quarters) == 4 and quarters.min() > 200
    assert torch.equal(state, torch.get_rng_state())
