"""Compilation: RASP, Tracr and PyTorch agree, and compiling again changes nothing."""

import logging
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from tracr.compiler import compiling
from tracr.rasp import rasp

from edgeprune.errors import UnsupportedProgram
from edgeprune.user_code import places_of
from tracr_bridge.compile import compile as compile_module
from tracr_bridge.compile.catalogue import catalogue
from tracr_bridge.compile.compile import compile_program
from tracr_bridge.compile.program import Program
from tracr_bridge.compile.verify import verify


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


def before():
    earlier = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == query - 1)
    return rasp.Aggregate(earlier, rasp.tokens).named("before")


def test_the_dataset_is_the_domain_with_bos_first_and_pad_on_the_right():
    compiled = compile_program(replace(program(before), vocab=("b", "a"), max_seq_len=3, min_seq_len=2))
    ids = compiled.assembled.input_encoder.encoding_map
    bos, pad = ids[compiling.COMPILER_BOS], ids[compiling.COMPILER_PAD]
    assert compiled.encode(("a", "b")) == [bos, ids["a"], ids["b"]]
    data, inputs = compiled.dataset, compiled.domain.inputs
    padded = [[bos, *(ids[token] for token in tokens), *[pad] * (3 - len(tokens))] for tokens in inputs]
    assert data.tokens.tolist() == padded
    assert data.group.tolist() == [0] * 4 + [1] * 8
    assert compiled.expected == tuple((None, *tokens[:-1]) for tokens in inputs)
    assert data.scored.tolist() == [[False, False, True, False]] * 4 + [[False, False, True, True]] * 8
    assert data.logits and compiled.categorical
    target = compiled.model(data.tokens).detach()
    assert torch.equal(data.target, target) and not data.target.requires_grad
    assert compiled.output_values[int(target[0, 2].argmax())] == inputs[0][0]


def test_the_outputs_of_a_numerical_program_are_no_logits():
    compiled = compile_program(program(lambda: rasp.numerical(rasp.Map(lambda x: 1 if x == "a" else 0, rasp.tokens))))
    assert not compiled.dataset.logits and not compiled.categorical
    assert compiled.output_values == ()


def test_the_domain_is_that_of_the_budget_and_the_seed():
    mine = program(before)
    assert compile_program(mine, budget=5, seed=3).domain == mine.domain(budget=5, seed=3)
    assert compile_program(mine, budget=5).domain == mine.domain(budget=5, seed=0) != mine.domain(budget=5, seed=1)


def test_each_of_a_few_inputs_and_a_share_of_many_are_searched_for_what_tracr_does_not_reproduce(monkeypatch):
    searched = list[tuple[str, ...]]()
    evaluate_all = Program.evaluate_all

    def noted(self, expressions, tokens):
        expressions = list(expressions)
        searched.extend([tokens] * (len(expressions) > 1))
        return evaluate_all(self, expressions, tokens)

    monkeypatch.setattr(Program, "evaluate_all", noted)
    compiled = compile_program(program(before))
    assert searched == list(compiled.domain.inputs)
    for most, step in ((7, 2), (6, 2), (5, 2), (4, 3), (14, 1), (1, 14)):
        monkeypatch.setattr(compile_module, "VALIDATED_INPUTS", most)
        searched.clear()
        compile_program(program(before))
        assert searched == list(compiled.domain.inputs)[::step]


def large(value):
    return lambda: rasp.numerical(rasp.Map(lambda x: value if x == "a" else 1, rasp.tokens)).named("large")


def large_for_none():
    """The width of a selector, which is never 0."""
    width = rasp.SelectorWidth(EQUAL)
    return rasp.numerical(rasp.Map(lambda n: 10**400 if n == 0 else n, width)).named("large")


AT_MOST = "numerical values are at most 1e+36, as Tracr computes in single precision"

REFUSED = [
    (large(1.1e36), "large: numerical values are at most 1e+36, as Tracr computes in single precision; got 1.1e+36"),
    (
        large(10**40),
        f"large: numerical values are at most 1e+36, as Tracr computes in single precision; got 1{'0' * 19}",
    ),
    (
        lambda: rasp.numerical(rasp.LinearSequenceMap(*[large_for_none()] * 2, 0.5, 1)).named("sum"),
        f"large: {AT_MOST}; got 1{'0' * 19}",  # that half of it is no float is not said as well
    ),
    (large("a"), "large: numerical values are real numbers; got 'a'"),
    (large(-2), "large: a Map of a categorical to a number below 0 is clipped at 0; got -2"),
    (
        lambda: rasp.numerical(rasp.Map(lambda n: n or None, rasp.SelectorWidth(EQUAL))).named("large"),
        "large: a numerical Map of a categorical gives a number for every value; got None",
    ),
    (
        lambda: rasp.numerical(rasp.Aggregate(EQUAL, rasp.numerical(large(5)()), default=0)).named("mean"),
        "mean: a numerical aggregate averages 0 and 1 only; got [5]",  # on the first input
    ),
    (
        lambda: rasp.tokens,
        "tokens: the output is an input, so that no layer computes it; put a Map around it",
    ),
    (
        lambda: rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, lambda k, q: k).named("same")),
        "same: its predicate gives something else than True or False",
    ),
]


