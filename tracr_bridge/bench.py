"""Recovers the circuits of random programs, many at a time, and counts how many are exact.

Every run is one line of a JSON-lines file, written once it is known: a sweep that was stopped goes on where it was.
"""

import hashlib
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import quantiles
from typing import Any, Final, TypeVar

from tqdm import tqdm

import edgeprune
import tracr_bridge
from edgeprune.errors import DegenerateProgram, EdgePruneError, MethodError
from edgeprune.graph import Ablation, parse_ablation
from edgeprune.methods import find_method
from edgeprune.methods.custom import time_limit
from edgeprune.store import UnwritableFile, write_text
from tracr_bridge.compile import compile_program
from tracr_bridge.coverage import CONSTRUCTS, constructs
from tracr_bridge.recover import assess, certify
from tracr_bridge.strategies import DrawnProgram, program_from
from tracr_bridge.verify import verify

_T = TypeVar("_T")


class ResultsError(EdgePruneError):
    """A results file that cannot be read, or is none of ours."""


_KEPT_WARM: Final = 100
"""Programs after which JAX forgets what it compiled, 10 MB a program: new ones find less and less of use in it."""

_begun = itertools.count(1)

_FIELDS: Final[dict[str, type]] = {
    "program": str, "ablation": str, "method": str, "seed": int, "code": str, "outcome": str
}  # fmt: skip


@dataclass(frozen=True)
class Rate:
    """How many of some runs were exact."""

    exact: int
    runs: int

    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the rate (Wilson, JASA 22, 1927); 0 to 1 where nothing was run."""
        from scipy.stats import binomtest

        if not self.runs:
            return 0.0, 1.0
        interval = binomtest(self.exact, self.runs).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)


def sweep(
    programs: Sequence[DrawnProgram],
    ablations: Sequence[Ablation],
    out: Path,
    *,
    method: str,
    seed: int,
    jobs: int,
    seconds: float = math.inf,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """One row for each program and ablation, those of an earlier sweep in the same folder among them.

    Args:
        programs: what to recover.
        ablations: under what.
        out: a folder: `results.jsonl`, and in `failures/` every program that was not recovered, as a program file.
        method: the discovery method.
        seed: the method's.
        jobs: processes; with one, everything runs in this one.
        seconds: how long one discovery may take.
        progress: show a progress bar on standard error, if that is a terminal.
    """
    find_method(method)
    results = out / "results.jsonl"
    try:
        (out / "failures").mkdir(parents=True, exist_ok=True)
        known = {row_key(row): row for row in read_rows(results)}
        results.touch()
        # A line that was cut off would spoil the one after it.
        os.truncate(results, results.read_bytes().rfind(b"\n") + 1)
    except OSError as error:
        raise UnwritableFile(f"Expected a folder for results; got {str(out)!r}: {error.strerror}") from error
    wanted = {
        (identify(program.source), ablation, method, seed, _code()): program.source
        for program in programs
        for ablation in ablations
    }
    left: dict[str, list[Ablation]] = {}
    for key, source in wanted.items():
        if key not in known:
            left.setdefault(source, []).append(parse_ablation(key[1]))
    sources = {identify(source): source for source in left}
    work = [partial(_run, source, todo, method, seed, seconds) for source, todo in left.items()]
    bar = tqdm(_each(work, jobs), total=len(work), desc="programs", disable=None if progress else True)
    with results.open("a") as file:
        for found in bar:
            for row in found:
                known[row_key(row)] = row
                if row["outcome"] in ("inexact", "broken"):
                    write_text(out / "failures" / f"drawn_{row['program']}.py", sources[row["program"]])
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
    return [known[key] for key in wanted]


def _each(work: Sequence[Callable[[], _T]], jobs: int) -> Iterator[_T]:
    """What each piece of work gives, as soon as it does; with one job, in this process."""
    if jobs == 1:
        yield from (run() for run in work)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        try:
            for job in as_completed([pool.submit(run) for run in work]):
                yield job.result()
        finally:  # whoever stops here waits for what is running, and not for all that is left
            pool.shutdown(cancel_futures=True)


def identify(source: str) -> str:
    """A short name for a program's text."""
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def row_key(row: dict[str, Any]) -> tuple[str, str, str, int, str]:
    """What makes a run the same run: of the same program and method, by the same code of this toolkit."""
    return row["program"], row["ablation"], row["method"], row["seed"], row["code"]


