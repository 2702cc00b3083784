"""Programs: their domains, and every unusable declaration."""

import itertools
import sys
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tracr.rasp import rasp

from edgeprune.errors import (
    DegenerateProgram,
    EdgePruneError,
    InterpreterError,
    InvalidProgram,
    ProgramFileError,
    UnknownProgram,
    UnsupportedProgram,
)
from edgeprune.user_code import places_of
from tracr_bridge.compile import program as program_module
from tracr_bridge.compile.catalogue import catalogue, load_file, load_program
from tracr_bridge.compile.compile import compile_program
from tracr_bridge.compile.program import Program, expressions_of, function_of, is_finite, is_hashable, rasp_program
from tracr_bridge.compile.verify import verify

REQUIRED = {
    *("reverse", "xproportion", "length", "hist", "sort", "sort_unique", "sort_freq", "pair_balance"),
    *("shuffle_dyck1", "shuffle_dyck2", "count", "count_less_freq", "shift_by", "detect_pattern"),
    *("nary_sequencemap", "induction"),
}


def program(build=lambda: rasp.tokens, **changes) -> Program:
    return replace(Program("mine", "", build, ("a", "b"), 3), **changes)


def numbers():
    return rasp.numerical(rasp.Map(lambda x: 1 if x == "a" else 0, rasp.tokens))


def test_the_catalogue_has_every_program_and_each_says_what_it_computes():
    programs = catalogue()
    assert programs.keys() >= REQUIRED
    assert all(p.doc.endswith(".") for p in programs.values())


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_shipped_domains_are_run_exhaustively(name, compiled):
    assert compiled(name).domain.exhaustive


def test_a_domain_is_listed_by_length_then_in_the_vocabularys_order():
    domain = program(vocab=("b", "a"), max_seq_len=2).domain(budget=100, seed=0)
    assert domain.exhaustive
    assert domain.inputs == (("b",), ("a",), ("b", "b"), ("b", "a"), ("a", "b"), ("a", "a"))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(5, 200), st.integers(0, 5))
def test_a_domain_is_all_valid_sequences_or_a_sample_of_as_many_as_the_budget(shortest, more, budget, seed):
    def valid(tokens):
        return tokens[0] == "a"

    mine = program(min_seq_len=shortest, max_seq_len=shortest + more, valid=valid)
    every = [
        tokens
        for length in range(shortest, shortest + more + 1)
        for tokens in itertools.product("ab", repeat=length)
        if valid(tokens)
    ]
    domain = mine.domain(budget=budget, seed=seed)
    assert domain.exhaustive == (len(every) <= budget)
    assert len(domain.inputs) == min(budget, len(every)) == len(set(domain.inputs))
    assert set(domain.inputs) <= set(every)
    assert {len(tokens) for tokens in domain.inputs} == set(range(shortest, shortest + more + 1))
    assert domain == mine.domain(budget=budget, seed=seed)


def test_a_domain_too_large_to_list_is_drawn_from():
    domain = program(vocab=tuple("abcdefgh"), max_seq_len=9, valid=lambda t: t[0] != "a").domain(budget=90, seed=1)
    assert not domain.exhaustive
    assert len(set(domain.inputs)) == len(domain.inputs) > 80
    assert all(tokens[0] != "a" for tokens in domain.inputs)


@pytest.mark.parametrize(
    ("budget", "of_each_length"),
    [(95, [8, *[10] * 8]), (3, [1] * 9), (9 * 70, [8, 64, *[70] * 7])],
    ids=["a share each", "one each at the least", "no more than there are"],
)
def test_a_drawn_sample_has_as_many_of_each_length_in_the_vocabularys_order(budget, of_each_length):
    mine = program(vocab=tuple("hgfedcba"), max_seq_len=9)
    drawn = mine.domain(budget=budget, seed=1)
    assert [len(list(same)) for _, same in itertools.groupby(drawn.inputs, key=len)] == of_each_length
    ranks = [(len(tokens), list(map(mine.vocab.index, tokens))) for tokens in drawn.inputs]
    assert ranks == sorted(ranks)
    assert drawn == mine.domain(budget=budget, seed=1)
    assert drawn != mine.domain(budget=budget, seed=2)


