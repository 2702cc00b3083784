"""What holds of every program holds of random ones; and random ones are what they are said to be."""

import re
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, find, given, reject, settings
from hypothesis import strategies as st
from tracr.rasp import rasp

from edgeprune.errors import DegenerateProgram
from edgeprune.files.store import load_circuit, save_circuit
from edgeprune.masks import circuit_mask, mask_of
from edgeprune.methods import find_method
from tracr_bridge.certify.faithfulness import Judge
from tracr_bridge.compile.compile import compile_program
from tracr_bridge.compile.constructs import CONSTRUCTS, constructs
from tracr_bridge.compile.program import expressions_of
from tracr_bridge.compile.verify import verify
from tracr_bridge.random_programs.draw import draw_programs
from tracr_bridge.random_programs.expressions import Writer
from tracr_bridge.random_programs.strategies import inputs_for, program_from, rasp_programs
from tracr_bridge.recovery.known_models import certify
from tracr_bridge.recovery.pytest_checks import refused
from tracr_bridge.recovery.recover import assess

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
few = settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=SLOW)

RARE = {"7 layers", "8 layers"}
"""Constructs that one draw in a hundred has, or fewer."""


def lines_of(program) -> list[str]:
    return [line for line in program.source.splitlines() if ".named(" in line]


@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_width_of_0_is_looked_for_nowhere_that_tracr_has_less_than_nothing_at_bos(times):
    """There a head that finds no such width attends to all but BOS; so it does where widths were moved on the way."""
    writer = Writer(None, vocab=(0, 1), shortest=1, length=3, causal=False, left=9)
    everywhere = "rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE)"
    keys = width = writer._write(f"rasp.SelectorWidth({everywhere})", values=range(4))
    for _ in range(times):
        keys = writer._write(f"rasp.Aggregate({everywhere}, {keys.name})", values=range(4))
    for looked_for, rests in ((0, False), (3, True)):
        predicate = f"lambda key, query: (key, query) in (({looked_for}, 2), ({looked_for}, 3))"
        selector = f"rasp.Select({keys.name}, {width.name}, {predicate})"
        assert writer._rests_on_bos(selector, keys, width) == rests


@pytest.fixture(scope="module")
def drawn():
    return draw_programs(70, seed=0)


def test_draws_are_valid_named_and_varied(drawn):
    assert len({program.source for program in drawn}) == len(drawn)
    for program in drawn:
        program.check()
        nodes = [e for e in expressions_of(program.expression()) if isinstance(e, rasp.SOp) and e.children]
        assert all(re.fullmatch(r"s\d+|drawn", node.name) for node in nodes)
        outputs = [tuple(program.evaluate(tokens)) for tokens in program.domain(budget=128, seed=0).inputs]
        assert len(set(outputs)) > len(set(map(len, outputs)))  # some vary among inputs of one length


def test_draws_have_every_common_construct(drawn):
    assert set(CONSTRUCTS) - set().union(*map(constructs, drawn)) <= RARE


def test_many_draws_have_a_head_that_attends_uniformly(drawn):
    always = [program for program in drawn if "selector that is always true" in constructs(program)]
    assert len(always) >= len(drawn) / 3
    assert sum(map(has_head_to_drop_whole, always[:20])) >= 4


def has_head_to_drop_whole(program):
    """Whether the query and key edges of some head can go together under zero ablation, and none of them alone."""
    compiled = compile_program(program)
    graph, structural = compiled.model.graph, compiled.model.structural
    judge = Judge(compiled.model, compiled.dataset, "zero", atol=1e-2)
    read = {edge: edge.destination.owner for edge in structural if edge.destination.port in ("q", "k")}
    for head in set(read.values()):
        edges = [edge for edge, owner in read.items() if owner == head]
        without = [mask_of(graph, structural - set(gone)) for gone in (edges, *([edge] for edge in edges))]
        together, *alone = judge.reproduces(torch.stack(without)).tolist()
        if together and not any(alone):
            return True
    return False


def test_the_same_seed_draws_the_same_programs(drawn):
    assert [p.source for p in draw_programs(5, seed=0)] == [p.source for p in drawn[:5]]
    assert [p.source for p in draw_programs(5, seed=1)] != [p.source for p in drawn[:5]]


def test_a_drawn_program_prints_as_the_file_that_declares_it(drawn):
    program = drawn[0]
    again = program_from(repr(program).lstrip())
    assert again.source.split() == program.source.split()
    assert torch.equal(compile_program(program).dataset.target, compile_program(again).dataset.target)


def test_draws_compile(drawn):
    for program in drawn[:6]:
        compile_program(program)


@given(st.data())
@settings(few, max_examples=20)
def test_inputs_are_of_the_domain(data):
    program = data.draw(rasp_programs())
    tokens = data.draw(inputs_for(program))
    assert set(tokens) <= set(program.vocab)
    assert program.min_seq_len <= len(tokens) <= program.max_seq_len


