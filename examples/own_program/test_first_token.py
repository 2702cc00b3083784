"""Hand-written tests beside those that the plugin makes of the program."""

import pytest

PROGRAM = "first_token"  # the one in programs/; "path/to/file.py:name" names one that lies elsewhere


@pytest.mark.programs(PROGRAM)
@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_the_value_comes_from_the_tokens_and_the_pattern_from_the_positions(truth, program, ablation):
    edges = set(truth(program, ablation).circuit.names())
    assert {"tok->a0.h0.v", "a0.h0->logits"} <= edges
    # The pattern is the same on every input: corrupting an input leaves it whole, removing positions does not.
    assert ({"pos->a0.h0.q", "pos->a0.h0.k"} <= edges) == (ablation == "zero")


def test_it_computes_what_it_says(compiled):
    program = compiled(PROGRAM)
    assert all(
        set(output) == {tokens[0]} for tokens, output in zip(program.domain.inputs, program.expected, strict=True)
    )


def test_edge_pruning_finds_its_circuit(recover):
    assessment = recover(PROGRAM, "resample", seed=1)
    assert assessment.found == assessment.reference
