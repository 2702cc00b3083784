"""Inputs drawn at will: the compiled model computes what RASP's interpreter does."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tracr_bridge.compile.verify import VALUE_ATOL

NAMES = ["reverse", "xproportion", "detect_pattern", "induction", "sort_unique", "shuffle_dyck1"]


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_the_model_computes_what_rasp_says_and_pad_changes_nothing(compiled, name, data):
    program = compiled(name)
    declared = program.program
    lengths = {"min_size": declared.min_seq_len, "max_size": declared.max_seq_len}
    tokens = tuple(data.draw(st.lists(st.sampled_from(declared.vocab), **lengths)))
    assume(declared.valid is None or declared.valid(tokens))
    ids = torch.tensor([program.encode(tokens)])
    outputs = program.model(ids)[0, 1:]
    for value, wanted in zip(outputs, declared.evaluate(tokens), strict=True):
        if wanted is None:
            continue
        if program.categorical:
            assert program.output_values[int(value.argmax())] == wanted
        else:
            assert float(value) == pytest.approx(float(wanted), abs=VALUE_ATOL)
    row = program.domain.inputs.index(tokens)
    torch.testing.assert_close(program.dataset.target[row, 1 : len(tokens) + 1], outputs, atol=1e-5, rtol=1e-5)


@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_a_causal_program_does_not_see_what_comes_later(compiled, data):
    program = compiled("xproportion")
    declared = program.program
    tokens = data.draw(st.lists(st.sampled_from(declared.vocab), min_size=2, max_size=declared.max_seq_len))
    cut = data.draw(st.integers(1, len(tokens) - 1))
    whole = program.model(torch.tensor([program.encode(tuple(tokens))]))[0, : cut + 1]
    prefix = program.model(torch.tensor([program.encode(tuple(tokens[:cut]))]))[0]
    torch.testing.assert_close(whole, prefix, atol=1e-5, rtol=1e-5)