@pytest.mark.parametrize(
    ("construct", "expressions"),
    [
        pytest.param("SelectorWidth", 1, marks=pytest.mark.sweep),
        pytest.param("categorical Aggregate", 2, marks=pytest.mark.sweep),
        pytest.param("numerical Aggregate", 2, marks=pytest.mark.sweep),
        pytest.param("LinearSequenceMap", 3, marks=pytest.mark.sweep),
        pytest.param("selector that is always true", 2, marks=pytest.mark.sweep),
        pytest.param("selector on a constant", 2, marks=pytest.mark.sweep),
    ],
)
def test_a_planted_failure_shrinks_to_few_expressions_a_small_vocabulary_and_short_inputs(construct, expressions):
    smallest = find(
        rasp_programs(),
        lambda program: construct in constructs(program),
        settings=settings(max_examples=300, database=None, deadline=None, suppress_health_check=SLOW),
        random=Random(0),
    )
    assert len(lines_of(smallest)) <= expressions
    assert len(smallest.vocab) == 2
    assert smallest.max_seq_len <= 2


def for_all(check, examples):
    """Run `check` on that many random programs of several expressions: the same in every run, shrunk on failure."""
    several = rasp_programs().filter(lambda program: 3 <= len(lines_of(program)) <= 5)
    settings(few, max_examples=examples)(given(several)(check))()


some = pytest.mark.parametrize("examples", [2, pytest.param(20, marks=pytest.mark.sweep)])


@some
def test_rasp_tracr_and_torch_agree(examples):
    def agree(program):
        compiled = compile_program(program)
        assert verify(compiled).equal
        assert compiled.model.structural <= set(compiled.model.graph.edges)

    for_all(agree, examples)


@some
@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_certified_circuits_are_true_as_a_checker_has_it_too_and_are_found(examples, ablation, tmp_path):
    def holds(program):
        compiled = compile_program(program)
        try:
            truth = certify(compiled, ablation)
        except DegenerateProgram:
            reject()  # nothing could fail on it
        for circuit in truth.certificate.circuits:
            assert circuit.edges <= compiled.model.structural
            without = [mask_of(circuit.graph, circuit.edges - {edge}) for edge in circuit.edges]
            whole, *fewer = truth.judge.differences(torch.stack([circuit_mask(circuit), *without])).tolist()
            assert whole <= truth.certificate.atol < min(fewer)
        assert truth.certificate.margin <= min(abs(each - truth.certificate.atol) for each in (whole, *fewer))
        assert refused(truth, compiled) == []
        save_circuit(truth.circuit, tmp_path / "circuit.json")
        assert load_circuit(tmp_path / "circuit.json") == truth.circuit
        found = find_method("edge-pruning-minimax")(compiled.model, compiled.dataset, ablation, seed=0).circuit
        assessment = assess(truth, found)
        assert assessment.comparison.exact and assessment.proof is not None

    for_all(holds, examples)


@some
def test_new_names_dead_code_and_another_compilation_change_no_edge(examples):
    letters = dict(zip("abcd", "klmn", strict=True))  # in the same order, for programs that compare tokens

    def unchanged(program):
        source = program.source
        renamed = re.sub(r"'([abcd])'", lambda match: repr(letters[match[1]]), source)
        renamed = re.sub(r"\bs(\d+)\b", r"name\1", renamed)
        assert renamed != source
        one, other = (program_from(text) for text in (source, renamed))
        for tokens in one.domain(budget=128, seed=0).inputs:
            assert rename(one.evaluate(tokens), letters) == other.evaluate(tuple(rename(tokens, letters)))
        dead = (
            "    dead = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)).named('dead')\n"
        )
        padded = source.replace("    return ", f"{dead}    return ")
        wanted = true_circuits(source)
        assert wanted
        for other in (renamed, padded, source):
            assert true_circuits(other) == wanted

    for_all(unchanged, examples)


def rename(values, letters):
    return [letters.get(value, value) for value in values]


def true_circuits(source):
    return certify(compile_program(program_from(source)), "zero").certificate.circuits


@pytest.mark.parametrize("causal", [False, True])
def test_of_a_causal_program_a_width_that_comes_later_is_seen_by_nobody(causal):
    """The first position looks for a width of 0, which Tracr finds at BOS, or for one that the second position has."""
    writer = Writer(None, vocab=(0, 1), shortest=2, length=3, causal=causal, left=9)
    so_far = "rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LEQ)"
    width = writer._write(f"rasp.SelectorWidth({so_far})", values=range(4))
    selector = f"rasp.Select({width.name}, {width.name}, lambda key, query: (key, query) in ((0, 1), (2, 1)))"
    assert writer._rests_on_bos(selector, width, width) == (not causal)
