"""Methods of one's own: how they are found and called, what they may return, and what they leave behind."""

import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import wraps
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edgeprune.errors import MethodError, UnknownMethod
from edgeprune.graph import Circuit, Edge, Graph
from edgeprune.masks import edge_exists
from edgeprune.methods import custom
from edgeprune.methods.custom import Overtime, load_method, time_limit
from edgeprune.methods.method import Discovery, Record, Snapshot
from edgeprune.user_code import places_of

GRAPH = Graph.transformer(embeddings=("embed",), layers=1, heads=1)
SHAPE = (len(GRAPH.sources), len(GRAPH.destinations))
MODEL = SimpleNamespace(graph=GRAPH)
FOUND = Circuit(GRAPH, "mean", frozenset(map(Edge.parse, ["embed->m0", "m0->logits"])))
SCORES = torch.arange(float(SHAPE[0] * SHAPE[1])).view(SHAPE)
NO_FUNCTION = 3


def run(answer, **given):
    """What a method that returns `answer`, or calls it, is taken to have found."""

    def method(model, dataset, ablation, *, seed):
        return answer(model, dataset, ablation, seed) if callable(answer) else answer

    return custom.adapt(method, "mine:it")(MODEL, "inputs", "mean", **given)


def fails(answer):
    with pytest.raises(MethodError) as error:
        run(answer)
    return str(error.value)


# Finding one


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("test_custom:missing", "Expected a function 'missing' in module 'test_custom'; there is none"),
        ("test_custom:NO_FUNCTION", "Expected a function 'NO_FUNCTION' in module 'test_custom'; there is none"),
        ("test_custom", "Expected a function '' in module 'test_custom'; there is none"),
        (
            "no_such_module:f:g",
            "Expected a method package.module:function; 'no_such_module:f:g' cannot be imported: "
            "ModuleNotFoundError: No module named 'no_such_module'",
        ),
    ],
)
def test_what_is_no_function_of_a_module_is_refused(spec, message):
    with pytest.raises(UnknownMethod) as error:
        load_method(spec)
    assert str(error.value) == message


@pytest.mark.fakes
def test_the_working_directory_is_searched_first_and_is_named_once(tmp_path, monkeypatch):
    (tmp_path / "mine_alone.py").write_text(
        "def f(model, dataset, ablation, *, seed):\n    raise ValueError(dataset)\n"
    )
    (tmp_path / "mine_broken.py").write_text("\nimport sys; sys.exit(3)\n")
    (tmp_path / "mine_stopped.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("mine_alone", "mine_broken", "mine_stopped"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for _ in range(2):
        method = load_method("mine_alone:f")
    assert sys.path[0] == os.getcwd() and sys.path.count(os.getcwd()) == 1
    with pytest.raises(MethodError, match=r"^Method mine_alone:f raised ValueError: inputs$") as error:
        method(MODEL, "inputs", "mean")
    assert places_of(error.value) == ("mine_alone.py, line 2: raise ValueError(dataset)",)
    with pytest.raises(UnknownMethod, match=r"'mine_broken:f' cannot be imported: SystemExit: 3$") as error:
        load_method("mine_broken:f")
    assert places_of(error.value) == ("mine_broken.py, line 2: import sys; sys.exit(3)",)
    with pytest.raises(KeyboardInterrupt):
        load_method("mine_stopped:f")


# Calling it


@pytest.mark.fakes
def test_a_method_is_called_with_what_every_method_is():
    seen = []
    for given, seed in (({}, 0), ({"seed": 7, "progress": True}, 7)):
        run(lambda *arguments: seen.append(arguments) or FOUND, **given)
        assert seen.pop() == (MODEL, "inputs", "mean", seed)


@pytest.mark.fakes
def test_what_it_raises_is_said_and_what_ends_it_passes():
    def raises(error):
        def raising(*_):
            raise error

        return raising

    assert fails(raises(ValueError("odd"))) == "Method mine:it raised ValueError: odd"
    assert fails(raises(SystemExit(2))) == "Method mine:it raised SystemExit: 2"
    assert fails(raises(MethodError("as it is"))) == "as it is"
    for error in (KeyboardInterrupt, GeneratorExit, Overtime):
        with pytest.raises(error):
            run(raises(error))


@pytest.mark.fakes
def test_an_error_of_a_call_itself_is_at_the_functions_first_line_whatever_wraps_it():
    def takes_nothing():
        raise AssertionError

    @wraps(takes_nothing)
    def wrapped(*given, **more):
        return takes_nothing(*given, **more)

    line = takes_nothing.__code__.co_firstlineno
    for function in (takes_nothing, wrapped):
        with pytest.raises(MethodError, match="takes_nothing") as error:
            custom.adapt(function, "mine:it")(MODEL, "inputs", "mean")
        (place,) = places_of(error.value)
        at = line if function is takes_nothing else wrapped.__code__.co_firstlineno + 2
        assert f"test_custom.py, line {at}: " in place


def draws(*_):
    return [random.random(), float(np.random.rand()), float(torch.rand(1))]


@pytest.mark.fakes
def test_every_generator_starts_from_the_seed_and_goes_on_afterwards_where_it_stood(monkeypatch):
    seen = []

    def method(*_):
        seen.append(draws())
        return FOUND

    for seed in (3, 3, 4):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        expected = draws()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        run(method, seed=seed)
        assert draws() == expected
    one, same, other = seen
    assert one == same and not any(a == b for a, b in zip(one, other, strict=True))
    assert fails(lambda *_: draws() and 1 / 0).endswith("ZeroDivisionError: division by zero")


@pytest.mark.fakes
@pytest.mark.parametrize("raises", [False, True])
def test_what_is_set_for_all_of_torch_is_undone(raises):
    threads = torch.get_num_threads()

    def sets(*_):
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(threads + 1)
        torch.set_grad_enabled(False)
        torch.set_default_device("meta")
        return 1 / 0 if raises else FOUND

    with torch.enable_grad():
        if raises:
            fails(sets)
        else:
            run(sets)
        assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32 and torch.get_num_threads() == threads
    assert torch.get_default_device().type == "cpu" and torch.zeros(1).device.type == "cpu"
    with torch.no_grad():
        run(lambda *_: [torch.set_grad_enabled(True), FOUND][1])
        assert not torch.is_grad_enabled()


@pytest.mark.fakes
def test_a_device_that_was_set_before_is_set_again():
    def sets(*_):
        torch.set_default_device("cpu")
        raise ValueError("odd")

    torch.set_default_device("meta")
    try:
        with pytest.raises(MethodError):
            custom.adapt(lambda *_, **__: sets(), "mine")(MODEL, "inputs", "mean")
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)


