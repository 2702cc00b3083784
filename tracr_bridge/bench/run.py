"""Runs methods on programs and checkpoints, many at a time, and records how each run went.

Every run is one row of a results file (`results.py`), written as soon as it is known, so that a bench that was stopped
can be resumed.
"""

import json
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import count
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from edgeprune.errors import DegenerateProgram, EdgePruneError, MethodError
from edgeprune.evaluation.measures import Behaviour, best_threshold, roc
from edgeprune.files.folders import clear, locked
from edgeprune.files.store import UnwritableFile, versions, write_text
from edgeprune.graph import ABLATIONS, Ablation, Circuit
from edgeprune.methods import Discovery, configuration, find_method
from edgeprune.methods.custom import time_limit
from edgeprune.metrics.overlap import nodes_of, overlap
from edgeprune.user_code import told
from tracr_bridge.bench.results import Results, Row, code_digest, digest, row_key
from tracr_bridge.certify.truth import Truth
from tracr_bridge.compile.program import Program
from tracr_bridge.random_programs.strategies import DrawnProgram, program_from
from tracr_bridge.recovery.known_models import Known, find, known
from tracr_bridge.recovery.recover import assess

_KEPT_WARM: Final = 100
"""Programs after which JAX's caches are cleared: they take 10 MB a program, and new programs reuse little of them."""

_begun = count(1)


class WorkerDied(EdgePruneError):
    """A process of a bench ended before it was done."""


@dataclass(frozen=True)
class Subject:
    """A model that another process can load: by its name on the command line, or by its text if it is random."""

    name: str
    text: str
    """The file that declares a program, a checkpoint's `circuit.json`, or a saved truth's model, task and tolerance."""

    drawn: bool

    def load(self) -> Known:
        """Return the model with its true circuits.

        Raises:
            EdgePruneError: it cannot be loaded.
        """
        return known(program_from(self.text) if self.drawn else find(self.name))


def named_subject(spec: str) -> Subject:
    """Return the program, or the folder of a checkpoint or of a saved truth, that the command line names `spec`.

    Raises:
        EdgePruneError: `spec` names none of these.
    """
    found = find(spec)
    if isinstance(found, Program):
        return Subject(spec, found.source, drawn=False)
    name = os.path.normpath(spec)
    name = name if os.sep in name else os.path.join(os.curdir, name)  # a bare name could be a program's
    if isinstance(found, Path):
        from tracr_bridge.checkpoints.read_back import read_content

        return Subject(name, json.dumps(read_content(found)), drawn=False)
    return Subject(name, json.dumps(asdict(found)), drawn=False)


def drawn_subject(program: DrawnProgram) -> Subject:
    """Return a random program as a subject, named by the digest of its text."""
    return Subject(f"drawn_{digest(program.source)}", program.source, drawn=True)


@dataclass(frozen=True)
class Run:
    """One run to make on a program."""

    ablation: Ablation
    method: str
    seed: int


def run_all(
    subjects: Sequence[Subject],
    runs: Sequence[Run],
    out: Path,
    *,
    jobs: int,
    seconds: float = math.inf,
    progress: bool = False,
    ray: str | None = None,
) -> list[Row]:
    """Make all runs on all subjects, and return one row for each; runs of an earlier bench in the folder are reused.

    Args:
        subjects: programs, checkpoints and saved truths to recover.
        runs: ablation, method and seed of each run.
        out: a folder for `results.jsonl`, and for `failures/`, with a file for each random program not recovered.
        jobs: number of processes; with 1, everything runs in this process.
        seconds: time limit of one discovery.
        progress: show a progress bar on standard error, if that is a terminal.
        ray: address of a Ray cluster to run on, in place of processes here; `on_ray` says what it needs.

    Raises:
        UnknownMethod: there is no such method.
        ResultsError: the folder has a `results.jsonl` that `edgeprune bench` did not write.
        UnwritableFile: the folder cannot be written.
        WorkerDied: a process ended before it was done.
        ClusterError: the Ray cluster cannot be used.
    """
    for method in dict.fromkeys(run.method for run in runs):
        find_method(method)
    with locked(out, "results"):
        clear(out, out / "failures")
        return _sweep(subjects, runs, out, jobs=jobs, seconds=seconds, progress=progress, ray=ray)


