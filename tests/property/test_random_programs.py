"""What holds of every program holds of random ones; and random ones are what they are said to be."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tracr_bridge.bench import draw_programs
from tracr_bridge.compile import compile_program
from tracr_bridge.strategies import inputs_for, program_from, rasp_programs

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
FEW = settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=SLOW, phases=[Phase.generate])


@given(st.data())
@settings(FEW, max_examples=20)
def test_inputs_are_of_the_domain(data):
    program = data.draw(rasp_programs())
    tokens = data.draw(inputs_for(program))
    assert set(tokens) <= set(program.vocab)
    assert program.min_seq_len <= len(tokens) <= program.max_seq_len


@pytest.fixture(scope="module")
def drawn():
    return draw_programs(60, seed=0)


def test_draws_are_valid_named_and_varied(drawn):
    assert len({program.source for program in drawn}) == len(drawn)
    for program in drawn:
        program.check()
        assert len({str(program.evaluate(tokens)) for tokens in program.domain(budget=128, seed=0).inputs}) > 1
        assert "unnamed" not in repr(program)


def test_the_same_seed_draws_the_same_programs():
    assert [p.source for p in draw_programs(20, seed=5)] == [p.source for p in draw_programs(20, seed=5)]
    assert [p.source for p in draw_programs(20, seed=5)] != [p.source for p in draw_programs(20, seed=6)]


def test_a_drawn_program_prints_as_the_file_that_declares_it():
    (program,) = draw_programs(1, seed=0)
    assert program_from(repr(program).lstrip()).source.split() == program.source.split()
    assert torch.equal(
        compile_program(program).dataset.target, compile_program(program_from(program.source)).dataset.target
    )