# What it returns


@pytest.mark.fakes
def test_a_circuit_scores_1_for_its_edges():
    found = run(FOUND)
    assert found.circuit == FOUND and found.history == found.snapshots == ()
    assert found.scores.sum() == 2 and all(found.scores[GRAPH.position(edge)] == 1 for edge in FOUND.edges)


@pytest.mark.fakes
def test_of_scores_edges_above_a_half_are_kept_and_the_rest_is_not_read():
    scores = torch.full(SHAPE, torch.nan, dtype=torch.float64)
    for edge in GRAPH.edges:
        scores[GRAPH.position(edge)] = 0.5
    for name in ("embed->m0", "m0->logits"):
        scores[GRAPH.position(Edge.parse(name))] = 0.5001
    found = run(scores.requires_grad_())
    assert found.circuit == FOUND
    exists = edge_exists(GRAPH)
    assert found.scores.dtype == torch.float32 and not found.scores.requires_grad and not found.scores[~exists].any()
    assert torch.equal(found.scores[exists], scores.detach()[exists].float())


@pytest.mark.fakes
def test_a_discovery_is_taken_as_it_is():
    history, shots = (Record(0, 1.0, 2.0),), (Snapshot(0, SCORES, SCORES > 3),)
    found = run(Discovery(FOUND, SCORES + 1, history, shots, signed=True))
    assert (found.circuit, found.history, found.snapshots, found.signed) == (FOUND, history, shots, True)
    assert torch.equal(found.scores, torch.where(edge_exists(GRAPH), SCORES + 1, 0))


OTHER = Graph.transformer(embeddings=("embed",), layers=0, heads=0)
NOT_FINITE = torch.where(torch.arange(SHAPE[0] * SHAPE[1]).view(SHAPE) == 0, torch.inf, SCORES)


