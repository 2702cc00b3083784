"""Compilation: RASP, Tracr and PyTorch agree, and compiling again changes nothing."""

import logging

import jax
import numpy as np
import pytest
import torch
from tracr.compiler import compiling
from tracr.rasp import rasp

from edgeprune.errors import UnsupportedProgram
from tracr_bridge.catalogue import catalogue
from tracr_bridge.compile import compile_program
from tracr_bridge.program import Program
from tracr_bridge.verify import verify


def program(build) -> Program:
    return Program("mine", "", build, ("a", "b"), 3)


def count(token):
    return rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, lambda k, q: k == token)).named(f"count_{token}")


def length():
    return rasp.SelectorWidth(rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE)).named("length")


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


@pytest.mark.parametrize("name", ["reverse", "sort_freq"])
def test_compiling_again_gives_the_same_function_and_edges(compiled, name):
    first, second = compiled(name), compile_program(catalogue()[name])
    assert first.model.graph == second.model.graph
    assert first.model.structural == second.model.structural
    assert first.output_values == second.output_values
    torch.testing.assert_close(first.dataset.target, second.dataset.target, atol=1e-4, rtol=0)


def ratio_of_counts_to_length():
    return rasp.SequenceMap(lambda n, m: n / m, count("a"), length()).named("ratio")


def inverse_of_a_length():
    longer = rasp.SequenceMap(lambda n, token: n + (token == "a"), length(), rasp.tokens)
    return rasp.Map(lambda n: 1 / n, longer).named("inverse")


def inverse_as_a_number():
    longer = rasp.SequenceMap(lambda n, token: n + (token == "a"), length(), rasp.tokens)
    return rasp.numerical(rasp.Map(lambda n: 1 / n, longer)).named("inverse")


def predicate_on_values_that_never_meet():
    selector = rasp.Select(count("a"), length(), lambda k, q: k % q == 0).named("divides")
    return rasp.SelectorWidth(selector)


def looked_up():
    return rasp.Map(lambda n: {1: "x", 2: "y", 3: "z"}[n], rasp.SelectorWidth(EQUAL)).named("name")


EQUAL = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)

TABULATED = [
    (ratio_of_counts_to_length, "ratio", "ZeroDivisionError: division by zero on (0, 0)"),
    (inverse_of_a_length, "inverse", "ZeroDivisionError: division by zero on (0)"),
    (inverse_as_a_number, "inverse", "ZeroDivisionError: division by zero on (0)"),
    (predicate_on_values_that_never_meet, "divides", "ZeroDivisionError: integer modulo by zero on (0, 0)"),
    (looked_up, "name", "KeyError: 0 on (0)"),
]


@pytest.mark.parametrize(("build", "name", "got"), TABULATED, ids=[t[0].__name__ for t in TABULATED])
def test_a_lambda_that_raises_on_values_that_never_occur_is_named_once_with_the_remedy(build, name, got, caplog):
    with pytest.raises(UnsupportedProgram) as caught:
        compile_program(program(build))
    message = str(caught.value)
    assert f"{name}: its lambda raises on values that Tracr tabulates" in message
    assert "lambda x, y: x / y if y else 0" in message
    assert message.endswith(f"got {got}")
    assert message.count("its lambda raises") == 1
    assert not caplog.records


def test_all_lambdas_that_raise_are_reported_together():
    def build():
        fst, snd = inverse_of_a_length(), looked_up()
        return rasp.SequenceMap(lambda x, y: (x, y), fst, snd)

    with pytest.raises(UnsupportedProgram, match=r"inverse: its lambda raises.*; name: its lambda raises"):
        compile_program(program(build))


@pytest.mark.parametrize("value", ["0", "None"])
def test_the_remedy_for_a_lambda_that_raises_helps(value):
    otherwise = {"0": 0, "None": None}[value]

    def build():
        return rasp.SequenceMap(lambda n, m: n / m if m else otherwise, count("a"), length()).named("ratio")

    assert verify(compile_program(program(build))).equal


def test_an_arithmetic_error_that_tracr_ignores_is_neither_an_error_nor_a_warning(caplog):
    def build():
        return rasp.numerical(rasp.Map(lambda n: 1 / n, rasp.numerical(rasp.SelectorWidth(EQUAL)).named("width")))

    handlers, filters = list(logging.getLogger().handlers), list(logging.getLogger().filters)
    assert verify(compile_program(program(build))).equal
    assert not caplog.records
    assert (logging.getLogger().handlers, logging.getLogger().filters) == (handlers, filters)