def test_a_drawn_sample_has_no_shorter_inputs_than_the_program():
    drawn = program(vocab=tuple("abcdefgh"), min_seq_len=3, max_seq_len=9).domain(budget=70, seed=0)
    assert [len(tokens) for tokens in drawn.inputs] == [length for length in range(3, 10) for _ in range(10)]


def test_what_a_declaration_leaves_out():
    @rasp_program(vocab=["b", "a"], max_seq_len=2)
    def mine() -> rasp.SOp:
        """Says
        what it does.

        And more.
        """
        return rasp.tokens

    assert mine == Program("mine", "Says what it does.", mine.build, ("b", "a"), 2, causal=False, valid=None)
    assert mine.min_seq_len == 1
    unnamed = rasp_program(vocab="ab", max_seq_len=2)(partial(rasp.Map, str, rasp.tokens))
    assert unnamed.name == "program"
    assert rasp_program(vocab="ab", max_seq_len=2)(lambda: rasp.tokens).doc == ""


def test_what_a_declaration_states():
    def valid(tokens):
        return tokens[0] == "a"

    mine = rasp_program(vocab="ab", max_seq_len=3, causal=True, valid=valid, min_seq_len=2)(lambda: rasp.tokens)
    assert (mine.vocab, mine.max_seq_len, mine.causal, mine.valid, mine.min_seq_len) == (("a", "b"), 3, True, valid, 2)


def test_a_set_of_tokens_of_several_types_is_put_in_order_and_refused_by_the_check():
    mine = rasp_program(vocab={"b", "a", 1}, max_seq_len=2)(lambda: rasp.tokens)
    assert mine.vocab == ("a", "b", 1)
    with pytest.raises(InvalidProgram, match="mixes types"):
        mine.check()


@pytest.mark.parametrize(("longest", "listed"), [(6, True), (7, False)])
def test_a_domain_is_listed_as_long_as_no_more_than_a_million_sequences_are_tried(longest, listed, monkeypatch):
    monkeypatch.setattr(program_module, "_SEARCHED", 2**7 - 2)
    tried = list[tuple[str, ...]]()

    def valid(tokens):
        tried.append(tokens)
        return len(tokens) == 1

    mine = program(max_seq_len=longest, valid=valid)
    assert mine.domain(budget=2, seed=0).exhaustive is listed
    if listed:
        assert len(tried) == len(set(tried)) == 2**7 - 2


@pytest.mark.parametrize(("longest", "tried"), [(6, "every sequence"), (7, "each of the 126 sequences drawn")])
def test_an_empty_domain_says_what_was_tried(longest, tried, monkeypatch):
    monkeypatch.setattr(program_module, "_SEARCHED", 2**7 - 2)
    with pytest.raises(InvalidProgram) as caught:
        program(max_seq_len=longest, valid=lambda tokens: False).domain(budget=9, seed=0)
    assert str(caught.value) == (
        f"mine cannot be used: its domain is empty, as `valid` is false for {tried} of 1 to {longest} tokens; widen "
        "it, or take a smaller vocab or max_seq_len"
    )


@pytest.mark.parametrize(("budget", "exhaustive"), [(6, True), (7, True), (5, False)])
def test_a_domain_of_as_many_inputs_as_the_budget_is_exhaustive(budget, exhaustive):
    domain = program(max_seq_len=2).domain(budget=budget, seed=0)
    assert domain.exhaustive is exhaustive and len(domain.inputs) == min(budget, 6)


