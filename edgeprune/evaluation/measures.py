"""How good what a method found is: against the truth, edge by edge and node by node, and by what it does when run.

Where there is a truth, **precision** is the share of what was found that is true, **recall** the share of what is true
that was found, **IoU** (Jaccard's index) what both have over what either has. Scores are judged at every threshold at
once: the **ROC** curve runs through a point for each, its area **AUROC** is the probability that a true edge scores
above another one, and the **best threshold** is the one that a method would choose if it knew the truth, which none
does. Of signed scores both are asked of the sizes, by which circuits are chosen (`Discovery.strength`). Scores are
taken as they are: of two edges without a derivative, one may score 0 and the other 1e-9, by rounding alone, and both
measures tell them apart.

Of a circuit that is run, with m the mean logit difference (or its like for numbers) over some inputs,
`f = (m - m(every edge ablated)) / (m(full model) - m(every edge ablated))` (MIB, arXiv:2504.13151):

- **faithfulness**: f of the circuit.
- **completeness**: f of all but the circuit; a complete circuit leaves nothing behind (arXiv:2403.19647).
- **minimality**: how much f changes without the edge whose removal changes it least (arXiv:2211.00593, edge by edge).
- **CPR**: the area under f of the k edges with the highest scores, by the share of edges that k is (MIB). Signed scores
  keep their sign: edges that help come first, and those that work against the answer last.
- **CMD**: the area between that curve and 1 (MIB), where k edges are those whose scores are largest in size.

Both areas depend on how small the graph and how large its circuit is: where half of a graph's edges are needed, no
method can have f = 1 at any smaller share. They compare methods on the same runs, and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from edgeprune.ablation import Ablator
from edgeprune.data import Dataset
from edgeprune.graph import Ablation, Circuit, Graph
from edgeprune.masked_model import MaskedModel
from edgeprune.masks import circuit_mask, edge_exists, mask_of
from edgeprune.methods.loss import Objective
from edgeprune.methods.method import sizes

FRACTIONS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of edges at which MIB's code runs circuits; areas are those of trapezia between them."""

_ROWS: Final = 4096
"""Masked inputs in one forward."""


@dataclass(frozen=True)
class Curve:
    """The ROC curve of some scores, by its corners: points on a straight line between two others are left out."""

    false_positive_rate: tuple[float, ...]
    true_positive_rate: tuple[float, ...]
    thresholds: tuple[float, ...]
    """Edges that score as much or more are kept."""

    area: float
    """AUROC; NaN where all edges are true, or none."""


def roc(scores: Float[Tensor, "source destination"], truth: Circuit) -> Curve:
    """How scores tell true edges from others, at every threshold."""
    from sklearn.metrics import roc_auc_score, roc_curve

    label, score = _labelled(scores, truth)
    if label.all() or not label.any():
        return Curve((), (), (), float("nan"))
    false, true, thresholds = roc_curve(label, score)
    points = (tuple(rates.tolist()) for rates in (false, true, thresholds))
    return Curve(*points, area=float(roc_auc_score(label, score)))


@dataclass(frozen=True)
class BestThreshold:
    """What the scores would give at the threshold that suits the truth best: a bound, and no result of the method."""

    threshold: float
    """Edges that score as much or more are kept."""

    iou: float
    exact: bool


def best_threshold(scores: Float[Tensor, "source destination"], truth: Circuit) -> BestThreshold:
    """The threshold with the largest IoU, the highest of those that share it."""
    label, score = _labelled(scores, truth)
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(label[order])
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # of those that score the same
    iou = hits[last] / (label.sum() + last + 1 - hits[last])
    best = int(np.argmax(iou))
    return BestThreshold(float(score[order][last[best]]), float(iou[best]), bool(iou[best] == 1))


def _labelled(scores: Tensor, truth: Circuit) -> tuple[np.ndarray, np.ndarray]:
    """For every edge of the graph whether it is true, and its score."""
    exists = edge_exists(truth.graph)
    return (circuit_mask(truth)[exists] > 0).numpy(), scores[exists].double().numpy()