def pairs():
    return rasp.SequenceMap(lambda i, token: (i, token), rasp.indices, rasp.tokens).named("pairs")


def test_an_aggregate_of_more_values_than_a_head_holds_is_a_limit_of_tracr():
    def build():
        same = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.EQ)
        return rasp.Aggregate(same, pairs()).named("moved")

    with pytest.raises(UnsupportedProgram) as caught:
        compile_program(program(build))
    message = str(caught.value)
    assert "moved: it moves more values than the 5 that a head holds, a limit of Tracr" in message
    assert "aggregate sequences of fewer values one by one" in message
    assert message.endswith("got 6 values")
    assert "broadcast" not in message


def test_the_remedies_for_an_aggregate_of_too_many_values_help():
    def apart():
        same = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.EQ)
        moved = (rasp.Aggregate(same, part) for part in (rasp.indices, rasp.tokens))
        return rasp.SequenceMap(lambda i, token: (i, token), *moved)

    def by_more_keys():
        same = rasp.Select(pairs(), pairs(), rasp.Comparison.EQ)
        return rasp.Aggregate(same, pairs())

    assert verify(compile_program(program(apart))).equal
    assert verify(compile_program(program(by_more_keys))).equal


def test_a_reason_that_every_input_shows_is_given_once():
    def build():
        tens = rasp.numerical(rasp.Map(lambda x: 5 if x == "a" else 7, rasp.tokens)).named("tens")
        everywhere = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE)
        return rasp.numerical(rasp.Aggregate(everywhere, tens, default=0)).named("mean")

    with pytest.raises(UnsupportedProgram) as caught:
        compile_program(program(build))
    assert str(caught.value).count("mean:") == 1


def test_every_unnamed_expression_is_searched_for_faults():
    def build():
        unsupported = rasp.Aggregate(EQUAL, rasp.indices, default=1)
        return rasp.SequenceMap(lambda x, y: (x, y), unsupported, rasp.Aggregate(EQUAL, rasp.length))

    with pytest.raises(UnsupportedProgram) as caught:
        compile_program(program(build))
    assert "aggregate: Categorical aggregate only supports None as default value." in str(caught.value)
    assert "length: rasp.length is not compiled" in str(caught.value)


@pytest.mark.parametrize("value", [1e37, 10**400, float("inf"), float("nan")], ids=["1e37", "10**400", "inf", "nan"])
def test_numbers_beyond_single_precision_are_refused(value):
    def build():
        large = rasp.numerical(rasp.Map(lambda x: value if x == "a" else 1, rasp.tokens)).named("large")
        return rasp.Map(lambda x: x > 1 or (x == 1 and "one"), large, simplify=False)

    with pytest.raises(UnsupportedProgram, match="large: numerical values are "):
        compile_program(program(build))


def test_large_values_of_any_kind_but_numerical_compile():
    for large in (10**400, float("inf")):
        chosen = rasp.Map(lambda x, large=large: large if x == "a" else 1, rasp.tokens)
        moved = rasp.Aggregate(rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.EQ), chosen)
        assert verify(compile_program(program(lambda moved=moved: rasp.Map(lambda x: x > 1, moved)))).equal


def test_factors_beyond_single_precision_are_refused():
    def build():
        numbers = (rasp.numerical(rasp.Map(lambda x, t=t: x == t, rasp.tokens)).named(f"is_{t}") for t in "ab")
        return rasp.numerical(rasp.LinearSequenceMap(*numbers, 1e39, 1)).named("sum")

    with pytest.raises(UnsupportedProgram, match=r"sum: numerical values are at most 1e\+36"):
        compile_program(program(build))


@pytest.mark.parametrize("otherwise", [None, "", []])
def test_a_predicate_that_gives_no_number_is_named(otherwise):
    def build():
        same = rasp.Select(rasp.tokens, rasp.tokens, lambda k, q: True if k == q else otherwise).named("same")
        return rasp.SelectorWidth(same)

    with pytest.raises(UnsupportedProgram, match="same: its predicate gives something else than True or False"):
        compile_program(program(build))


@pytest.mark.parametrize(("least", "refused"), [(-1, True), (-0.5, True), (0, False)])
def test_a_map_to_a_number_just_below_0_is_refused_with_its_reason(least, refused):
    def build():
        return rasp.numerical(rasp.Map(lambda token: least if token == "a" else 1, rasp.tokens)).named("signs")

    if refused:
        with pytest.raises(UnsupportedProgram, match=rf"signs: a Map of .* below 0 is clipped at 0; got {least}"):
            compile_program(program(build))
    else:
        assert verify(compile_program(program(build))).equal