def test_each_expression_is_evaluated_once_an_input():
    calls = list[str]()
    shared = rasp.Map(lambda token: calls.append(token) or token, rasp.tokens)
    both = rasp.SequenceMap(lambda x, y: x + y, shared, rasp.SequenceMap(lambda x, y: x + y, shared, shared))
    assert program(lambda: both).evaluate(("a", "b")) == ["aaa", "bbb"]
    assert calls == ["a", "b"]


@pytest.mark.parametrize(("causal", "widths"), [(False, [3, 3, 3]), (True, [1, 2, 3])])
def test_a_causal_program_sees_earlier_positions_only(causal, widths):
    def build():
        return rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE))

    assert program(build, causal=causal).evaluate(("a", "b", "a")) == widths


INVALID = [
    ({"vocab": ()}, "vocab is empty"),
    ({"vocab": ("a", "a")}, "names a token twice"),
    ({"vocab": (["a"], ["b"])}, "vocab holds what cannot be hashed"),
    ({"vocab": ((["a"],), (["b"],))}, "vocab holds what cannot be hashed"),
    ({"vocab": ("a", 1)}, "mixes types"),
    ({"vocab": ("a", "compiler_bos")}, "'compiler_bos', which the compiler keeps for BOS"),
    ({"vocab": ("a", "compiler_pad")}, "'compiler_pad', which the compiler keeps for PAD"),
    ({"max_seq_len": 0}, "max_seq_len is 0; it is at least 1"),
    ({"min_seq_len": 0}, "min_seq_len is 0; it is from 1 to max_seq_len, 3"),
    ({"min_seq_len": "2"}, "min_seq_len is '2'; it is a whole number"),
    ({"min_seq_len": 4}, "min_seq_len is 4; it is from 1 to max_seq_len, 3"),
    *(({"max_seq_len": odd}, f"max_seq_len is {odd!r}; it is a whole number") for odd in (True, np.True_, 3.0, "3")),
    ({"build": lambda: 3}, "it returns int; a program returns a rasp.SOp"),
    ({"build": lambda: rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)}, "it returns Select"),
    ({"build": lambda: 1 / 0}, "building it raises ZeroDivisionError"),
    (
        {"build": lambda: rasp.indices},
        "used: it never reads rasp.tokens, so that its output cannot depend on the input's tokens",
    ),
    ({"valid": lambda tokens: False}, "its domain is empty"),
    ({"valid": lambda tokens: 1 / 0}, "`valid` raises ZeroDivisionError"),
]


@pytest.mark.parametrize(("changes", "message"), INVALID, ids=[message for _, message in INVALID])
def test_an_invalid_program_is_refused(changes, message):
    odd = {name: value for name, value in changes.items() if "seq_len" in name}
    mine = program(**{name: value for name, value in changes.items() if name not in odd})
    for name, value in odd.items():  # of a type that may not be handed over where types are checked
        object.__setattr__(mine, name, value)
    with pytest.raises(InvalidProgram, match="mine cannot be used") as caught:
        compile_program(mine)
    assert message in str(caught.value)


def test_an_error_says_where_the_program_is_declared_or_raises():
    def takes_one(token):
        return token

    def raises():
        return rasp.tokens + raising("here")

    for build, message, line in (
        (takes_one, "building it raises TypeError", "def takes_one(token):"),
        (raises, "building it raises ValueError: here", "raise ValueError(text)"),
        (number, "it returns int", "def number():"),
        (positions, "it never reads rasp.tokens", "def positions():"),
    ):
        with pytest.raises(InvalidProgram, match=message) as caught:
            program(build).check()
        (place,) = places_of(caught.value)
        assert Path(__file__).name in place and place.endswith(f": {line}")
    with pytest.raises(
        InvalidProgram, match=r"^mine cannot be used: vocab is empty; name at least two tokens$"
    ) as caught:
        program(vocab=()).check()
    assert places_of(caught.value) == ()


def odd_only(tokens):
    return tokens[1]


