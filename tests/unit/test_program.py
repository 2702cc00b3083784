"""Programs: their domains, and every unusable declaration."""

import itertools
import sys
from dataclasses import replace

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
from tracr_bridge.catalogue import catalogue, load_file, load_program
from tracr_bridge.compile import compile_program
from tracr_bridge.program import Program, rasp_program
from tracr_bridge.verify import verify

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


INVALID = [
    ({"vocab": ()}, "vocab is empty"),
    ({"vocab": ("a", "a")}, "names a token twice"),
    ({"vocab": (["a"], ["b"])}, "vocab holds what cannot be hashed"),
    ({"vocab": ((["a"],), (["b"],))}, "vocab holds what cannot be hashed"),
    ({"vocab": ("a", 1)}, "mixes types"),
    ({"vocab": ("a", "compiler_bos")}, "'compiler_bos', which the compiler keeps for BOS"),
    ({"vocab": ("a", "compiler_pad")}, "'compiler_pad', which the compiler keeps for PAD"),
    ({"max_seq_len": 0}, "max_seq_len is 0; it is at least 1"),
    ({"min_seq_len": 4}, "min_seq_len is 4; it is from 1 to max_seq_len, 3"),
    *(({"max_seq_len": odd}, f"max_seq_len is {odd!r}; it is a whole number") for odd in (True, np.True_, 3.0, "3")),
    ({"build": lambda: 3}, "it returns int; a program returns a rasp.SOp"),
    ({"build": lambda: rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)}, "it returns Select"),
    ({"build": lambda: 1 / 0}, "building it raises ZeroDivisionError"),
    ({"build": lambda: rasp.indices}, "it never reads rasp.tokens"),
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


def test_all_faults_of_a_declaration_are_reported_together():
    with pytest.raises(InvalidProgram) as caught:
        program(vocab=("compiler_bos", 1, 1), max_seq_len=0, build=lambda: None).check()
    assert str(caught.value).count(";") >= 4


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
    assert "widen vocab" in str(caught.value)


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
    (tmp_path / "mine.py").write_text("from programs.hist import hist\n" + ONE.format(name="copy") + "\nother = copy\n")
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