@pytest.mark.fakes
def test_anything_else_is_refused_with_what_it_is():
    kinds = "Expected a Circuit, a tensor of scores or a Discovery from method mine:it; got"
    assert fails(None) == f"{kinds} NoneType" and fails(3) == f"{kinds} int"
    assert fails(Discovery([], SCORES, ())) == f"{kinds} list"
    assert fails(Circuit(GRAPH, "zero", FOUND.edges)) == (
        "Expected a circuit of the model's own graph under 'mean' ablation from method mine:it; got one of 8 edges in "
        "all (the model has 8) under 'zero'"
    )
    assert fails(Circuit(OTHER, "mean", frozenset(OTHER.edges))) == (
        "Expected a circuit of the model's own graph under 'mean' ablation from method mine:it; got one of 1 edges in "
        "all (the model has 8) under 'mean'"
    )
    larger = Graph.transformer(embeddings=("embed",), layers=2, heads=1)
    assert fails(Circuit(larger, "mean", frozenset(larger.edges))).startswith(
        "Expected a circuit of the model's own graph"
    )
    assert fails(SCORES[0]) == f"Expected scores of shape {SHAPE} from method mine:it; got (5,)"
    assert (
        fails(SCORES.to(torch.complex64)) == "Expected a tensor of real scores from method mine:it; got torch.complex64"
    )
    assert fails(Discovery(FOUND, [1.0], ())) == "Expected a tensor of real scores from method mine:it; got list"
    bad = "Expected finite scores from method mine:it; those of {} of 8 edges are not"
    assert fails(NOT_FINITE) == bad.format(1)
    assert fails(Discovery(FOUND, SCORES.double() * 1e300, ())) == bad.format(7)  # no number that single precision has


@pytest.mark.fakes
def test_a_trace_of_anything_else_is_refused():
    record, shot = Record(0, 1.0, 2.0), Snapshot(0, SCORES, SCORES > 3)
    records = "Expected a tuple of Record objects from method mine:it; got"
    assert fails(Discovery(FOUND, SCORES, [record])) == f"{records} {[record]!r:.60}"
    assert fails(Discovery(FOUND, SCORES, (record, shot))) == f"{records} {(record, shot)!r:.60}"
    assert fails(Discovery(FOUND, SCORES, ("x" * 99,))) == f"{records} ('{'x' * 58}"
    snapshots = "Expected a tuple of Snapshot objects from method mine:it; got"
    assert fails(Discovery(FOUND, SCORES, (record,), None)) == f"{snapshots} None"
    shape = f"Expected scores of shape {SHAPE} from method mine:it; got (3,)"
    assert fails(Discovery(FOUND, SCORES, (), (shot, Snapshot(1, SCORES[0, :3], SCORES > 3)))) == shape
    assert fails(Discovery(FOUND, SCORES, (), (Snapshot(1, SCORES, SCORES[0, :3]),))) == shape


# Its time


def waits(seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def timers():
    return signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)


def test_what_takes_longer_is_interrupted_whatever_it_makes_of_it():
    before = timers()

    def swallows():
        with suppress(BaseException):
            waits()

    def swallows_twice():
        swallows()
        swallows()

    def changes():
        try:
            waits()
        except BaseException as error:
            raise ValueError("another") from error

    for method in (waits, swallows, swallows_twice, changes):
        with pytest.raises(MethodError) as error, time_limit(0.05, "mine"):
            method()
        assert str(error.value) == "Method mine ran longer than the 0.05 s that it is given"
        assert error.value.__cause__ is None
        assert timers() == before


def test_what_is_done_in_time_is_left_alone_and_so_is_what_it_raises():
    before = timers()
    with time_limit(60.0, "mine"):
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 60 and signal.getitimer(signal.ITIMER_REAL)[1] == 1
    assert timers() == before
    for error in (ValueError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised, time_limit(60.0, "mine"):
            raise error
        assert raised.value is error and timers() == before
    with pytest.raises(KeyboardInterrupt), time_limit(1e-3, "mine"):
        try:
            waits()
        except Overtime:
            raise KeyboardInterrupt from None


def test_a_timer_that_was_set_before_goes_on_and_rings_at_once_if_its_time_has_come():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 60.0, 2.0)
        with time_limit(30.0, "mine"):
            pass
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left <= 60 and interval == 2 and not rung
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with time_limit(30.0, "mine"):
            waits(0.05)
            assert not rung
        waits(0.1)
        assert rung == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_without_a_limit_or_in_another_thread_nothing_is_set():
    before, seen = timers(), []

    def inside(seconds):
        with time_limit(seconds, "mine"):
            seen.append(timers())

    inside(1e8 + 1)
    thread = threading.Thread(target=inside, args=(60.0,))
    thread.start()
    thread.join()
    assert seen == [before, before]
    inside(1e8)
    assert seen[-1][1][0] > 1e7 and timers() == before