def test_an_error_of_the_interpreter_or_of_valid_says_where_it_comes_from():
    def inverse(token, other):
        return 1 / (token == other)

    for build, line in (
        (lambda: rasp.SequenceMap(inverse, rasp.tokens, rasp.Map(lambda x: "a", rasp.tokens)), "return 1 / (token =="),
        (lambda: rasp.Map(takes_two, rasp.tokens), "def takes_two(one, two):"),
    ):
        with pytest.raises(InterpreterError) as caught:
            program(build).evaluate(("a", "b"))
        assert len(places_of(caught.value)) == 1 and f": {line}" in places_of(caught.value)[0]
    for valid, line in ((odd_only, "return tokens[1]"), (takes_two, "def takes_two(one, two):")):
        with pytest.raises(InvalidProgram, match="mine cannot be used: `valid` raises ") as caught:
            program(valid=valid).domain(budget=9, seed=0)
        assert len(places_of(caught.value)) == 1 and f": {line}" in places_of(caught.value)[0]


def test_an_error_of_what_tracr_made_is_placed_where_the_program_is_declared():
    def adds():
        return rasp.tokens + 1

    with pytest.raises(InterpreterError) as caught:
        program(adds).evaluate(("a",))
    assert "def adds():" in places_of(caught.value)[0]


def takes_two(one, two):
    return one == two


def number():
    return 3


def positions():
    return rasp.indices


@pytest.mark.parametrize(("shortest", "longest"), [(1, 1), (3, 3), (1, 3)])
def test_the_shortest_input_may_be_the_longest(shortest, longest):
    program(min_seq_len=shortest, max_seq_len=longest).check()


def test_each_expression_is_walked_once_however_many_read_it():
    shared = rasp.Map(lambda x: x, rasp.tokens)
    output = rasp.SequenceMap(lambda x, y: (x, y), shared, rasp.SequenceMap(lambda x, y: x, shared, rasp.tokens))
    walked = list(expressions_of(output))
    assert walked[0] is output and len({*map(id, walked)}) == len(walked) == 4


def test_all_faults_of_a_declaration_are_reported_together():
    with pytest.raises(InvalidProgram) as caught:
        program(vocab=("compiler_bos", 1, 1), max_seq_len=0, build=lambda: None).check()
    assert str(caught.value) == (
        "mine cannot be used: vocab names a token twice: ['compiler_bos', 1, 1]; vocab mixes types: "
        "['compiler_bos', 1, 1]; tokens are all of one type; vocab holds 'compiler_bos', which the compiler keeps for "
        "BOS; max_seq_len is 0; it is at least 1; it returns NoneType; a program returns a rasp.SOp"
    )


def test_all_unsupported_expressions_are_named_together():
    def build():
        fst = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
        snd = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.EQ)
        both = rasp.SelectorAnd(fst, snd).named("both")
        return (rasp.SelectorWidth(both).named("width") + rasp.length.named("full_length")).named("sum")

    with pytest.raises(UnsupportedProgram, match="Tracr cannot compile mine") as caught:
        compile_program(program(build))
    assert "both: composite selectors" in str(caught.value)
    assert "full_length: rasp.length" in str(caught.value)


