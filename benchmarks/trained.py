"""Methods on trained models whose true circuits are known, because all subsets of their edges were run.

python benchmarks/trained.py [--json FILE] [--jobs 2]

Trains models on three tasks at three seeds, as `edgeprune train-toy` does, and finds their true circuits at three
tolerances of the mean KL divergence, under resample ablation. `edgeprune prune` itself makes all runs, on all examples:

- edge-pruning-tolerance, given the tolerance, and the same polished;
- edge-pruning, the paper's, told how many edges the smallest true circuit has, and the same polished;
- edge-pruning-minimax, which is given nothing, as it lets no output change by more than 0.01: it is compared with the
  circuits that are true if no example's divergence may be above 0.000001.

A run is exact if its circuit is a true one, and within if its circuit is within the tolerance. Prints a row for each
model and tolerance, then totals.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import torch
from tqdm import tqdm

from edgeprune.files.store import write_json
from edgeprune.masks import circuit_mask
from edgeprune.methods.edge_pruning.config import PruningConfig
from edgeprune.methods.edge_pruning.configurations import MINIMAX, PAPER, TOLERANCE
from edgeprune.methods.settings import with_settings
from edgeprune.runs.config import RunConfig
from edgeprune.runs.prune import prune
from edgeprune.tasks import Sizes
from edgeprune.toys import LESSONS
from edgeprune.toys.train import TASK, train_toy
from tracr_bridge.certify.trained_models import Loaded, Trained, load_trained
from tracr_bridge.certify.truth import Truth

TOLERANCES: Final = (0.01, 0.1, 1.0)
"""Tolerances of the mean KL divergence over examples, in nats."""

NONE: Final = 1e-6
"""Largest KL divergence of any example, in nats, that counts as no change."""

STEPS: Final = 1500
"""Optimiser steps of `edge-pruning` and `edge-pruning-tolerance`; minimax ends when it has converged."""

ALL: Final = 2**20
"""Examples to ask for: more than any task has, so that all are used."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A run: its name in the table, and its settings for `prune`."""

    name: str
    pruning: PruningConfig
    polish: bool = False


def asked_of(truth: Truth, tolerance: float) -> Iterator[Asked]:
    """Yield all runs at a tolerance; of the truth, a run is told at most the size."""
    if tolerance == NONE:
        yield Asked("edge-pruning-minimax", MINIMAX)
        return
    within = with_settings(TOLERANCE, {"tolerance": tolerance, "steps": STEPS, "judged": ALL})
    share = 1 - len(truth.circuit) / truth.circuit.graph.total
    told = with_settings(PAPER, {"target_sparsity": share, "steps": STEPS, "judged": ALL})
    yield Asked("edge-pruning-tolerance", within)
    yield Asked("edge-pruning-tolerance-polished", within, polish=True)
    yield Asked("edge-pruning-told-size", told)
    yield Asked("edge-pruning-told-size-polished", told, polish=True)


def run(folder: Path, seed: int, asked: Asked, out: Path) -> tuple[frozenset[Any], torch.Tensor]:
    """Prune the model in `folder`; return the edges of the circuit, and its mask."""
    config = RunConfig(
        model=str(folder),
        task=str(folder / TASK),
        sizes=Sizes(train=ALL, validation=100, test=100),
        pruning=asked.pruning,
        polish=asked.polish,
        seed=seed,
    )
    circuit = prune(config, out).saved.circuit
    return circuit.edges, circuit_mask(circuit)


def rows_of(task: str, seed: int) -> list[Row]:
    """Train a model, find its true circuits, run all methods, and return their rows."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / task
        accuracy = train_toy(folder, task, seed=seed).accuracy
        about = Trained(model=str(folder), task=str(folder / TASK), tolerance=NONE, criterion="worst")
        asked = [about, *(replace(about, tolerance=tolerance, criterion="mean") for tolerance in TOLERANCES)]
        return [
            {"task": task, "seed": seed, "accuracy": accuracy} | row
            for each in asked
            for row in _at(load_trained(each), seed)
        ]


def _at(given: Loaded, seed: int) -> Iterator[Row]:
    truth, folder, tolerance = given.truth("resample"), Path(given.asked.model), given.asked.tolerance
    true = [circuit.edges for circuit in truth.certificate.circuits]
    about = {"tolerance": tolerance, "status": truth.certificate.status, "true": [len(each) for each in true]}
    for asked in asked_of(truth, tolerance):
        with tempfile.TemporaryDirectory() as out:
            edges, mask = run(folder, seed, asked, Path(out) / "run")
        loss = float(truth.judge.differences(mask[None])[0])
        yield about | {"method": asked.name, "edges": len(edges), "kl": loss, "exact": edges in true}


def shown(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the table, in Markdown."""
    methods = sorted({row["method"] for row in rows}, key=lambda name: ("minimax" in name, "told" in name, name))
    yield f"| model | tolerance | true circuits | {' | '.join(methods)} |"
    yield f"|---|---|---|{'---|' * len(methods)}"
    keys = list(dict.fromkeys((row["task"], row["seed"], row["tolerance"]) for row in rows))
    for task, seed, tolerance in keys:
        some = [row for row in rows if (row["task"], row["seed"], row["tolerance"]) == (task, seed, tolerance)]
        by_method = {row["method"]: row for row in some}
        cells = [
            f"{'**exact**, ' if row['exact'] else ''}{row['edges']} at {row['kl']:.2g}" if row else ""
            for row in map(by_method.get, methods)
        ]
        true = f"{some[0]['status']}: {', '.join(map(str, some[0]['true']))}"
        criterion = "on each" if tolerance == NONE else "mean"
        yield f"| {task}, seed {seed} | {tolerance:g}, {criterion} | {true} | {' | '.join(cells)} |"
    for says, key in (("exact", "exact"), ("within", "within")):
        counts = [
            f"{sum(bool(row[key]) if key in row else row['kl'] <= row['tolerance'] for row in some)} of {len(some)}"
            for some in ([row for row in rows if row["method"] == method] for method in methods)
        ]
        yield f"| {says} | | | {' | '.join(counts)} |"


def main() -> None:
    """Run everything, print the table, and write the rows if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows too")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of models and methods (default: 3)")
    options = parser.parse_args()
    asked = [(task, seed) for seed in range(options.seeds) for task in LESSONS if task != "ioi"]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(partial(rows_of, *each)) for each in asked]
        rows = [row for future in tqdm(futures, desc="models", disable=None) for row in future.result()]
    rows.sort(key=lambda row: (list(LESSONS).index(row["task"]), row["seed"], row["tolerance"]))
    print("\n".join(shown(rows)))
    if options.json is not None:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