@cache
def _code() -> str:
    """A short name for what this toolkit's files hold."""
    packages = [Path(str(package.__file__)).parent for package in (edgeprune, tracr_bridge)]
    files = sorted(file for package in packages for file in package.rglob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:12]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file, without a last line that was cut off; none where there is no file.

    Raises:
        ResultsError: another line is no row.
    """
    try:
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"Expected a results file; got {str(path)!r}: {error}") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        row: dict[str, Any] = {}
        try:
            row = json.loads(line)
            wrong = [name for name, kind in _FIELDS.items() if not isinstance(row[name], kind)]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            wrong = [str(error)]
        if wrong:
            raise ResultsError(
                f"Expected a run of `edgeprune bench` a line; got {str(path)!r}, line {number}: {line[:60]!r}; "
                "name another folder"
            )
        rows.append(row)
    return rows


def rates(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Rate]:
    """The rate of each ablation and certificate status."""
    found: dict[tuple[str, str], Rate] = {}
    for row in rows:
        if row["outcome"] in ("exact", "inexact"):
            key = (row["ablation"], row["status"])
            before = found.get(key, Rate(0, 0))
            found[key] = Rate(before.exact + (row["outcome"] == "exact"), before.runs + 1)
    return dict(sorted(found.items()))


def distribution(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """What the programs of `rows` are made of: how many have each construct, and how many true edges they have."""
    by_program = {row["program"]: row.get("constructs", []) for row in rows}
    counts = Counter(name for found in by_program.values() for name in found)
    lines = [(name, f"{counts[name]} of {len(by_program)}") for name in CONSTRUCTS]
    for ablation in dict.fromkeys(row["ablation"] for row in rows):
        edges = sorted(row["true"] for row in rows if row["ablation"] == ablation and "true" in row)
        if len(edges) > 1:
            low, _, high = quantiles(edges, n=4, method="inclusive")
            lines.append((f"true edges, {ablation}", f"{edges[0]} to {edges[-1]}, half of them {low:g} to {high:g}"))
    return lines


def _run(source: str, ablations: Sequence[Ablation], method: str, seed: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of one program; what goes wrong with it is an outcome, not an end."""
    import jax
    import torch

    torch.set_num_threads(1)
    if next(_begun) % _KEPT_WARM == 0:
        jax.clear_caches()
    row: dict[str, Any] = {"program": identify(source), "method": method, "seed": seed, "code": _code()}
    try:
        program = program_from(source)
        row["constructs"] = sorted(constructs(program))
        compiled = compile_program(program)
        equal = verify(compiled).equal
    except EdgePruneError as error:
        return [row | {"ablation": a, "outcome": "broken", "reason": str(error)} for a in ablations]
    if not equal:
        return [row | {"ablation": a, "outcome": "broken", "reason": "RASP and the model differ"} for a in ablations]
    rows: list[dict[str, Any]] = []
    for ablation in ablations:
        try:
            truth = certify(compiled, ablation)
        except DegenerateProgram as refused:
            rows.append(row | {"ablation": ablation, "outcome": "refused", "reason": str(refused)})
            continue
        try:
            with time_limit(seconds, method):
                found = find_method(method)(compiled.model, compiled.dataset, ablation, seed=seed).circuit
        except MethodError as error:
            rows.append(row | {"ablation": ablation, "outcome": "broken", "reason": str(error)})
            continue
        assessment = assess(truth, found)
        comparison = assessment.comparison
        rows.append(
            row
            | {
                "ablation": ablation,
                "outcome": "exact" if comparison.exact else "inexact",
                "status": assessment.truth.certificate.status,
                "edges": compiled.model.graph.total,
                "structural": len(truth.structural),
                "true": len(assessment.reference),
                "missing": sorted(map(str, comparison.missing)),
                "extra": sorted(map(str, comparison.extra)),
                "gap": truth.certificate.gap.kept,
            }
        )
    return rows