@pytest.mark.parametrize(("build", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_refused_is_named_with_its_rule_and_its_value(build, message):
    with pytest.raises(UnsupportedProgram) as caught:
        compile_program(program(build))
    assert str(caught.value) == f"Tracr cannot compile mine: {message}"


@pytest.mark.parametrize("value", [1e36, 0, 10**36])
def test_the_largest_and_the_smallest_values_compile(value):
    assert not compile_program(program(large(value))).categorical


def test_a_value_below_0_of_anything_but_a_map_of_a_categorical_compiles():
    def build():
        share = rasp.numerical(rasp.Map(lambda x: 1 if x == "a" else 0, rasp.tokens))
        return rasp.numerical(rasp.LinearSequenceMap(share, share, -3, 1)).named("below")

    assert compile_program(program(build)).expected[0] == (-2,)


def test_a_number_for_what_no_input_gives_is_asked_for_and_one_below_0_is_none_there():
    def build(least):
        return rasp.numerical(rasp.Map(lambda n: least if n == 0 else n, rasp.SelectorWidth(EQUAL))).named("width")

    assert compile_program(program(lambda: build(-1))).expected[0] == (1,)  # no width is 0
    with pytest.raises(UnsupportedProgram, match="width: a numerical Map of a categorical gives a number for every"):
        compile_program(program(lambda: build(None)))


@pytest.mark.parametrize(("values", "compiles"), [((0, 1), True), ((0.5, 1), False), ((0, 2), False), ((1, 2), False)])
def test_a_numerical_aggregate_averages_0_and_1(values, compiles):
    def build():
        either = rasp.numerical(rasp.Map(lambda x: values[x == "b"], rasp.tokens))
        return rasp.numerical(rasp.Aggregate(EQUAL, either, default=0)).named("mean")

    if compiles:
        assert compile_program(program(build)).expected[0] == (0,)
    else:
        with pytest.raises(UnsupportedProgram, match="mean: a numerical aggregate averages 0 and 1 only; got "):
            compile_program(program(build))


@pytest.mark.parametrize("letters", ["abc", "abcdef"])
def test_a_head_is_as_wide_as_its_keys_with_one_more_where_they_are_more_than_its_queries(letters):
    def build():
        many = rasp.SequenceMap(lambda i, token: (i, token), rasp.indices, rasp.tokens)
        keys = rasp.Map(lambda i: i, rasp.indices)
        selector = rasp.Select(many, keys, lambda key, query: key[0] == query)
        wide = rasp.SequenceMap(lambda i, token: (i, token, i), rasp.indices, rasp.tokens)
        return rasp.Aggregate(selector, rasp.SequenceMap(lambda *both: both, wide, keys)).named("moved")

    mine = replace(program(build), vocab=tuple(letters), max_seq_len=2)
    room = 2 * len(letters) + 1
    with pytest.raises(UnsupportedProgram) as caught:
        compile_program(mine)
    assert f"moved: it moves more values than the {room} that a head holds" in str(caught.value)
    assert str(caught.value).endswith(f"got {4 * len(letters)} values")


def test_an_error_that_tracr_takes_for_a_value_that_never_occurs_is_ignored_and_no_other():
    def inverse(error):
        def divided(x, y):
            if x != y:
                raise error
            return 1 / x

        width = rasp.SelectorWidth(EQUAL)
        return rasp.SequenceMap(divided, width, width).named("inverse")

    with pytest.raises(UnsupportedProgram) as caught:  # 0 and 0 are equal
        compile_program(program(lambda: inverse(ZeroDivisionError("apart"))))
    assert str(caught.value).endswith("; got ZeroDivisionError: division by zero on (0, 0)")
    with pytest.raises(UnsupportedProgram, match=r"; got KeyError: 'apart' on \(0, 1\)|on \(0, 0\)"):
        compile_program(program(lambda: inverse(KeyError("apart"))))


def test_a_reason_comes_with_the_line_that_raised():
    with pytest.raises(UnsupportedProgram) as caught:
        compile_program(program(lambda: rasp.SequenceMap(lambda x, y: (x, y), inverse_of_a_length(), looked_up())))
    here = Path(__file__).name
    first, second = places_of(caught.value)
    assert here in first and first.endswith('return rasp.Map(lambda n: 1 / n, longer).named("inverse")')
    assert here in second and 'lambda n: {1: "x", 2: "y", 3: "z"}[n]' in second


def test_what_only_unequal_values_of_one_sequence_would_raise_compiles():
    def equal_alone(x, y):
        return x if x == y else 1 / 0

    def build():
        width = rasp.SelectorWidth(EQUAL)
        return rasp.SequenceMap(equal_alone, width, width).named("width")

    assert compile_program(program(build)).expected[2] == (2, 2)


def test_values_that_an_aggregate_cannot_average_are_listed_in_the_order_of_their_text():
    def build():
        values = rasp.numerical(rasp.Map(lambda i: (2, 10, 30)[i], rasp.indices))
        return rasp.numerical(rasp.Aggregate(EQUAL, values, default=0)).named("mean")

    with pytest.raises(UnsupportedProgram, match=r"averages 0 and 1 only; got \[10, 2, 30\]$"):
        compile_program(replace(program(build), min_seq_len=3))
