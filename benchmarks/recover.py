"""How often a method recovers each program's circuit exactly, and what each phase costs.

    python benchmarks/recover.py                             the table of docs/exact-recovery.md
    python benchmarks/recover.py --ablations mean            the same under mean ablation
    python benchmarks/recover.py --method edge-pruning --programs reverse xproportion

Seconds are wall-clock, one thread a process; those of discovery are means over seeds. Progress is on standard error.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import torch
from tqdm import tqdm

from edgeprune.errors import DegenerateProgram
from edgeprune.graph import ABLATIONS, Ablation
from edgeprune.methods import METHODS
from tracr_bridge.compile.catalogue import catalogue, load_program
from tracr_bridge.compile.compile import compile_program
from tracr_bridge.recovery.known_models import certify
from tracr_bridge.recovery.recover import assess


def measure(name: str, ablations: list[Ablation], method: str, seeds: int) -> list[dict[str, Any]]:
    """Return one row for each ablation of a program."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    compiled = compile_program(load_program(name))
    compile_seconds = time.perf_counter() - start
    rows: list[dict[str, Any]] = []
    for ablation in ablations:
        row: dict[str, Any] = {"program": compiled.program.name, "ablation": ablation, "compile": compile_seconds}
        start = time.perf_counter()
        try:
            truth = certify(compiled, ablation)
        except DegenerateProgram as refused:
            rows.append(row | {"refused": str(refused)})
            continue
        row["certify"] = time.perf_counter() - start
        exact, found, wrong = 0, list[int](), list[str]()
        start = time.perf_counter()
        for seed in range(seeds):
            circuit = METHODS[method](compiled.model, compiled.dataset, ablation, seed=seed).circuit
            assessment = assess(truth, circuit)
            truth, comparison = assessment.truth, assessment.comparison
            exact += comparison.exact
            found.append(len(circuit))
            if not comparison.exact:
                wrong.append(f"seed {seed}: {len(comparison.missing)} missing, {len(comparison.extra)} extra")
        row["discover"] = (time.perf_counter() - start) / seeds
        sizes = [len(circuit) for circuit in truth.certificate.circuits]
        row |= {"total": compiled.model.graph.total, "structural": len(truth.structural), "true": sizes}
        rows.append(row | {"status": truth.certificate.status, "exact": exact, "found": found, "wrong": wrong})
    return rows


def print_table(rows: list[dict[str, Any]], seeds: int) -> None:
    """Print the rows as a Markdown table, then the total and all runs that are not exact."""
    print(
        "| program | ablation | exact | edges | structural | true | status | found | compile s | certify s | find s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        if "refused" in row:
            print(f"| {row['program']} | {row['ablation']} | refused: the empty circuit reproduces it |||||||||")
            continue
        sizes = sorted(set(row["true"]))
        spread = [str(n) for n in sorted(set(row["found"]))]
        print(
            f"| {row['program']} | {row['ablation']} | {row['exact']}/{seeds} | {row['total']} | {row['structural']} "
            f"| {', '.join(map(str, sizes))} | {row['status']} | {', '.join(spread)} | {row['compile']:.1f} "
            f"| {row['certify']:.1f} | {row['discover']:.1f} |"
        )
    scored = [row for row in rows if "refused" not in row]
    print(f"\n{sum(row['exact'] for row in scored)} of {seeds * len(scored)} runs exact")
    for row in scored:
        for what in row["wrong"]:
            print(f"- {row['program']}, {row['ablation']}, {what}")


def main() -> None:
    """Run the benchmark as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", nargs="+", default=None, help="names (default: all)")
    parser.add_argument("--ablations", nargs="+", choices=ABLATIONS, default=["zero", "resample"])
    parser.add_argument("--method", choices=list(METHODS), default="edge-pruning-minimax")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of the table")
    options = parser.parse_args()
    names: list[str] = options.programs or list(catalogue())
    rows: dict[str, list[dict[str, Any]]] = {}
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(measure, name, options.ablations, options.method, options.seeds): name for name in names}
        for job in tqdm(as_completed(jobs), total=len(jobs), disable=None, file=sys.stderr):
            rows[jobs[job]] = job.result()
            print(f"{jobs[job]}: {[row.get('exact') for row in rows[jobs[job]]]}", file=sys.stderr, flush=True)
    ordered = [row for name in names for row in rows[name]]
    if options.json:
        print(json.dumps(ordered))
    else:
        print_table(ordered, options.seeds)


if __name__ == "__main__":
    main()
