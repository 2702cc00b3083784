"""Why true edges go unseen: what AutoCircuit's gradient says of them, and what ablating them alone does.

`python why.py PROGRAM ...` prints a line for every true edge that its edge attribution patching misses, and how well
its scores rank edges, as they are and without those below NOISE.
"""

import sys
from collections import Counter

import torch
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode, set_all_masks, train_mask_mode
from auto_circuit.utils.tensor_ops import batch_avg_answer_diff, batch_avg_answer_val
from auto_circuit_peer import THRESHOLD, cells, edge_attribution_patching, prepare

from edgeprune.evaluation.measures import roc
from edgeprune.graph import Ablation, Edge
from tracr_bridge.compile.catalogue import load_program
from tracr_bridge.compile.compile import compile_program
from tracr_bridge.recovery.known_models import certify

NOISE = 1e-4
"""Score below which a gradient counts as zero."""

STEPS = 21
"""Masks between an edge that is kept and one that is ablated."""


def along_the_edge(run, edge):
    """The loss of the first batch and its slope as `edge` alone goes from kept to ablated, and how outputs change."""
    batch = next(iter(run.batches))
    patched = src_ablations(run.model, batch.corrupt).clone()
    measure = batch_avg_answer_diff if run.logits else batch_avg_answer_val
    with torch.no_grad():
        clean = run.model(batch.clean)
    losses, slopes, change = [], [], 0.0
    for value in torch.linspace(0, 1, STEPS).tolist():
        with train_mask_mode(run.model):
            set_all_masks(run.model, val=0.0)
            edge.patch_mask(run.model).data[edge.patch_idx] = value
            with patch_mode(run.model, patched.clone()):
                outputs = run.model(batch.clean)
                loss = -measure(outputs, batch)
                loss.backward()
            slopes.append(float(edge.patch_mask(run.model).grad[edge.patch_idx]))
            losses.append(loss.item())
            change = float((outputs.detach() - clean).abs().max())
    return losses, slopes, change


def kind(edge: Edge) -> str:
    """Where it leads."""
    node = edge.destination
    return {"a": f"a head's {node.port}", "m": "an MLP"}.get(node.kind, "the logits")


def main() -> None:
    """Look into every program named on the command line, under zero and resample."""
    areas: dict[str, list[float]] = {"as they are": [], "below NOISE set to zero": []}
    counts: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    total = 0
    ablations: tuple[Ablation, ...] = ("zero", "resample")
    for name in sys.argv[1:]:
        compiled = compile_program(load_program(name))
        for ablation in ablations:
            truth = certify(compiled, ablation).circuit
            found = edge_attribution_patching(compiled.model, compiled.dataset, ablation, seed=0)
            run = prepare(compiled.model, compiled.dataset, ablation, seed=0, batches=1)
            by_cell = {cell: edge for edge in run.model.edges for cell in cells(run.graph, edge)}
            total += len(truth)
            areas["as they are"].append(roc(found.scores, truth).area)
            areas["below NOISE set to zero"].append(roc(found.scores * (found.scores >= NOISE), truth).area)
            for edge in sorted(truth.edges - found.circuit.edges):
                losses, slopes, change = along_the_edge(run, by_cell[run.graph.position(edge)])
                score = float(found.scores[run.graph.position(edge)])
                effect, largest = abs(losses[-1] - losses[0]), max(map(abs, slopes))
                where = kind(edge)
                counts[where] += 1
                counts["all"] += 1
                seen["score below NOISE"] += score < NOISE
                seen["ablated alone, the mean loss changes by more than the threshold"] += effect > THRESHOLD
                seen["ablated alone, some output changes by more than the threshold"] += change > THRESHOLD
                seen["slope along the edge reaches 10 times the threshold somewhere"] += largest > 10 * THRESHOLD
                print(
                    f"{name:16} {ablation:9} {edge!s:16} score {score:8.1e}  slope at 0, .5, 1: {slopes[0]:8.1e} "
                    f"{slopes[STEPS // 2]:8.1e} {slopes[-1]:8.1e}  largest {largest:8.1e}  "
                    f"ablated: loss {effect:6.3f}, output {change:6.3f}",
                    flush=True,
                )
    print(f"\n{counts.pop('all', 0)} of {total} true edges missed")
    for where, number in counts.most_common():
        print(f"  {number:4} lead to {where}")
    for what, number in seen.items():
        print(f"  {number:4} {what}")
    for what, values in areas.items():
        print(f"mean AUROC of the scores, {what}: {sum(values) / len(values):.3f}")


if __name__ == "__main__":
    main()
