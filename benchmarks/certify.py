"""Cost of certifying all shipped programs, or some of them, also compared with a naive version; in one process.

    python benchmarks/certify.py --ablations zero mean resample     all programs, minutes; counts of each status
    python benchmarks/certify.py --program shuffle_dyck1 --naive    one program and the naive version, half a minute
    python benchmarks/certify.py --program shuffle_dyck1 --naive --ablations zero resample          10 minutes

The naive version only finds the edges that are necessary one by one: it runs the model without each edge of the graph,
one mask and one input (pair) at a time. This toolkit also proves the true circuits.
"""

import argparse
import time
from collections import Counter

import torch

from edgeprune.ablation import Ablator
from edgeprune.errors import DegenerateProgram
from edgeprune.graph import ABLATIONS, Ablation, Edge
from edgeprune.masks import mask_of
from edgeprune.metrics.distances import ATOL
from tracr_bridge.certify.truth import Truth
from tracr_bridge.compile.catalogue import catalogue, load_program
from tracr_bridge.compile.compile import Compiled, compile_program
from tracr_bridge.recovery.known_models import certify


@torch.no_grad()
def naively_necessary(compiled: Compiled, ablation: Ablation) -> frozenset[Edge]:
    """Return the edges that are necessary one by one, found with one mask and one input (pair) at a time."""
    model, dataset = compiled.model, compiled.dataset
    ablator = Ablator(model, dataset, ablation)
    rows = torch.arange(len(dataset))
    pairs = torch.stack(dataset.pairs(), 1) if ablation == "resample" else torch.stack([rows, rows], 1)
    necessary: set[Edge] = set()
    for edge in model.graph.edges:
        mask = mask_of(model.graph, set(model.graph.edges) - {edge})
        worst = 0.0
        for clean, corrupted in pairs:
            batch = dataset.take(clean[None], corrupted[None])
            difference = (model(batch.clean, mask, ablator(batch)) - batch.target).abs().amax(-1)
            worst = max(worst, float(difference[batch.scored].max()))
        if worst > ATOL:
            necessary.add(edge)
    return frozenset(necessary)


def necessary_by_judge(truth: Truth) -> frozenset[Edge]:
    """Return the same edges, found with all masks at once."""
    graph = truth.circuit.graph
    masks = torch.stack([mask_of(graph, set(graph.edges) - {edge}) for edge in graph.edges])
    kept = truth.judge.reproduces(masks).tolist()
    return frozenset(edge for edge, dispensable in zip(graph.edges, kept, strict=True) if not dispensable)


def timed_certificate(compiled: Compiled, ablation: Ablation) -> tuple[Truth | None, float]:
    """Print and return the truth and its seconds; the truth is None if no method could fail."""
    start = time.perf_counter()
    try:
        truth = certify(compiled, ablation)
    except DegenerateProgram:
        print(f"{compiled.program.name:24} {ablation:9} refused: nothing could fail")
        return None, 0.0
    seconds = time.perf_counter() - start
    certificate = truth.certificate
    sizes = ", ".join(str(len(circuit)) for circuit in certificate.circuits)
    print(
        f"{compiled.program.name:24} {ablation:9} {seconds:7.2f} s {truth.judge.rows:10,} masked inputs, "
        f"{len(truth.structural):3} structural edges, {certificate.status}: {sizes}",
        flush=True,
    )
    return truth, seconds


def main() -> None:
    """Time certificates; print totals and the ratio to the naive version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", action="append", help="may be repeated (default: all)")
    parser.add_argument("--ablations", nargs="+", choices=ABLATIONS, default=["zero", "resample"])
    parser.add_argument("--naive", action="store_true", help="run the naive version too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    naive_seconds = ours_seconds = 0.0
    rows, statuses = 0, Counter[str]()
    for name in options.program or catalogue():
        compiled = compile_program(load_program(name))
        for ablation in options.ablations:
            truth, seconds = timed_certificate(compiled, ablation)
            if truth is None:
                continue
            ours_seconds, rows = ours_seconds + seconds, rows + truth.judge.rows
            statuses[truth.certificate.status] += 1
            if options.naive:
                start = time.perf_counter()
                necessary = naively_necessary(compiled, ablation)
                naive = time.perf_counter() - start
                assert necessary == necessary_by_judge(truth), "both find the same edges necessary"
                print(f"{'':24} {ablation:9} {naive:7.2f} s naive: {len(necessary)} edges are necessary one by one")
                naive_seconds += naive
    print(f"together: {ours_seconds:.1f} s, {rows:,} masked inputs")
    print("certificates:", ", ".join(f"{count} {status}" for status, count in statuses.most_common()))
    if options.naive:
        print(f"naive: {naive_seconds:.1f} s, ratio {naive_seconds / ours_seconds:.0f}")


if __name__ == "__main__":
    main()