UNSUPPORTED = [
    (
        lambda: rasp.Aggregate(
            rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ), rasp.indices, default=1
        ).named("moved"),
        "moved: Categorical aggregate only supports None as default value.",
    ),
    (
        lambda: rasp.Aggregate(
            rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE),
            rasp.Map(lambda x: 1 if x == "a" else 0, rasp.tokens),
        ).named("average"),
        "average: a categorical aggregate cannot average",
    ),
    (
        lambda: rasp.numerical(
            rasp.Aggregate(
                rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE),
                rasp.numerical(rasp.Map(lambda x: 5 if x == "a" else 0, rasp.tokens)),
                default=0,
            )
        ).named("big"),
        "averages 0 and 1 only",
    ),
    (
        lambda: rasp.numerical(rasp.Map(lambda x: -2 if x == "a" else 1, rasp.tokens)).named("negative"),
        "negative: a Map of a categorical to a number below 0 is clipped at 0; got -2",
    ),
    (lambda: rasp.SequenceMap(lambda x, y: x, numbers(), rasp.tokens).named("mixed"), "mixed: (Non-linear)"),
    (
        lambda: rasp.numerical(rasp.Map(lambda x: x, rasp.tokens)).named("letters"),
        "letters: numerical values are real numbers; got 'a'",
    ),
    (
        lambda: rasp.Map(
            lambda x: x == ["a"],
            rasp.Aggregate(
                rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.EQ),
                rasp.Map(lambda x: [x], rasp.tokens).named("lists"),
            ),
        ),
        "lists: values are such as can be hashed; got ['a']",
    ),
]


@pytest.mark.parametrize(("build", "message"), UNSUPPORTED, ids=[message for _, message in UNSUPPORTED])
def test_what_tracr_cannot_compile_is_refused(build, message):
    with pytest.raises(UnsupportedProgram) as caught:
        compile_program(program(build))
    assert message in str(caught.value)


def test_a_categorical_aggregate_that_is_wide_only_without_its_causal_mask_compiles():
    def build():
        everywhere = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == 0)
        return rasp.Aggregate(everywhere, rasp.tokens).named("first")

    assert compile_program(program(build, causal=True)).categorical


def test_an_interpreter_that_raises_is_reported_with_its_expression_its_input_and_the_remedy():
    def build():
        inverse = rasp.Map(lambda x: 1 / (x == "a"), rasp.tokens).named("inverse")
        return rasp.SequenceMap(lambda x, y: (x, y), inverse, rasp.indices).named("outer")

    with pytest.raises(InterpreterError) as caught:
        compile_program(program(build))
    assert str(caught.value) == (
        "RASP's interpreter raises in inverse of mine, on input ['b']: ZeroDivisionError: division by zero; guard its "
        "lambda, as in `lambda x, y: x / y if y else 0`, or narrow the domain with `valid`"
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("comparison", list(rasp.Comparison))
def test_a_comparison_of_values_that_may_be_none_is_mended_by_the_lambda_that_the_message_gives(comparison, causal):
    def build(predicate):
        position = rasp.Map(lambda i: i, rasp.indices)
        shifted = rasp.Aggregate(rasp.Select(rasp.indices, rasp.indices, lambda k, q: q == k + 1), position)
        chosen = rasp.SequenceMap(lambda i, x: i if x == "a" else 0, rasp.indices, rasp.tokens)
        return rasp.SelectorWidth(rasp.Select(shifted.named("before"), chosen, predicate).named("compared"))

    with pytest.raises(InterpreterError) as caught:
        compile_program(program(lambda: build(comparison), causal=causal))
    message = str(caught.value)
    assert "raises in compared of mine, on input ['a']: ValueError: key is None!; before is None at some" in message
    assert "`valid`" not in message
    text = message.split("`")[1]
    assert text.startswith("lambda key, query: None not in (key, query) and ")
    try:
        assert verify(compile_program(program(lambda: build(eval(text)), causal=causal))).equal
    except DegenerateProgram:  # every pair, say, or none
        assert comparison.value in ("False", "True")


def test_a_lambda_that_compares_none_gets_the_same_remedy():
    def build():
        shifted = rasp.Aggregate(rasp.Select(rasp.indices, rasp.indices, lambda k, q: q == k + 1), rasp.tokens)
        return rasp.SelectorWidth(rasp.Select(rasp.tokens, shifted.named("before"), lambda k, q: k < q).named("less"))

    message = r"less of mine, on input \['a'\]: TypeError: .* before is None .* `lambda key, query: None not in"
    with pytest.raises(InterpreterError, match=message):
        compile_program(program(build))


def moved(by):
    """The token so many positions before; None where there is none."""
    selector = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == query - by)
    return rasp.Aggregate(selector, rasp.tokens).named(f"moved_{by}")


