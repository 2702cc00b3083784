"""Methods of one's own, held to the contract; what the plugin's checks report."""

import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeprune.errors import InvalidProgram, MethodError, UnknownMethod
from edgeprune.graph import Circuit, Edge
from edgeprune.masks import edge_exists
from edgeprune.methods import Discovery, find_method
from edgeprune.methods.custom import time_limit
from tracr_bridge.compile.catalogue import load_program
from tracr_bridge.recovery import pytest_checks as suite_module
from tracr_bridge.recovery.pytest_checks import CheckFailed, Suite

NAME = "hist"


def none(model, dataset, ablation, *, seed):
    return None


def stray(model, dataset, ablation, *, seed):
    return Circuit(model.graph, ablation, frozenset({Edge.parse("tok->a9.h9.q")}))


def zeros(model, dataset, ablation, *, seed):
    return torch.zeros(len(model.graph.sources), len(model.graph.destinations))


def ones(model, dataset, ablation, *, seed):
    return zeros(model, dataset, ablation, seed=seed) + 1


def not_finite(model, dataset, ablation, *, seed):
    return zeros(model, dataset, ablation, seed=seed) / 0


def misshapen(model, dataset, ablation, *, seed):
    return torch.zeros(3)


def other_ablation(model, dataset, ablation, *, seed):
    return Circuit(model.graph, "mean", frozenset())


def raises(model, dataset, ablation, *, seed):
    raise RuntimeError("out of luck")


def hangs(model, dataset, ablation, *, seed):
    time.sleep(60)


def goes_on(model, dataset, ablation, *, seed):
    while True:
        try:
            time.sleep(60)
        except Exception:
            continue


def ends_late(model, dataset, ablation, *, seed):
    try:
        time.sleep(60)
    except BaseException:
        return zeros(model, dataset, ablation, seed=seed)


def exits(model, dataset, ablation, *, seed):
    sys.exit(0)


def skips(model, dataset, ablation, *, seed):
    pytest.skip("not today")


def with_field(name, value, model, ablation, seed):
    """A `Discovery` with one field that is none; where types are checked it cannot be made with it."""
    found = Discovery(Circuit(model.graph, ablation, frozenset()), zeros(model, None, ablation, seed=seed), ())
    object.__setattr__(found, name, value)
    return found


def no_scores(model, dataset, ablation, *, seed):
    return with_field("scores", None, model, ablation, seed)


def no_circuit(model, dataset, ablation, *, seed):
    return with_field("circuit", [], model, ablation, seed)


def no_history(model, dataset, ablation, *, seed):
    return with_field("history", None, model, ablation, seed)


def overflows(model, dataset, ablation, *, seed):
    return zeros(model, dataset, ablation, seed=seed).double() + 1e39


def imaginary(model, dataset, ablation, *, seed):
    return zeros(model, dataset, ablation, seed=seed) * 1j


def loses_the_graph(model, dataset, ablation, *, seed):
    model.graph = None


def spoils(model, dataset, ablation, *, seed):
    """Makes of the inputs what any circuit reproduces, and leaves torch in another state."""
    nothing = zeros(model, dataset, ablation, seed=seed)
    for tensor in (dataset.target, dataset.tokens, dataset.scored, dataset.group):
        tensor.zero_()
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    return nothing


def listed(model, dataset, ablation, *, seed):
    return Circuit(model.graph, ablation, list(model.graph.edges))


def named(model, dataset, ablation, *, seed):
    return Circuit(model.graph, ablation, frozenset({"tok->m0"}))


def draws(model, dataset, ablation, *, seed):
    return torch.rand(len(model.graph.sources), len(model.graph.destinations)) + random.random() + np.random.rand()


def unread_infinities(model, dataset, ablation, *, seed):
    return torch.where(edge_exists(model.graph), 1.0, -torch.inf)


