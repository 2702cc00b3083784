"""The trials behind the defaults of Edge Pruning: each is one configuration for all programs.

    python benchmarks/trials.py                     the table of trials in docs/exact-recovery.md
    python benchmarks/trials.py --only baseline     one of them

Prints, for each trial, how many runs are exact, and which are not: program/ablation+seed: -missing +extra.
"""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import torch
from tqdm import tqdm

from edgeprune.errors import DegenerateProgram
from edgeprune.graph import compare
from edgeprune.methods.edge_pruning import PenaltyConfig, prune_with_penalty
from tracr_bridge.catalogue import catalogue
from tracr_bridge.compile import compile_program
from tracr_bridge.recover import certify, closest, reconcile

BASELINE = PenaltyConfig(
    gradient="path", loss="divergence", logit_scale=10.0, explored=1.0, initial_log_alpha=5.0,
    mask_samples=16, batch_size=8, steps=300, learning_rate=0.1, betas=(0.9, 0.99), penalty=0.05, penalty_warmup=300,
)  # fmt: skip
RATIO = replace(
    BASELINE, gradient="likelihood-ratio", loss="worst", mask_samples=128, batch_size=16, penalty_warmup=100
)
SUBSET = replace(RATIO, explored=0.1, initial_log_alpha=2.0)
QUICK = replace(SUBSET, betas=(0.9, 0.9), learning_rate=0.2, steps=400)
TRIALS = {
    "baseline": BASELINE,
    "squared loss": replace(BASELINE, loss="squared", penalty=0.02),
    "worst loss": replace(BASELINE, loss="worst", penalty=0.02),
    "a quarter explored": replace(BASELINE, explored=0.25, mask_samples=32),
    "likelihood ratio, worst loss": RATIO,
    "a tenth explored, start at 2": SUBSET,
    "shorter memory, larger steps": QUICK,
    "800 steps": replace(QUICK, steps=800),
    "64 masks x 32 inputs": replace(QUICK, steps=800, mask_samples=64, batch_size=32),
    "defaults": PenaltyConfig(),
}
"""Each changes what its name says of the one before, or of the baseline while that stands."""


def run(name: str, *, trials: dict[str, PenaltyConfig], seeds: int) -> dict[str, list[tuple[str, float]]]:
    """For each trial the failures ("" for none) and seconds of its runs on one program."""
    torch.set_num_threads(1)
    compiled = compile_program(catalogue()[name])
    results: dict[str, list[tuple[str, float]]] = {trial: [] for trial in trials}
    for ablation in ("zero", "resample"):
        try:
            truth = certify(compiled, ablation)
        except DegenerateProgram:
            continue
        for trial, config in trials.items():
            for seed in range(seeds):
                start = time.perf_counter()
                found = prune_with_penalty(compiled.model, compiled.dataset, ablation, seed=seed, config=config).circuit
                seconds = time.perf_counter() - start
                truth = reconcile(truth, found)
                comparison = compare(found, closest(truth, found))
                what = f"{name}/{ablation}{seed}: -{len(comparison.missing)} +{len(comparison.extra)}"
                results[trial].append(("" if comparison.exact else what, seconds))
    return results


def main() -> None:
    """Run the trials that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument("--programs", nargs="+", default=None, help="names (default: all)")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    trials = {name: TRIALS[name] for name in options.only}
    names = options.programs or list(catalogue())
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        work = pool.map(partial(run, trials=trials, seeds=options.seeds), names)
        results = list(tqdm(work, total=len(names), disable=None, file=sys.stderr))
    print("| trial | exact | seconds a run | not exact |\n|---|---|---|---|")
    for trial in trials:
        runs = [outcome for result in results for outcome in result[trial]]
        failures = [what for what, _ in runs if what]
        seconds = sum(seconds for _, seconds in runs) / len(runs)
        print(f"| {trial} | {len(runs) - len(failures)}/{len(runs)} | {seconds:.1f} | {'; '.join(failures)} |")


if __name__ == "__main__":
    main()