REMEDIES = [
    (
        lambda: rasp.Select(moved(1), moved(2), lambda key, query: key < query),
        "moved_1 and moved_2 is None at some positions: give mine a lambda that is False for None, as in "
        "`lambda key, query: None not in (key, query) and ...`",
    ),
    (
        lambda: rasp.Select(*[moved(1)] * 2, rasp.Comparison.LT),
        "moved_1 is None at some positions: give mine a lambda that is False for None, as in "
        "`lambda key, query: None not in (key, query) and key < query`",
    ),
    (
        lambda: rasp.Select(moved(1), rasp.tokens, rasp.Comparison.TRUE),
        "moved_1 is None at some positions: give mine a lambda that is False for None, as in "
        "`lambda key, query: None not in (key, query) and True`",
    ),
    (
        lambda: rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: raising("odd")),
        "mend its lambda, or narrow the domain with `valid`",
    ),
    (
        lambda: rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: 1 / 0),
        "guard its lambda, as in `lambda x, y: x / y if y else 0`, or narrow the domain with `valid`",
    ),
]


@pytest.mark.parametrize(("select", "remedy"), REMEDIES, ids=[remedy for _, remedy in REMEDIES])
def test_the_remedy_is_that_of_what_is_wrong(select, remedy):
    with pytest.raises(InterpreterError) as caught:
        program(lambda: rasp.SelectorWidth(select().named("mine"))).evaluate(("a", "b"))
    assert str(caught.value).endswith(f"; {remedy}")


def test_the_remedy_for_an_aggregate_of_what_has_no_mean_is_that_of_aggregates():
    def build():
        return rasp.Aggregate(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE), rasp.tokens)

    with pytest.raises(InterpreterError, match=r"; let its selector select one position, or aggregate numbers$"):
        program(build).evaluate(("a", "b"))


@pytest.mark.fakes
def test_an_error_beyond_any_expression_is_one_of_the_output():
    with pytest.raises(InterpreterError, match="raises in its output of mine, on input "):
        program(lambda: rasp.Map(lambda x: x, rasp.tokens)).evaluate_all([None], ("a",))  # pyright: ignore


def test_the_function_of_an_expression_is_what_its_author_gave_it():
    def own(*values):
        return True

    assert function_of(rasp.Map(own, rasp.tokens)) is own
    assert function_of(rasp.SequenceMap(own, rasp.tokens, rasp.indices)) is own
    assert function_of(rasp.Select(rasp.tokens, rasp.tokens, own)) is own
    assert function_of(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)) is None
    assert function_of(rasp.indices + 1) is None
    assert function_of(rasp.tokens) is None
    assert function_of(None) is None


@pytest.mark.parametrize("value", [0, -1.5, True, 10**400, -(10**400), np.float32(3), Fraction(1, 3), "inf", None, 1j])
def test_whatever_is_no_infinite_number_is_finite(value):
    assert is_finite(value)


@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("of_type", [float, np.float32])
def test_what_is_infinite_or_no_number_is_not_finite(number, of_type):
    assert not is_finite(of_type(number))


def test_what_cannot_be_hashed_or_holds_such_is_not_hashable():
    assert is_hashable(("a", (1, None)))
    assert not is_hashable(["a"])
    assert not is_hashable(("a", ["b"]))


RAISING = [
    (lambda: rasp.Map(lambda x: {"a": 1}[x], rasp.tokens), "KeyError: 'b'; mend its lambda, or narrow the domain"),
    (lambda: rasp.Aggregate(rasp.Select(rasp.tokens, rasp.tokens, lambda k, q: True), rasp.tokens), "select one"),
    (lambda: rasp.Map(lambda x: sys.exit("gone"), rasp.tokens), "SystemExit: gone"),
    (lambda: rasp.Map(lambda x: raising("one\ntwo"), rasp.tokens), "ValueError: one two; "),
    (lambda: rasp.Map(lambda x: Unhashable(), rasp.tokens), "values that are hashable"),
    (lambda: rasp.Map(lambda x: np.float32("nan"), rasp.tokens), "where they are numbers, finite"),
    (lambda: rasp.Map(Silent().throw, rasp.tokens), "Silent; mend"),
    (lambda: raising("one\ntwo"), "building it raises ValueError: one two"),
]