def seeded(model, dataset, ablation, *, seed):
    return zeros(model, dataset, ablation, seed=seed) + seed / 100


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("none", "Expected a Circuit, a tensor of scores or a Discovery from method test_suite:none; got NoneType"),
        ("stray", "Method test_suite:stray raised GraphError: Expected an edge of this graph of 13 edges"),
        # Where types are checked, a circuit of anything else cannot even be made.
        (
            "listed",
            r"Method test_suite:listed raised (GraphError: Expected a frozenset of Edge objects|TypeCheckError)",
        ),
        ("named", r"Method test_suite:named raised (GraphError: Expected a frozenset of Edge objects|TypeCheckError)"),
        ("not_finite", "Expected finite scores from method test_suite:not_finite; those of 13 of 13 edges are not"),
        ("overflows", "Expected finite scores from method test_suite:overflows; those of 13 of 13 edges are not"),
        ("no_history", "Expected a tuple of Record objects from method test_suite:no_history; got None"),
        ("misshapen", r"Expected scores of shape \(4, 5\) from method test_suite:misshapen; got \(3,\)"),
        ("other_ablation", "under 'zero' ablation from method test_suite:other_ablation; got one .* under 'mean'"),
        ("raises", "Method test_suite:raises raised RuntimeError: out of luck"),
        ("hangs", "Method test_suite:hangs ran longer than the 0.5 s that it is given"),
        ("goes_on", "Method test_suite:goes_on ran longer than the 0.5 s that it is given"),
        ("ends_late", "Method test_suite:ends_late ran longer than the 0.5 s that it is given"),
        ("exits", "Method test_suite:exits raised SystemExit: 0"),
        ("skips", "Method test_suite:skips raised Skipped: not today"),
        ("no_scores", "Expected a tensor of real scores from method test_suite:no_scores; got NoneType"),
        ("no_circuit", "Expected a Circuit, a tensor of scores or a Discovery from method .*; got list"),
        ("imaginary", "Expected a tensor of real scores from method test_suite:imaginary; got torch.complex64"),
        ("loses_the_graph", "Expected a Circuit, .* from method test_suite:loses_the_graph; got NoneType"),
    ],
)
def test_a_method_that_breaks_the_contract_is_refused_by_name(method, message):
    with pytest.raises(MethodError, match=message):
        Suite(f"test_suite:{method}", seconds=0.5).recover(NAME, "zero")


def test_what_a_method_draws_without_a_generator_follows_the_seed_and_moves_nobody_elses(compiled):
    program, method = compiled(NAME), find_method("test_suite:draws")
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    one, same, other = (method(program.model, program.dataset, "zero", seed=seed).scores for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.rand(1), expected)


def test_scores_are_not_read_where_no_edge_is(compiled):
    program = compiled(NAME)
    found = find_method("test_suite:unread_infinities")(program.model, program.dataset, "zero")
    assert found.circuit.edges == set(program.model.graph.edges)
    assert torch.isfinite(found.scores).all()


def test_a_vocabulary_that_cannot_be_hashed_is_refused_before_anything_is_looked_up():
    with pytest.raises(InvalidProgram, match="cannot be hashed"):
        Suite().compiled(replace(load_program(NAME), vocab=(["a"], ["b"])))


def test_what_a_method_does_to_its_inputs_and_to_torch_is_undone():
    suite = Suite("test_suite:spoils")
    for _ in range(2):
        assert not suite.recover(NAME, "zero").comparison.exact
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert torch.zeros(1).device.type == "cpu"


def test_time_limits_nest_and_leave_everything_as_it_was():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(MethodError, match=r"outer ran longer than the 0\.3 s"), time_limit(0.3, "outer"):
        with time_limit(60.0, "inner"):
            pass
        time.sleep(30)
    with time_limit(1e30, "unlimited"):
        pass
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("magic", "Expected a method among edge-pruning-minimax, .*, or package.module:function; got 'magic'"),
        ("no_such_module:f", "'no_such_module:f' cannot be imported: ModuleNotFoundError"),
        ("test_suite:missing", "Expected a function 'missing' in module 'test_suite'; there is none"),
    ],
)
def test_an_unknown_method_is_refused(method, message):
    with pytest.raises(UnknownMethod, match=message):
        find_method(method)


def test_a_method_whose_module_ends_the_process_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ends_the_process.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(UnknownMethod, match="'ends_the_process:f' cannot be imported: SystemExit: 0"):
        find_method("ends_the_process:f")


def test_scores_above_one_half_are_kept_and_the_seed_reaches_the_method(compiled):
    program = compiled(NAME)
    every = find_method("test_suite:ones")(program.model, program.dataset, "zero")
    assert every.circuit.edges == set(program.model.graph.edges)
    scored = find_method("test_suite:seeded")(program.model, program.dataset, "zero", seed=7)
    assert scored.circuit.edges == frozenset()
    assert float(scored.scores.max()) == pytest.approx(0.07)


