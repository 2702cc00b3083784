"""The trials behind the defaults of Edge Pruning: each is one configuration for all programs.

    python benchmarks/trials.py                     the table of trials in docs/exact-recovery.md
    python benchmarks/trials.py --only baseline     one of them

Prints, for each trial, how many runs are exact, and which are not: program/ablation+seed: -missing +extra.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import torch
from tqdm import tqdm

from edgeprune.errors import DegenerateProgram
from edgeprune.graph import Ablation
from edgeprune.methods import Discovery
from edgeprune.methods.edge_pruning import PenaltyConfig, prune_with_penalty
from edgeprune.methods.edge_pruning_target import TargetConfig, prune_to_target
from tracr_bridge.catalogue import catalogue, load_program
from tracr_bridge.compile import Compiled, compile_program
from tracr_bridge.known import certify
from tracr_bridge.recover import assess

DEFAULTS = PenaltyConfig()
BASELINE = PenaltyConfig(
    gradient="path", loss="divergence", logit_scale=10.0, explored=1.0, initial_log_alpha=5.0, mask_samples=16,
    batch_size=8, steps=300, learning_rate=0.1, betas=(0.9, 0.999), epsilon=1e-8, penalty=0.05, penalty_warmup=300,
    hard_pairs=0, patience=300, second_look=False, rounded=False,
)  # fmt: skip
TRIALS = {
    "baseline": BASELINE,
    "baseline, squared loss": replace(BASELINE, loss="squared"),
    "baseline, worst loss": replace(BASELINE, loss="worst"),
    "baseline, 64 masks": replace(BASELINE, mask_samples=64),
    "baseline, a tenth explored": replace(BASELINE, explored=0.1),
    "baseline, likelihood ratio": replace(BASELINE, gradient="likelihood-ratio"),
    "defaults, path": replace(DEFAULTS, gradient="path", rounded=False),
    "defaults, samples not rounded": replace(DEFAULTS, rounded=False),
    "defaults, divergence": replace(DEFAULTS, loss="divergence", logit_scale=10.0),
    "defaults, squared loss": replace(DEFAULTS, loss="squared"),
    "defaults, all explored": replace(DEFAULTS, explored=1.0),
    "defaults, a quarter explored": replace(DEFAULTS, explored=0.25),
    "defaults, 8 inputs": replace(DEFAULTS, batch_size=8),
    "defaults, 16 masks": replace(DEFAULTS, mask_samples=16),
    "defaults, 32 masks": replace(DEFAULTS, mask_samples=32),
    "defaults, no hard pairs": replace(DEFAULTS, hard_pairs=0),
    "defaults, epsilon 1e-8": replace(DEFAULTS, epsilon=1e-8),
    "defaults, epsilon 1e-6": replace(DEFAULTS, epsilon=1e-6),
    "defaults, epsilon 1e-5": replace(DEFAULTS, epsilon=1e-5),
    "defaults, epsilon 1e-3": replace(DEFAULTS, epsilon=1e-3),
    "defaults, longer memory": replace(DEFAULTS, betas=(0.9, 0.999)),
    "defaults, penalty 0.1": replace(DEFAULTS, penalty=0.1),
    "defaults, penalty 0.01": replace(DEFAULTS, penalty=0.01),
    "defaults, patience 50": replace(DEFAULTS, patience=50, rest=1000),
    "defaults, patience 75": replace(DEFAULTS, patience=75, rest=1000),
    "defaults, patience 100": replace(DEFAULTS, patience=100, rest=1000),
    "defaults, no rest": replace(DEFAULTS, rest=1000),
    "defaults, no second look": replace(DEFAULTS, second_look=False, patience=300, rest=1000),
    "defaults, range 6": replace(DEFAULTS, largest_log_alpha=6.0),
    "defaults": DEFAULTS,
}
"""Each changes one thing of the baseline, or takes one thing away from the defaults."""

TARGETS = {
    "target": TargetConfig(),
    "target, 1 mask": TargetConfig(mask_samples=1),
    "target, 16 masks": TargetConfig(mask_samples=16),
    "target, divergence of 10 x": TargetConfig(logit_scale=10.0),
    "target, divergence of 1 x": TargetConfig(logit_scale=1.0),
    "target, learning rate 0.8": TargetConfig(learning_rate=0.8),
    "target, multipliers' 0.8": TargetConfig(lagrangian_learning_rate=0.8),
}
"""The same for the paper's objective; run when `--only` names them."""

ALL: dict[str, PenaltyConfig | TargetConfig] = {**TRIALS, **TARGETS}


def discover(compiled: Compiled, ablation: Ablation, config: PenaltyConfig | TargetConfig, seed: int) -> Discovery:
    """One run of the method that a configuration belongs to."""
    if isinstance(config, TargetConfig):
        return prune_to_target(compiled.model, compiled.dataset, ablation, seed=seed, config=config)
    return prune_with_penalty(compiled.model, compiled.dataset, ablation, seed=seed, config=config)


def run(name: str, *, trials: dict[str, PenaltyConfig | TargetConfig], seeds: int) -> dict[str, list[str]]:
    """For each trial what its runs on one program got wrong: "" for nothing."""
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
                found = discover(compiled, ablation, config, seed).circuit
                assessment = assess(truth, found)
                truth, comparison = assessment.truth, assessment.comparison
                what = f"{name}/{ablation}{seed}: -{len(comparison.missing)} +{len(comparison.extra)}"
                results[trial].append("" if comparison.exact else what)
    return results


def main() -> None:
    """Run the trials that the arguments name."""
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