class Silent(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    def throw(self, value):
        raise self


class Unhashable:
    def __hash__(self):
        raise RuntimeError("no hash")


def raising(text):
    raise ValueError(text)


@pytest.mark.parametrize(("build", "message"), RAISING, ids=[message for _, message in RAISING])
def test_whatever_a_program_raises_is_one_line(build, message):
    with pytest.raises(EdgePruneError) as caught:
        compile_program(program(build))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_raises_or_exits_on_tabulated_values_alone_is_one_line():
    def build():
        width = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ))
        return rasp.Map(lambda n: n if n else sys.exit("one\ntwo"), width).named("positive")

    with pytest.raises(UnsupportedProgram, match=r"positive: .* got SystemExit: one two on \(0\)$"):
        compile_program(program(build))


@pytest.mark.parametrize("whole", [np.int64(2), np.uint8(2), np.array(2)])
def test_a_length_is_a_whole_number_of_any_type(whole):
    declared = rasp_program(vocab="ab", max_seq_len=whole, min_seq_len=whole)(lambda: rasp.tokens)
    assert (type(declared.max_seq_len), type(declared.min_seq_len)) == (int, int)
    mine = program(max_seq_len=2, min_seq_len=2)
    assert replace(declared, name="mine", build=mine.build) == mine
    assert len(declared.domain(budget=100, seed=0).inputs) == 4


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: rasp.Map(lambda x: 7, rasp.tokens), "always 7 on all 14 inputs"),
        (
            lambda: rasp.Aggregate(rasp.Select(rasp.tokens, rasp.tokens, lambda k, q: False), rasp.tokens),
            "undefined at every position",
        ),
    ],
)
def test_a_program_on_which_nothing_could_fail_is_refused(build, message):
    with pytest.raises(DegenerateProgram, match=message) as caught:
        compile_program(program(build))
    assert str(caught.value).endswith(
        ", so nothing could fail on it: widen vocab, max_seq_len or `valid`, or change what it computes"
    )


def test_a_sample_on_which_nothing_could_fail_is_said_to_be_one():
    with pytest.raises(DegenerateProgram, match="those of mine are always 7 on a sample of 5 inputs, so"):
        compile_program(program(lambda: rasp.Map(lambda x: 7, rasp.tokens)), budget=5)
    with pytest.raises(DegenerateProgram, match="those of mine are undefined at every position on all 14 inputs, so"):
        compile_program(program(lambda: moved(3)))


def test_an_output_that_is_no_value_is_shown_with_its_input():
    with pytest.raises(InvalidProgram) as caught:
        compile_program(program(lambda: rasp.Map(lambda x: float("nan") if x == "b" else 0, rasp.tokens)))
    assert str(caught.value) == (
        "mine cannot be used: on ['b'] it gives nan; outputs are None, or values that are hashable and, where they are "
        "numbers, finite"
    )


ONE = """
from tracr.rasp import rasp
from tracr_bridge import rasp_program

@rasp_program(vocab=("a", "b"), max_seq_len=2)
def {name}() -> rasp.SOp:
    '''The input itself,

    at some length.'''
    return rasp.tokens
"""


