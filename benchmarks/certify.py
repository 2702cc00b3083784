"""What certifying costs: this toolkit beside a naive version, in one process.

    python benchmarks/certify.py                                    shuffle_dyck1 under zero, half a minute
    python benchmarks/certify.py --ablations zero resample          10 minutes

Both find the candidate: the edges whose removal alone breaks reproduction. The naive version runs every edge of the
graph, one mask and one input (pair) at a time. Ours goes on to prove the true circuit, which the naive one does not.
"""

import argparse
import time

import torch

from edgeprune.ablation import Ablator
from edgeprune.graph import ABLATIONS, Ablation
from edgeprune.masks import mask_of
from edgeprune.metrics import ATOL
from tracr_bridge.catalogue import load_program
from tracr_bridge.compile import Compiled, compile_program
from tracr_bridge.known import certify


@torch.no_grad()
def naive_candidate(compiled: Compiled, ablation: Ablation) -> int:
    """How many edges are necessary one by one, found the obvious way."""
    model, dataset = compiled.model, compiled.dataset
    ablator = Ablator(model, dataset, ablation)
    rows = torch.arange(len(dataset))
    pairs = torch.stack(dataset.pairs(), 1) if ablation == "resample" else torch.stack([rows, rows], 1)
    necessary = 0
    for edge in model.graph.edges:
        mask = mask_of(model.graph, set(model.graph.edges) - {edge})
        worst = 0.0
        for clean, corrupted in pairs:
            batch = dataset.take(clean[None], corrupted[None])
            difference = (model(batch.clean, mask, ablator(batch)) - batch.target).abs().amax(-1)
            worst = max(worst, float(difference[batch.scored].max()))
        necessary += worst > ATOL
    return necessary


def main() -> None:
    """Time both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="shuffle_dyck1")
    parser.add_argument("--ablations", nargs="+", choices=ABLATIONS, default=["zero"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    compiled = compile_program(load_program(options.program))
    print(f"{options.program}: {compiled.model.graph.total} edges, {len(compiled.model.structural)} structural")
    naive_seconds = ours_seconds = 0.0
    for ablation in options.ablations:
        start = time.perf_counter()
        truth = certify(compiled, ablation)
        ours = time.perf_counter() - start
        start = time.perf_counter()
        candidate = naive_candidate(compiled, ablation)
        naive = time.perf_counter() - start
        assert candidate == len(truth.certificate.candidate), "both find the same candidate"
        print(
            f"{ablation}: naive candidate {naive:.1f} s, certificate {ours:.2f} s, {truth.judge.rows:,} masked inputs"
        )
        naive_seconds += naive
        ours_seconds += ours
    print(f"together: naive {naive_seconds:.1f} s, ours {ours_seconds:.2f} s, ratio {naive_seconds / ours_seconds:.0f}")


if __name__ == "__main__":
    main()
