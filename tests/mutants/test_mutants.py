"""Every planted bug is noticed. Behind the marker `mutants`; that they can still be planted is always checked."""

import ast

import pytest
from run_mutants import MUTANTS, ROOT, SLICE, copy_of_the_code, first_failure


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_bug_can_be_planted(mutant):
    text = (ROOT / mutant.file).read_text()
    assert mutant.apply(text) != text
    ast.parse(mutant.apply(text))


def test_there_are_enough_of_them_and_each_has_a_name():
    names = {mutant.name for mutant in MUTANTS}
    assert len(names) == len(MUTANTS) >= 415 and {*SLICE} <= names


@pytest.fixture(scope="session")
def frozen(tmp_path_factory):
    return copy_of_the_code(tmp_path_factory.mktemp("frozen"))


@pytest.mark.mutants
def test_nothing_fails_without_a_bug(frozen):
    assert first_failure(None, frozen) is None


@pytest.mark.mutants
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_bug_is_noticed(mutant, frozen):
    assert first_failure(mutant, frozen) is not None