def _sweep(
    subjects: Sequence[Subject],
    runs: Sequence[Run],
    out: Path,
    *,
    jobs: int,
    seconds: float,
    progress: bool,
    ray: str | None,
) -> list[Row]:
    """Do the work of `run_all` once the folder is locked."""
    results = Results(out)
    wanted: dict[Subject, dict[tuple[Any, ...], Run]] = {
        subject: {row_key(_head(subject, run)): run for run in runs} for subject in subjects
    }
    left = {
        subject: [run for run in keyed.values() if not results.has(_head(subject, run))]
        for subject, keyed in wanted.items()
    }
    by_text = {(subject.name, digest(subject.text)): subject for subject in subjects}
    work = [(subject, todo) for subject, todo in left.items() if todo]
    total = sum(map(len, wanted.values()))
    bar = tqdm(
        total=total, initial=total - sum(map(len, left.values())), desc="runs", disable=None if progress else True
    )
    with bar:
        for row in _rows(work, jobs, seconds, ray):
            results.append(row)
            subject = by_text[row["program"], row["text"]]
            if subject.drawn and row["outcome"] in ("inexact", "failed", "broken"):
                _save_failure(subject, out / "failures")
            bar.update()
    return [results.rows[key] for keyed in wanted.values() for key in keyed]


def _save_failure(subject: Subject, folder: Path) -> None:
    """Write a random program to a file."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UnwritableFile(f"Expected a folder for programs; got {str(folder)!r}: {error.strerror}") from error
    named = subject.text.replace("def drawn(", f"def {subject.name}(")  # so that programs can share a corpus
    write_text(folder / f"{subject.name}.py", named)


Work = Sequence[tuple[Subject, list[Run]]]


def _rows(work: Work, jobs: int, seconds: float, ray: str | None) -> Iterator[Row]:
    """Yield the rows of all work, each as soon as it is known; with one job, run everything in this process."""
    if ray is not None:
        from tracr_bridge.bench import on_ray

        yield from on_ray.rows(work, seconds, ray)
        return
    if jobs == 1:
        for subject, todo in work:
            yield from run_subject(subject, todo, seconds)
        return
    context = get_context("spawn")
    queue = context.SimpleQueue()  # `put` returns once the row is sent: no row is lost if the process dies next
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_keep_queue, initargs=(queue,)) as pool:
        try:
            yield from _received(queue, [pool.submit(_send_rows, *each, seconds) for each in work])
        except (GeneratorExit, KeyboardInterrupt, SystemExit):  # told to stop: end the running processes at once
            for process in list(pool._processes.values()):  # pyright: ignore[reportPrivateUsage]
                process.kill()
            raise
        finally:  # wait for the running tasks only, and cancel the rest
            pool.shutdown(cancel_futures=True)


def _received(queue: Any, futures: list[Future[None]]) -> Iterator[Row]:
    """Yield the rows that arrive in the queue, until all futures are done.

    Raises:
        WorkerDied: a process ended before it was done; the rows that it had sent were yielded.
    """
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
        while not queue.empty():
            yield queue.get()
        try:
            for future in done:
                future.result()
        except BrokenProcessPool as error:
            raise WorkerDied("A process of the bench was ended from outside, or by a method: run it again") from error


_queue: list[Any] = []
"""The queue to which this process sends rows; `_keep_queue` adds it when the process starts."""


def _keep_queue(queue: Any) -> None:
    _queue.append(queue)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent ends: a killed bench cannot tell its processes, which would wait for ever."""
    parent = parent_process()
    assert parent is not None, "runs in a process of a bench"
    parent.join()
    os._exit(1)


def _send_rows(subject: Subject, todo: list[Run], seconds: float) -> None:
    """Send the rows of a program one by one; all are in the queue when this returns."""
    for row in run_subject(subject, todo, seconds):
        _queue[0].put(row)


# One program


def _head(subject: Subject, run: Run) -> Row:
    return {
        "program": subject.name,
        "text": digest(subject.text),
        "ablation": run.ablation,
        "method": run.method,
        "seed": run.seed,
        "code": code_digest(run.method),
        "versions": versions(),
        "config": configuration(run.method),
    }


