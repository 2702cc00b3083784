"""Compilation: RASP, Tracr and PyTorch agree, and compiling again changes nothing."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from tracr.compiler import compiling

from tracr_bridge.catalogue import catalogue
from tracr_bridge.compile import compile_program
from tracr_bridge.verify import verify

VERIFIED = ["reverse", "xproportion", "shuffle_dyck1"]


@pytest.mark.parametrize("name", VERIFIED)
def test_rasp_tracr_and_pytorch_agree_layer_by_layer_on_the_whole_domain(compiled, name):
    found = verify(compiled(name))
    assert found.mismatches == ()
    assert found.equal
    assert found.exhaustive
    assert found.max_abs_diff <= 1e-4


@pytest.mark.parametrize("name", ["hist", "xproportion"])
def test_weights_are_those_of_tracrs_own_compiler(compiled, name):
    program = catalogue()[name]
    plain = compiling.compile_rasp_to_model(
        program.expression(), vocab=set(program.vocab), max_seq_len=program.max_seq_len, causal=program.causal,
        compiler_bos=compiling.COMPILER_BOS, compiler_pad=compiling.COMPILER_PAD,
    )  # fmt: skip
    ours = compiled(name).assembled
    assert ours.residual_labels == plain.residual_labels
    assert jax.tree.all(jax.tree.map(np.array_equal, ours.params, plain.params))


@pytest.mark.parametrize("name", ["hist", "xproportion"])
def test_what_is_verified_is_what_tracrs_own_call_returns(compiled, name):
    program = compiled(name)
    for row in (0, len(program.domain.inputs) // 2, -1):
        decoded = program.assembled.apply([compiling.COMPILER_BOS, *program.domain.inputs[row]]).decoded[1:]
        expected = torch.tensor(program.expected[row]).float()
        torch.testing.assert_close(torch.tensor(decoded).float(), expected, atol=1e-2, rtol=0)


def test_a_wrong_weight_is_noticed(compiled):
    program = compiled("reverse")
    spoiled = compile_program(program.program)
    spoiled.model._token += 0.01
    found = verify(spoiled)
    assert not found.equal
    assert "layers differ" in found.mismatches[-1]


def test_what_is_not_a_number_is_noticed(compiled):
    spoiled = compile_program(compiled("reverse").program)
    spoiled.model._token[:] = float("nan")
    found = verify(spoiled)
    assert not found.equal
    assert found.max_abs_diff == float("inf")


def test_a_wrong_output_is_noticed(compiled):
    program = compiled("xproportion")
    dataset = replace(program.dataset, target=program.dataset.target + 0.5)
    found = verify(replace(program, dataset=dataset))
    assert not found.equal
    assert "position 0: RASP False, PyTorch 0.5" in found.mismatches[0]


def test_a_domain_beyond_the_budget_is_verified_on_a_sample_that_is_said_to_be_one():
    found = verify(compile_program(catalogue()["xproportion"], budget=20))
    assert (found.inputs, found.exhaustive, found.equal) == (20, False, True)


@pytest.mark.parametrize("name", ["reverse", "sort_freq"])
def test_compiling_again_gives_the_same_function_and_edges(compiled, name):
    first, second = compiled(name), compile_program(catalogue()[name])
    assert first.model.graph == second.model.graph
    assert first.model.structural == second.model.structural
    assert first.output_values == second.output_values
    torch.testing.assert_close(first.dataset.target, second.dataset.target, atol=1e-4, rtol=0)