def test_a_recovery_that_is_not_exact_is_reported_edge_by_edge():
    with pytest.raises(CheckFailed) as caught:
        Suite("test_suite:zeros").check_recovery(load_program(NAME), "zero", seed=3, spec="a b.py:hist")
    report = str(caught.value)
    assert report.startswith("hist, zero ablation: test_suite:zeros, seed 3, found 0 edges, not the true 6")
    assert report.count("  missing  ") == 6
    here = Path(__file__).parent  # no folder in which modules are found anyway
    command = "edgeprune recover 'a b.py:hist' --ablation zero --method test_suite:zeros --seed 3"
    assert report.endswith(f"\nreproduce: PYTHONPATH={here} {command}")
    with pytest.raises(CheckFailed) as caught:
        Suite("test_suite:ones").check_recovery(load_program(NAME), "zero", seed=0, spec="hist")
    assert str(caught.value).count("  extra  ") == 13 - 6


def test_a_wrong_certificate_is_noticed():
    suite, program = Suite(), load_program(NAME)
    suite.check_truth(program, "resample")
    truth = suite.truth(program, "resample")
    edges = truth.circuit.edges
    assert edges < truth.structural
    for wrong, message in [
        (truth.structural, "(?s)what is certified does not hold\n.*circuit 1 is faithful without some edges: "),
        (frozenset(sorted(edges)[1:]), "(?s)what is certified does not hold\n.*circuit 1 is not faithful: "),
        (edges | {Edge.parse("pos->logits")}, "edges that can carry nothing: pos->logits"),
    ]:
        circuits = (Circuit(truth.circuit.graph, "resample", wrong),)
        spoiled = replace(truth, certificate=replace(truth.certificate, circuits=circuits))
        suite._truths[program, "resample"] = spoiled
        with pytest.raises(CheckFailed, match=message):
            suite.check_truth(program, "resample")


def test_a_circuit_that_is_not_listed_is_noticed():
    suite, program = Suite(), load_program("cancels_out")
    truth = suite.truth(program, "resample")
    one, other = truth.certificate.circuits
    suite.check_truth(program, "resample")
    for status, circuits, message in (
        ("unique", (one,), "a true circuit is not listed"),
        ("ambiguous", (one, replace(other, edges=one.edges | other.edges)), "circuit 2"),
    ):
        certificate = replace(truth.certificate, status=status, circuits=circuits)
        suite._truths[program, "resample"] = replace(truth, certificate=certificate)
        with pytest.raises(CheckFailed, match=message):
            suite.check_truth(program, "resample")


def test_a_check_that_cannot_be_made_is_no_check(monkeypatch):
    save = suite_module.save_certificate

    def losing(truth, compiled, folder):
        save(truth, compiled, folder)
        (folder / "weights.npz").unlink()

    monkeypatch.setattr(suite_module, "save_certificate", losing)
    with pytest.raises(CheckFailed, match=r"expected a file weights\.npz"):
        Suite().check_truth(load_program(NAME), "zero")


def test_models_that_differ_are_noticed():
    suite, program = Suite(), load_program(NAME)
    suite.check_verify(program)
    suite.compiled(program).model._token += 0.01
    with pytest.raises(CheckFailed, match=r"hist: RASP, Tracr's model and PyTorch differ\n  "):
        suite.check_verify(program)


def test_every_circuit_that_is_listed_lies_within_the_structural_edges_and_under_its_own_ablation():
    suite, program = Suite(), load_program("cancels_out")
    for ablation in ("zero", "resample"):
        assert suite.truth(program, ablation).circuit.ablation == ablation
    truth = suite.truth(program, "resample")
    one, other = truth.certificate.circuits
    stray = next(edge for edge in other.graph.edges if edge not in truth.structural)
    circuits = (one, replace(other, edges=other.edges | {stray}))
    suite._truths[program, "resample"] = replace(truth, certificate=replace(truth.certificate, circuits=circuits))
    with pytest.raises(CheckFailed, match=f"edges that can carry nothing: {stray}"):
        suite.check_truth(program, "resample")
