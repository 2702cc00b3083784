"""The shipped programs cover the language, and what is said to be covered is."""

from functools import partial
from operator import eq

import pytest
from tracr.rasp import rasp

from edgeprune.cli.tables import print_matrix
from tracr_bridge import rasp_program
from tracr_bridge.compile.catalogue import catalogue
from tracr_bridge.compile.constructs import CONSTRUCTS, constructs, shape


@pytest.fixture(scope="module")
def used():
    return {name: constructs(program) for name, program in catalogue().items()}


def test_there_are_programs_enough_and_few_without_attention(used):
    assert len(used) >= 60
    moving = {"SelectorWidth", "categorical Aggregate", "numerical Aggregate"}
    assert sum(not found & moving for found in used.values()) <= 6


@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_every_construct_has_a_program(used, construct):
    assert [name for name, found in used.items() if construct in found]


def test_no_construct_is_found_that_is_not_listed(used):
    assert set().union(*used.values()) <= set(CONSTRUCTS)


def test_the_matrix_has_a_row_for_each_program_and_says_what_its_columns_are(used, capsys):
    print_matrix(used, CONSTRUCTS)
    lines = capsys.readouterr().out.splitlines()
    (row,) = (line for line in lines if line.startswith("mirrored "))
    dots = row.split()[1]
    assert [dot == "●" for dot in dots] == [construct in used["mirrored"] for construct in CONSTRUCTS]
    counted = sum("SelectorWidth" in found for found in used.values())
    assert f"{1 + CONSTRUCTS.index('SelectorWidth')} SelectorWidth: {counted} of {len(used)}" in lines


@pytest.mark.parametrize("name", ["reverse", "sort_freq", "xproportion", "shuffle_dyck1"])
def test_the_shape_is_that_of_the_compiled_model(compiled, name):
    graph = compiled(name).model.graph
    layers = 1 + max(node.layer for node in graph.sources)
    heads = sum(node.kind == "a" and node.layer == 0 for node in graph.sources)
    assert shape(catalogue()[name]) == (layers, heads)


def test_a_program_has_the_constructs_that_are_written_in_it():
    @rasp_program(vocab=("a", "b"), max_seq_len=3, causal=True, min_seq_len=2)
    def small() -> rasp.SOp:
        """Made of a few things."""
        constant = rasp.Map(lambda token: "a", rasp.tokens).named("constant")
        count = rasp.SelectorWidth(~rasp.Select(constant, rasp.tokens, rasp.Comparison.LT)).named("count")
        return rasp.SequenceMap(lambda x, y: x, count, rasp.tokens).named("small")

    assert constructs(small) == {
        "tokens alone", "Map", "Map that ignores its input", "SelectorWidth", "~ selector",
        "selector on computed sequences", "selector on a constant", "SequenceMap",
        "SequenceMap that ignores an input", "categorical output",
        "causal", "restricted domain", "1 head", "3 layers",
    }  # fmt: skip


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("keys", "queries", "predicate", "always", "constant"),
    [
        (rasp.indices, rasp.indices, rasp.Comparison.TRUE, True, False),
        (rasp.tokens, rasp.indices, lambda key, query: key in ("a", "b"), True, False),
        (rasp.indices, rasp.indices, rasp.Comparison.LEQ, False, False),
        (rasp.tokens, rasp.Map(lambda index: "a", rasp.indices), rasp.Comparison.EQ, False, True),
        (rasp.Map(lambda token: "a", rasp.tokens), rasp.tokens, rasp.Comparison.LEQ, True, True),
    ],
)
def test_heads_that_attend_uniformly_are_told_by_what_they_select(keys, queries, predicate, always, constant, causal):
    @rasp_program(vocab=("a", "b"), max_seq_len=3, causal=causal)
    def small() -> rasp.SOp:
        """The width of a selector, at each "a"."""
        width = rasp.SelectorWidth(rasp.Select(keys, queries, predicate)).named("width")
        return rasp.SequenceMap(lambda token, n: n if token == "a" else 0, rasp.tokens, width).named("small")

    found = constructs(small)
    assert ("selector that is always true" in found) == (always or (causal and predicate is rasp.Comparison.LEQ))
    assert ("selector on a constant" in found) == constant


def test_functions_without_a_name_of_their_own_are_told_too():
    @rasp_program(vocab=("a", "b"), max_seq_len=2)
    def small() -> rasp.SOp:
        """Counts earlier tokens."""
        is_a = rasp.Map(partial(eq, "a"), rasp.tokens)
        return rasp.SelectorWidth(rasp.Select(is_a, rasp.tokens, partial(ge_by, "b"))).named("small")

    assert constructs(small) >= {"Map", "Select by a predicate of one's own"}


def ge_by(bound, key, query):
    return query >= bound or key
