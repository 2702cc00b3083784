"""Trials behind the defaults of Edge Pruning: each trial is one configuration for all programs.

    python benchmarks/trials.py                     the table of trials in docs/exact-recovery.md
    python benchmarks/trials.py --only baseline     one trial

Prints for each trial how many runs are exact, and the others as program/ablationSEED: -missing +extra.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from tqdm import tqdm

from edgeprune.errors import DegenerateProgram
from edgeprune.methods.edge_pruning import configurations
from edgeprune.methods.edge_pruning.config import LossConfig, PruningConfig
from edgeprune.methods.edge_pruning.counterexamples import CounterexampleConfig
from edgeprune.methods.edge_pruning.ending import Converged
from edgeprune.methods.edge_pruning.engine import prune_edges
from edgeprune.methods.edge_pruning.gradient import LikelihoodRatio, ThroughZ
from edgeprune.methods.edge_pruning.optimizer import AdamConfig
from edgeprune.methods.edge_pruning.pressure import Penalty
from edgeprune.methods.settings import with_settings
from tracr_bridge.compile.catalogue import catalogue, load_program
from tracr_bridge.compile.compile import compile_program
from tracr_bridge.recovery.known_models import certify
from tracr_bridge.recovery.recover import assess

MINIMAX = configurations.MINIMAX
THROUGH_Z = replace(MINIMAX, gradient=ThroughZ(mask_samples=64, explored=0.1), final_check=None)
BASELINE = replace(
    MINIMAX,
    name="baseline",
    steps=300,
    batch_size=8,
    gradient=ThroughZ(mask_samples=16),
    pressure=Penalty(penalty=0.05, penalty_warmup=300),
    optimizer=AdamConfig(learning_rate=0.1, learning_rate_decay=0.5),
    masks=replace(MINIMAX.masks, initial_log_alpha=5.0),
    loss=LossConfig(loss="divergence", logit_scale=10.0),
    counterexamples=CounterexampleConfig(),
    ending=Converged(patience=300, second_look=False),
    final_check=None,
)


def changed(config: PruningConfig, **settings: Any) -> PruningConfig:
    """Return `config` with other settings, and without the final check if the settings do not allow one."""
    if settings.get("loss", "worst") != "worst" or settings.get("counterexamples") == 0:
        config = replace(config, final_check=None)
    return with_settings(config, settings)


TRIALS = {
    "baseline": BASELINE,
    "baseline, squared loss": changed(BASELINE, loss="squared"),
    "baseline, worst loss": changed(BASELINE, loss="worst"),
    "baseline, 64 masks": changed(BASELINE, mask_samples=64),
    "baseline, a tenth explored": changed(BASELINE, explored=0.1),
    "baseline, likelihood ratio": replace(
        BASELINE, gradient=LikelihoodRatio(mask_samples=16, explored=1.0, rounded=False)
    ),
    "defaults, through z": THROUGH_Z,
    "defaults, samples not rounded": changed(MINIMAX, rounded=False),
    "defaults, divergence": changed(MINIMAX, loss="divergence", logit_scale=10.0),
    "defaults, squared loss": changed(MINIMAX, loss="squared"),
    "defaults, all explored": changed(MINIMAX, explored=1.0),
    "defaults, a quarter explored": changed(MINIMAX, explored=0.25),
    "defaults, 8 inputs": changed(MINIMAX, batch_size=8),
    "defaults, 16 masks": changed(MINIMAX, mask_samples=16),
    "defaults, 32 masks": changed(MINIMAX, mask_samples=32),
    "defaults, no counterexamples": changed(MINIMAX, counterexamples=0),
    "defaults, epsilon 1e-8": changed(MINIMAX, epsilon=1e-8),
    "defaults, epsilon 1e-6": changed(MINIMAX, epsilon=1e-6),
    "defaults, epsilon 1e-5": changed(MINIMAX, epsilon=1e-5),
    "defaults, epsilon 1e-3": changed(MINIMAX, epsilon=1e-3),
    "defaults, longer memory": changed(MINIMAX, betas=(0.9, 0.999)),
    "defaults, penalty 0.1": changed(MINIMAX, penalty=0.1),
    "defaults, penalty 0.01": changed(MINIMAX, penalty=0.01),
    "defaults, patience 50": changed(MINIMAX, patience=50, certain_for=1000),
    "defaults, patience 75": changed(MINIMAX, patience=75, certain_for=1000),
    "defaults, patience 100": changed(MINIMAX, patience=100, certain_for=1000),
    "defaults, patience alone": changed(MINIMAX, certain_for=1000),
    "defaults, no second look": changed(MINIMAX, second_look=False, patience=300, certain_for=1000),
    "defaults, range 6": changed(MINIMAX, largest_log_alpha=6.0),
    "defaults": MINIMAX,
}
"""Each trial changes one thing of the baseline, or changes or removes one thing of the defaults."""

COMPILED = configurations.COMPILED
PAPERS = {
    "paper's": COMPILED,
    "paper's, 1 mask": changed(COMPILED, mask_samples=1),
    "paper's, 16 masks": changed(COMPILED, mask_samples=16),
    "paper's, divergence of 10 x": changed(COMPILED, logit_scale=10.0),
    "paper's, divergence of 1 x": changed(COMPILED, logit_scale=1.0),
    "paper's, learning rate 0.8": changed(COMPILED, learning_rate=0.8),
    "paper's, multipliers' 0.8": changed(COMPILED, multiplier_learning_rate=0.8),
}
"""Trials of the paper's objective; run only if `--only` names them."""

ALL: dict[str, PruningConfig] = {**TRIALS, **PAPERS}


def run(name: str, *, trials: dict[str, PruningConfig], seeds: int) -> dict[str, list[str]]:
    """Run all trials on one program; return for each the mistakes of its runs, "" for an exact run."""
    torch.set_num_threads(1)
    compiled = compile_program(load_program(name))
    name = compiled.program.name
    results: dict[str, list[str]] = {trial: [] for trial in trials}
    for ablation in ("zero", "resample"):
        try:
            truth = certify(compiled, ablation)
        except DegenerateProgram:
            continue
        for trial, config in trials.items():
            for seed in range(seeds):
                found = prune_edges(compiled.model, compiled.dataset, ablation, seed=seed, config=config).circuit
                assessment = assess(truth, found)
                truth, comparison = assessment.truth, assessment.comparison
                what = f"{name}/{ablation}{seed}: -{len(comparison.missing)} +{len(comparison.extra)}"
                results[trial].append("" if comparison.exact else what)
    return results


def main() -> None:
    """Run the trials that the arguments name, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ALL), default=list(TRIALS))
    parser.add_argument("--programs", nargs="+", default=None, help="as on the command line (default: all)")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    trials = {name: ALL[name] for name in options.only}
    names = options.programs or list(catalogue())
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        work = pool.map(partial(run, trials=trials, seeds=options.seeds), names)
        results = list(tqdm(work, total=len(names), disable=None, file=sys.stderr))
    print("| trial | exact | not exact |\n|---|---|---|")
    for trial in trials:
        runs = [outcome for result in results for outcome in result[trial]]
        failures = [what for what in runs if what]
        print(f"| {trial} | {len(runs) - len(failures)}/{len(runs)} | {'; '.join(failures)} |")


if __name__ == "__main__":
    main()
