"""Custom discovery methods, named `package.module:function`, held to the same contract as ours."""

import importlib
import inspect
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.data import Dataset
from edgeprune.errors import MethodError, UnknownMethod
from edgeprune.graph import Ablation, Circuit, Graph
from edgeprune.masked_model import MaskedModel
from edgeprune.masks import edge_exists
from edgeprune.methods.method import Discovery, Method, Record, Snapshot, keep_above
from edgeprune.user_code import at, place_of


def load_method(spec: str) -> Method:
    """Load the method `package.module:function`; the working directory is on the search path too.

    The function is called as `function(model, dataset, ablation, seed=seed)` and returns one of

    - a `Circuit` of `model.graph` under `ablation`;
    - a tensor of scores `[source, destination]`: edges that score above 0.5 are kept, and entries where the graph has
      no edge are ignored;
    - a `Discovery`, which has both.

    Raises:
        UnknownMethod: the module cannot be imported, or has no such function.
    """
    module_name, _, function_name = spec.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # importing a user's module may raise anything, even SystemExit
        why = f"{type(error).__name__}: {error}"
        message = f"Expected a method package.module:function; {spec!r} cannot be imported: {why}"
        raise at(UnknownMethod(message), place_of(error)) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UnknownMethod(f"Expected a function {function_name!r} in module {module_name!r}; there is none")
    return adapt(function, spec)


def adapt(function: Callable[..., Any], name: str) -> Method:
    """Wrap a custom function in the signature of `Method`; `load_method` lists what it may return."""

    def discover(
        model: MaskedModel, dataset: Dataset, ablation: Ablation, *, seed: int = 0, progress: bool = False
    ) -> Discovery:
        graph = model.graph
        try:
            with _seeded(seed), _torch_as_it_was():
                result = function(model, dataset, ablation, seed=seed)
            return _checked(result, graph, ablation, name)
        except (MethodError, Overtime, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # a user's method may raise anything, even SystemExit or pytest.skip
            message = f"Method {name} raised {type(error).__name__}: {error}"
            raise at(MethodError(message), place_of(error, inspect.unwrap(function))) from error

    return discover


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """Seed the global generators of Python, NumPy and torch inside the block, and restore their states afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(numpy)
        random.setstate(python)


@contextmanager
def _torch_as_it_was() -> Generator[None]:
    """Restore torch's global settings after the block: default dtype and device, number of threads, gradient mode."""
    dtype, threads, gradients = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    device = torch.get_default_device()
    try:
        yield
    finally:
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(gradients)


def _checked(result: object, graph: Graph, ablation: Ablation, name: str) -> Discovery:
    """Return a method's result as a `Discovery`.

    Raises:
        MethodError: a method may not return this result.
    """
    if isinstance(result, Tensor):
        _check_scores(result, graph, name)
        result = keep_above(graph, ablation, result, 0.5)
    if isinstance(result, Circuit):
        scores = torch.zeros(len(graph.sources), len(graph.destinations))
        for edge in result.edges if result.graph == graph else ():
            scores[graph.position(edge)] = 1
        result = Discovery(result, scores, ())
    circuit: object = result.circuit if isinstance(result, Discovery) else None
    if not isinstance(result, Discovery) or not isinstance(circuit, Circuit):
        got = type(result if circuit is None else circuit).__name__
        raise MethodError(f"Expected a Circuit, a tensor of scores or a Discovery from method {name}; got {got}")
    if result.circuit.graph != graph or result.circuit.ablation != ablation:
        raise MethodError(
            f"Expected a circuit of the model's own graph under {ablation!r} ablation from method {name}; got one of "
            f"{result.circuit.graph.total} edges in all (the model has {graph.total}) under {result.circuit.ablation!r}"
        )
    _check_scores(result.scores, graph, name)
    _check_trace(result, graph, name)
    scores = result.scores.detach().cpu().float()
    return replace(result, scores=torch.where(edge_exists(graph), scores, 0.0))  # drop values where there is no edge


def _check_trace(result: Discovery, graph: Graph, name: str) -> None:
    traces: dict[type, Any] = {Record: result.history, Snapshot: result.snapshots}
    for kind, given in traces.items():
        if not isinstance(given, tuple) or not all(isinstance(item, kind) for item in given):
            raise MethodError(f"Expected a tuple of {kind.__name__} objects from method {name}; got {given!r:.60}")
    for shot in result.snapshots:
        _check_scores(shot.log_alpha, graph, name)
        _check_scores(shot.kept, graph, name)


def _check_scores(scores: object, graph: Graph, name: str) -> None:
    shape = (len(graph.sources), len(graph.destinations))
    if not isinstance(scores, Tensor) or scores.is_complex():
        got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise MethodError(f"Expected a tensor of real scores from method {name}; got {got}")
    if tuple(scores.shape) != shape:
        raise MethodError(f"Expected scores of shape {shape} from method {name}; got {tuple(scores.shape)}")
    of_edges = scores.detach().cpu().float()[edge_exists(graph)]  # the dtype in which scores are stored
    bad = int((~torch.isfinite(of_edges)).sum())
    if bad:
        raise MethodError(f"Expected finite scores from method {name}; those of {bad} of {len(of_edges)} edges are not")


_FOR_EVER = 1e8
"""Limit in seconds above which no timer is set, as timers do not accept more."""


class Overtime(BaseException):
    """Raised inside a method that ran too long. It is no `Exception`, so a method's own handlers do not catch it."""


@contextmanager
def time_limit(seconds: float, name: str) -> Generator[None]:
    """Interrupt the block after `seconds`, and every second after that until it stops; a timer set before is resumed.

    This uses a signal, so it works only in the main thread on a POSIX system; elsewhere there is no limit. The limit
    cannot interrupt native code or a bare `except:` loop: the first is interrupted when it returns, the second never.

    Raises:
        MethodError: the block took longer.
    """
    possible = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not possible or seconds > _FOR_EVER:
        yield
        return
    running = True

    def interrupt(*_: object) -> None:
        if running:
            raise Overtime

    before = signal.signal(signal.SIGALRM, interrupt)
    start = time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    late = MethodError(f"Method {name} ran longer than the {seconds:g} s that it is given")
    try:
        yield
        if time.monotonic() - start > seconds:  # the method caught Overtime
            raise late
    except KeyboardInterrupt:
        raise
    except BaseException:
        if time.monotonic() - start > seconds:  # whatever the method raised in its place
            raise late from None
        raise
    finally:
        running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - start)), interval)