class Behaviour:
    """What circuits do when they are run, on one sample of inputs.

    Args:
        model: the model.
        dataset: its inputs.
        ablation: what removed edges carry.
        inputs: how many inputs are sampled, each with a corrupted one drawn for it.
        seed: of that sample.
    """

    def __init__(
        self, model: MaskedModel, dataset: Dataset, ablation: Ablation, *, inputs: int = 512, seed: int = 0
    ) -> None:
        self._model = model
        self._batch = dataset.sample(inputs, torch.Generator().manual_seed(seed))
        self._ablated = Ablator(model, dataset, ablation)(self._batch)
        self._objective = Objective(dataset, "disagreement")
        exists = edge_exists(model.graph).float()
        nothing, everything = self._metric(torch.stack([torch.zeros_like(exists), exists])).tolist()
        self._nothing, self._range = nothing, everything - nothing

    @torch.no_grad()
    def _metric(self, masks: Float[Tensor, "mask source destination"]) -> Float[Tensor, " mask"]:
        batch = self._batch
        parts = masks.split(max(1, _ROWS // len(batch.clean)))
        return torch.cat(
            [-self._objective(self._model(batch.clean, part, self._ablated, batch.positions), batch) for part in parts]
        )

    def faithfulness(self, masks: Float[Tensor, "mask source destination"]) -> Float[Tensor, " mask"]:
        """f of each mask: 0 with every edge ablated, 1 for the full model; not bounded by either."""
        return (self._metric(masks) - self._nothing) / self._range

    def of(self, circuit: Circuit) -> float:
        """f of a circuit."""
        return float(self.faithfulness(circuit_mask(circuit)[None])[0])

    def completeness(self, circuit: Circuit) -> float:
        """f of all edges but the circuit's."""
        return float(self.faithfulness((edge_exists(circuit.graph).float() - circuit_mask(circuit))[None])[0])

    def minimality(self, circuit: Circuit) -> float:
        """The least change of f by taking one edge out of the circuit; infinite for an empty one."""
        if not circuit.edges:
            return float("inf")
        fewer = torch.stack([mask_of(circuit.graph, circuit.edges - {edge}) for edge in sorted(circuit.edges)])
        whole, *rest = self.faithfulness(torch.cat([circuit_mask(circuit)[None], fewer])).tolist()
        return min(abs(whole - without) for without in rest)

    def areas(
        self,
        scores: Float[Tensor, "source destination"],
        fractions: Sequence[float] = FRACTIONS,
        *,
        signed: bool = True,
    ) -> tuple[float, float]:
        """CPR of the edges with the highest scores, and CMD of those whose scores are largest in size.

        Args:
            scores: of edges.
            fractions: shares of all edges that are kept.
            signed: whether scores are attributions; CMD ranks others, such as ACDC's, as they are.
        """
        by_size = sizes(scores) if signed else scores
        cpr, cmd = (self.faithfulness(highest(self._model.graph, s, fractions)).numpy() for s in (scores, by_size))
        return float(np.trapezoid(cpr, fractions)), float(np.trapezoid(np.abs(1 - cmd), fractions))


def highest(
    graph: Graph, scores: Float[Tensor, "source destination"], fractions: Sequence[float]
) -> Float[Tensor, "fraction source destination"]:
    """Masks of the edges with the highest scores, a share of all edges each, rounded down."""
    cells = torch.nonzero(edge_exists(graph))
    order = cells[scores[cells[:, 0], cells[:, 1]].argsort(descending=True, stable=True)]
    masks = torch.zeros(len(fractions), *scores.shape)
    for mask, fraction in zip(masks, fractions, strict=True):
        kept = order[: int(fraction * len(order))]
        mask[kept[:, 0], kept[:, 1]] = 1
    return masks