def run_subject(subject: Subject, todo: Sequence[Run], seconds: float) -> Iterator[Row]:
    """Yield the rows of one program, each as soon as it is known; an error becomes the outcome of a row."""
    import jax
    import torch

    torch.set_num_threads(1)
    if next(_begun) % _KEPT_WARM == 0:
        jax.clear_caches()
    heads = {run: _head(subject, run) for run in todo}
    made_of: dict[str, Any] = {}
    start = time.perf_counter()
    try:
        given = subject.load()
        made_of["constructs"] = list(given.constructs)
    except Exception as error:  # a user's program may raise anything
        outcome = "refused" if isinstance(error, DegenerateProgram) else "broken"
        reason = told(error) if isinstance(error, EdgePruneError) else f"{type(error).__name__}: {error}"
        ended: Row = {"outcome": outcome, "reason": reason, "seconds": {"compile": _since(start)}}
        yield from (head | ended for head in heads.values())
        return
    for ablation in ABLATIONS:
        runs = [run for run in todo if run.ablation == ablation]
        start = time.perf_counter()
        truth = _certified(given, ablation) if runs else Row()
        certifying = _since(start)
        for run in runs:
            found = _run(given, truth, run, seconds) if isinstance(truth, Truth) else dict(truth)
            found["seconds"] = {"certify": certifying} | found.get("seconds", {})
            yield heads[run] | made_of | found


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)


def _certified(given: Known, ablation: Ablation) -> Truth | Row:
    """Return the truth; if there is none, the outcome and reason for a row."""
    try:
        return given.truth(ablation)
    except DegenerateProgram as refused:
        return {"outcome": "refused", "reason": str(refused)}
    except EdgePruneError as error:  # for instance, a checkpoint's circuit is not true on this machine
        return {"outcome": "broken", "reason": told(error)}


def _run(given: Known, truth: Truth, run: Run, limit: float) -> Row:
    """Run a method and return its row, against the certified truth; circuits that other methods proved do not count."""
    start = time.perf_counter()
    try:
        with time_limit(limit, run.method):
            found = find_method(run.method)(given.model, given.dataset, run.ablation, seed=run.seed)
        took = _since(start)
        return _row(given, truth, found) | {"seconds": {"discover": took}}
    except Exception as error:  # a custom method broke its contract, or one of ours raised
        reason = told(error) if isinstance(error, MethodError) else f"{type(error).__name__}: {error}"
        return {"outcome": "failed", "reason": reason, "seconds": {"discover": _since(start)}}


def _row(given: Known, truth: Truth, found: Discovery) -> Row:
    """Return the row of a discovery, compared with the truth."""
    assessment = assess(truth, found.circuit)
    comparison, reference, gap = assessment.comparison, assessment.reference, truth.certificate.gap.kept
    row: Row = {
        "outcome": "exact" if comparison.exact else "inexact",
        "proof": assessment.proof,
        "status": assessment.truth.certificate.status,
        "edges": given.model.graph.total,
        "structural": len(truth.structural),
        "true": len(reference),
        "found": len(found.circuit),
        "missing": sorted(map(str, comparison.missing)),
        "extra": sorted(map(str, comparison.extra)),
        "gap": gap if math.isfinite(gap) else None,
    }
    return row | _measured(given, found, reference)


def _measured(given: Known, found: Discovery, reference: Circuit) -> Row:
    """Return all measures of a discovery (`evaluation/measures.py`); None for a value that is not finite."""
    edges = overlap(found.circuit.edges, reference.edges)
    nodes = overlap(*(nodes_of(reference.graph, each) for each in (found.circuit.edges, reference.edges)))
    best = best_threshold(found.strength, reference)
    behaviour = Behaviour(given.model, given.dataset, reference.ablation)
    cpr, cmd = behaviour.areas(found.scores, signed=found.signed)
    measured = {
        "precision": edges.precision,
        "recall": edges.recall,
        "iou": edges.iou,
        "node_precision": nodes.precision,
        "node_recall": nodes.recall,
        "node_iou": nodes.iou,
        "auroc": roc(found.strength, reference).area,
        "best_threshold_iou": best.iou,
        "best_threshold_exact": float(best.exact),
        "completeness": behaviour.completeness(found.circuit),
        "minimality": behaviour.minimality(found.circuit),
        "faithfulness": behaviour.of(found.circuit),
        "cpr": cpr,
        "cmd": cmd,
    }
    return {name: round(value, 6) if math.isfinite(value) else None for name, value in measured.items()}
