"""What attribution patching costs, in passes of the model forward and backward.

    python benchmarks/attribution.py          four programs under zero and resample, seconds

Both run every input of the domain once, in batches of one size, one after the other in this process. The pass is that
of the masked model with all edges kept, from its inputs to the gradient of the summed loss by the mask.
"""

import statistics
import time
from collections.abc import Callable

import torch

from edgeprune.ablation import Ablator
from edgeprune.graph import Ablation
from edgeprune.methods.eap import EapConfig, attribution_patching
from edgeprune.methods.objective import Objective
from tracr_bridge.catalogue import load_program
from tracr_bridge.compile import Compiled, compile_program

PROGRAMS = ("hist", "reverse", "sort_freq", "shuffle_dyck1")
REPEATS = 20


def seconds(run: Callable[[], object]) -> float:
    """The median of `REPEATS`."""
    times: list[float] = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def row(compiled: Compiled, ablation: Ablation) -> str:
    """Both timed on one program."""
    model, dataset, config = compiled.model, compiled.dataset, EapConfig()
    ablator, objective = Ablator(model, dataset, ablation), Objective(dataset, config.loss)
    batches = [(b, ablator(b)) for b in dataset.batches(config.batch_size, torch.Generator().manual_seed(0))]

    def both_ways() -> None:
        for batch, ablated in batches:
            mask = torch.ones(len(model.graph.sources), len(model.graph.destinations), requires_grad=True)
            loss = objective.per_input(model(batch.clean, mask, ablated), batch).sum()
            torch.autograd.grad(loss, mask)

    plain = seconds(both_ways)
    eap = seconds(lambda: attribution_patching(model, dataset, ablation, config=config))
    return f"| {compiled.program.name} | {ablation} | {1e3 * plain:.1f} | {1e3 * eap:.1f} | {eap / plain:.2f} |"


def main() -> None:
    """Print a row for each program and ablation."""
    torch.set_num_threads(1)
    print("| program | ablation | forward and backward, ms | EAP, ms | ratio |\n|---|---|---|---|---|")
    for name in PROGRAMS:
        compiled = compile_program(load_program(name))
        for ablation in ("zero", "resample"):
            print(row(compiled, ablation))


if __name__ == "__main__":
    main()
