"""How often the paper's objective finds an exported checkpoint's circuit when it is told the size of that circuit.

    python benchmarks/told_size.py                        the column of README
    python benchmarks/told_size.py --programs induction   one program
    python benchmarks/told_size.py --golden               in the format of tests/golden/told_size.json

Each run is `edgeprune prune --method edge-pruning`, as a user starts it, with the paper's settings, on the `task.jsonl`
that `edgeprune export` wrote. Its target is the sparsity of the smallest true circuit. A user does not know that
sparsity, so this is not a method of the registry, and has its own name, `edge-pruning-told-size`.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import torch
from tqdm import tqdm

from edgeprune.cli.main import main as edgeprune
from edgeprune.files.store import load_circuit
from edgeprune.graph import Ablation
from tracr_bridge.checkpoints.export import export
from tracr_bridge.checkpoints.read_back import Exported
from tracr_bridge.checkpoints.task_file import MOST
from tracr_bridge.checkpoints.transplant import Family
from tracr_bridge.compile.catalogue import catalogue, load_program
from tracr_bridge.recovery.recover import assess

ABLATIONS: Final[tuple[Ablation, ...]] = ("mean", "resample")

Row = tuple[bool, int, int, int]
"""Whether the circuit found is exact; its edges, those of the smallest true circuit, and those of the graph."""


def told_size(exported: Exported, ablation: Ablation, out: Path) -> Row:
    """Make one run with the command, told the size, and return its row.

    Raises:
        RuntimeError: the command failed.
    """
    truth = exported.truth(ablation)
    true, total = min(map(len, truth.certificate.circuits)), exported.model.graph.total
    about = ["--model", str(exported.folder), "--task", str(exported.folder / "task.jsonl"), "--ablation", ablation]
    sizes = ["--train", str(MOST), "--validation", "8", "--test", "8"]
    target = ["--method", "edge-pruning", "--target-sparsity", str(1 - true / total)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        status = edgeprune(["prune", *about, *sizes, *target, "--out", str(out), "--json"])
    if status > 1:  # status 1: the run missed its target, which shows as not exact
        raise RuntimeError(f"Expected a run that ends; got exit status {status}: {said.getvalue()}")
    found = load_circuit(out / "circuit.json")
    return assess(truth, found).comparison.exact, len(found), true, total


def measure(name: str, family: Family) -> dict[str, Row]:
    """Return the rows of one checkpoint, by ablation."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        exported = export(load_program(name), family, Path(folder) / "checkpoint")
        return {
            ablation: told_size(exported, ablation, Path(folder) / ablation)
            for ablation in ABLATIONS
            if ablation in exported.certificates
        }


def main() -> None:
    """Run the benchmark as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", nargs="+", help="names (default: all that can be exported)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--golden", action="store_true", help="print the golden table instead of Markdown")
    options = parser.parse_args()
    names = options.programs or [name for name, program in catalogue().items() if program.causal]
    families: tuple[Family, ...] = ("gpt2", "llama")
    asked: dict[str, tuple[str, Family]] = {f"{name}-{family}": (name, family) for name in names for family in families}
    rows: dict[str, dict[str, Row]] = {key: {} for key in asked}
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(measure, *asked[key]): key for key in asked}
        for job in tqdm(as_completed(jobs), total=len(jobs), disable=None, file=sys.stderr):
            rows[jobs[job]] = job.result()
            print(jobs[job], job.result(), file=sys.stderr, flush=True)
    if options.golden:
        lines = [
            f"  {json.dumps(key)}: {json.dumps({a: row[:3] for a, row in of.items()})}" for key, of in rows.items()
        ]
        print("{\n" + ",\n".join(lines) + "\n}")
        return
    print("| checkpoint | ablation | exact | edges found | true | in all |\n|---|---|---|---|---|---|")
    for key, of in rows.items():
        for ablation, (exact, found, true, total) in of.items():
            print(f"| {key} | {ablation} | {'yes' if exact else 'no'} | {found} | {true} | {total} |")
    for ablation in ABLATIONS:
        scored = [of[ablation][0] for of in rows.values() if ablation in of]
        print(f"\n{ablation}: {sum(scored)} of {len(scored)} exact")


if __name__ == "__main__":
    main()
