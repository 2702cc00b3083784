"""Recovers the circuits of random programs, many at a time, and counts how many are exact.

Every run is one line of a JSON-lines file, written once it is known: a sweep that was stopped goes on where it was.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any, Final

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from tqdm import tqdm

from edgeprune.errors import DegenerateProgram, EdgePruneError
from edgeprune.graph import Ablation
from edgeprune.methods import find_method
from edgeprune.store import write_atomically
from tracr_bridge.compile import compile_program
from tracr_bridge.coverage import constructs
from tracr_bridge.recover import assess, certify
from tracr_bridge.strategies import DrawnProgram, program_from, rasp_programs
from tracr_bridge.verify import verify

_Z: Final = 1.959964
"""The standard normal quantile of a 95 % interval."""


@dataclass(frozen=True)
class Rate:
    """How many of some runs were exact."""

    exact: int
    runs: int

    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the rate (Wilson, JASA 22, 1927); 0 to 1 where nothing was run."""
        if not self.runs:
            return 0.0, 1.0
        n, p, z = self.runs, self.exact / self.runs, _Z
        centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n))


def draw_programs(count: int, *, seed: int) -> list[DrawnProgram]:
    """`count` different random programs; the same for the same seed and version of Hypothesis."""
    drawn: dict[str, DrawnProgram] = {}

    def collect(program: DrawnProgram) -> None:
        drawn.setdefault(program.source, program)

    quiet = settings(
        max_examples=max(100, count),
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    attempt = 0
    while len(drawn) < count:
        seeded(seed + 2**32 * attempt)(quiet(given(rasp_programs())(collect)))()
        attempt += 1
    return list(drawn.values())[:count]


def sweep(
    programs: Sequence[DrawnProgram],
    ablations: Sequence[Ablation],
    out: Path,
    *,
    method: str,
    seed: int,
    jobs: int,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """One row for each program and ablation, those of an earlier sweep in the same folder among them.

    Args:
        programs: what to recover.
        ablations: under what.
        out: a folder: `results.jsonl`, and in `failures/` every program that was not recovered, as a program file.
        method: the discovery method.
        seed: the method's.
        jobs: processes.
        progress: show a progress bar on standard error, if that is a terminal.
    """
    find_method(method)
    (out / "failures").mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    known = {row_key(row): row for row in read_rows(results)}
    wanted = [(identify(p.source), ablation, method, seed) for p in programs for ablation in ablations]
    left: dict[str, list[Ablation]] = {}
    for program in programs:
        todo: list[Ablation] = [a for a in ablations if (identify(program.source), a, method, seed) not in known]
        if todo:
            left[program.source] = todo
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool, results.open("a") as file:
        work = [pool.submit(partial(_run, source, todo, method, seed)) for source, todo in left.items()]
        bar = tqdm(as_completed(work), total=len(work), desc="programs", disable=None if progress else True)
        for job in bar:
            for row in job.result():
                known[row_key(row)] = row
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
    rows = [known[key] for key in wanted]
    sources = {identify(p.source): p.source for p in programs}
    for row in rows:
        if row["outcome"] in ("inexact", "broken"):
            write_atomically(out / "failures" / f"drawn_{row['program']}.py", partial(_write, sources[row["program"]]))
    return rows


def _write(text: str, file: IO[bytes]) -> None:
    file.write(text.encode())


def identify(source: str) -> str:
    """A short name for a program's text."""
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def row_key(row: dict[str, Any]) -> tuple[str, str, str, int]:
    """What makes a run the same run."""
    return row["program"], row["ablation"], row["method"], row["seed"]


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a results file; a last line that was cut off is left out."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def rates(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Rate]:
    """The rate of each ablation and certificate status."""
    found: dict[tuple[str, str], Rate] = {}
    for row in rows:
        if row["outcome"] in ("exact", "inexact"):
            key = (row["ablation"], row["status"])
            before = found.get(key, Rate(0, 0))
            found[key] = Rate(before.exact + (row["outcome"] == "exact"), before.runs + 1)
    return dict(sorted(found.items()))


def _run(source: str, ablations: Sequence[Ablation], method: str, seed: int) -> list[dict[str, Any]]:
    """Rows of one program; what goes wrong with it is an outcome, not an end."""
    import torch

    torch.set_num_threads(1)
    row: dict[str, Any] = {"program": identify(source), "method": method, "seed": seed}
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
        found = find_method(method)(compiled.model, compiled.dataset, ablation, seed=seed).circuit
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
