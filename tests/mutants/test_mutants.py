"""Every planted bug is noticed. Behind the marker `mutants`; that they can still be planted is always checked."""

import ast

import pytest
from run import MUTANTS, ROOT, first_failure


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_bug_can_be_planted(mutant):
    ast.parse(mutant.apply((ROOT / mutant.file).read_text()))


def test_there_are_enough_of_them_and_each_has_a_name():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 30


@pytest.mark.mutants
def test_nothing_fails_without_a_bug():
    assert first_failure(None) is None


@pytest.mark.mutants
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_bug_is_noticed(mutant):
    assert first_failure(mutant) is not None