def test_a_file_of_ones_own_is_loaded_as_often_as_asked(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(ONE.format(name="copy"))
    assert load_program(f"{file}:copy").doc == "The input itself,"
    assert load_program(str(file)).name == "copy"


def test_a_file_may_import_its_neighbours_and_declare_dataclasses(tmp_path):
    (tmp_path / "neighbour.py").write_text("VOCAB = ('a', 'b')")
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nimport dataclasses\nfrom neighbour import VOCAB\n"
        "@dataclasses.dataclass\nclass Setting:\n    n: int\n" + ONE.format(name="copy")
    )
    assert load_program(str(tmp_path / "mine.py")).vocab == ("a", "b")


def test_programs_have_the_names_that_the_file_gives_them_and_imported_ones_are_not_its_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from tracr_bridge.programs.hist import hist\n" + ONE.format(name="copy") + "\nother = copy\n"
    )
    assert list(load_file(tmp_path / "mine.py")) == ["copy", "other"]
    assert load_program(f"{tmp_path / 'mine.py'}:other").name == "other"


def test_what_builds_a_program_may_come_from_elsewhere(tmp_path):
    (tmp_path / "parts.py").write_text(
        "from tracr.rasp import rasp\nfrom tracr_bridge import rasp_program\n"
        "def equals(token):\n    return rasp.Map(lambda other: other == token, rasp.tokens).named('equals')\n"
        "def is_b():\n    return equals('b')\n"
        "def declared():\n    return rasp_program(vocab={'b', 'a'}, max_seq_len=2)(is_b)\n"
    )
    file = tmp_path / "mine.py"
    file.write_text(
        "from functools import partial\nfrom parts import declared, equals\nfrom tracr.compiler import lib\n"
        "from tracr_bridge import rasp_program\n"
        "declare = rasp_program(vocab=['a', 'b'], max_seq_len=2)\n"
        "hist, is_a, is_b = declare(lib.make_hist), declare(partial(equals, 'a')), declared()\n"
    )
    programs = load_file(file)
    assert {name: p.name for name, p in programs.items()} == {"hist": "hist", "is_a": "is_a", "is_b": "is_b"}
    assert programs["is_a"].evaluate(("a", "b")) == [True, False]
    assert programs["is_b"].vocab == ("a", "b")  # a set is put in order
    assert programs["hist"].source == file.read_text()


FILES = [
    ("", "missing.py", ProgramFileError, "there is no file"),
    ("x = 1", "file.py", ProgramFileError, "holds no program; declare one with @rasp_program"),
    ("def f(:\n", "file.py", ProgramFileError, "is not Python: line 1"),
    ("1 / 0", "file.py", ProgramFileError, "cannot be imported: ZeroDivisionError"),
    ("raise SystemExit(0)", "file.py", ProgramFileError, "cannot be imported: SystemExit: 0"),
    (ONE.format(name="copy"), "file.py:cop", UnknownProgram, "did you mean copy?"),
    (ONE.format(name="copy"), "file.py:zzz", UnknownProgram, "it has copy"),
    (ONE.format(name="f") + ONE.format(name="g"), "file.py", UnknownProgram, "holds several programs: f, g"),
]


@pytest.mark.parametrize(("text", "spec", "error", "message"), FILES, ids=[f[3] for f in FILES])
def test_an_unusable_file_is_refused(tmp_path, text, spec, error, message):
    (tmp_path / "file.py").write_text(text)
    with pytest.raises(error) as caught:
        load_program(str(tmp_path / spec))
    assert message in str(caught.value)


def test_a_package_named_programs_of_ones_own_does_not_hide_the_catalogue(tmp_path, monkeypatch):
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    catalogue.cache_clear()
    assert load_program("hist").name == "hist"


def test_a_name_outside_the_catalogue_is_refused_with_those_close_to_it():
    with pytest.raises(UnknownProgram, match=r"did you mean reverse"):
        load_program("revers")
    with pytest.raises(UnknownProgram, match=r"a Python file's programs go by path/to/file\.py:name"):
        load_program("README.md:reverse")


def test_every_error_is_one_that_the_command_line_reports():
    assert all(issubclass(error, EdgePruneError) for _, _, error, _ in FILES)
