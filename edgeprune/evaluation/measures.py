"""Measures of a method's result: against the true circuit, edge by edge and node by node, and by behaviour when run.

If the true circuit is known: **precision** is the share of the found set that is true, **recall** the share of the true
set that was found, **IoU** (Jaccard's index) the intersection over the union. Scores are judged at every threshold. The
**ROC** curve has one point per threshold; its area **AUROC** is the probability that a true edge scores above another
edge. The **best threshold** is the one that a method would choose if it knew the truth, which none does. For signed
scores, both use absolute values, by which circuits are chosen (`Discovery.strength`). Scores are not rounded: of two
edges with zero derivative, one may score 0 and the other 1e-9 by rounding error, and both measures tell them apart.

For a circuit that is run, m is the mean logit difference over some inputs (or its counterpart for numerical outputs),
and `f = (m - m(every edge ablated)) / (m(full model) - m(every edge ablated))` (MIB, arXiv:2504.13151):

- **faithfulness**: f of the circuit.
- **completeness**: f of all edges outside the circuit; 0 means the circuit leaves nothing out (arXiv:2403.19647).
- **minimality**: the smallest change in f when one edge is removed (arXiv:2211.00593, here edge by edge).
- **CPR**: the area under f of the k edges with the highest scores, plotted against k as a share of all edges (MIB).
  Signed scores keep their sign: edges that help come first, and edges that work against the answer last.
- **CMD**: the area between f and 1 (MIB), with the k edges whose scores are largest in absolute value.

Both areas depend on the graph's size and its circuit's: if half of all edges are needed, no method reaches f = 1 with
fewer. Use them only to compare methods on the same runs.
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
"""Shares of edges at which MIB's code runs circuits; areas are integrated between them by the trapezoidal rule."""

_ROWS: Final = 4096
"""Masked inputs per forward pass."""


@dataclass(frozen=True)
class Curve:
    """The corners of the ROC curve of some scores; points on a straight line between two others are left out."""

    false_positive_rate: tuple[float, ...]
    true_positive_rate: tuple[float, ...]
    thresholds: tuple[float, ...]
    """Each point's threshold; edges that score at least as much are kept."""

    area: float
    """AUROC, 0 to 1; NaN if all edges are true, or none."""


def roc(scores: Float[Tensor, "source destination"], truth: Circuit) -> Curve:
    """Return the ROC curve of scores: true against false positive rate at every threshold."""
    from sklearn.metrics import roc_auc_score, roc_curve

    label, score = _labelled(scores, truth)
    if label.all() or not label.any():
        return Curve((), (), (), float("nan"))
    false, true, thresholds = roc_curve(label, score)
    points = (tuple(rates.tolist()) for rates in (false, true, thresholds))
    return Curve(*points, area=float(roc_auc_score(label, score)))


@dataclass(frozen=True)
class BestThreshold:
    """The circuit at the threshold that fits the truth best: an upper bound, not a result of the method."""

    threshold: float
    """Edges that score at least this are kept."""

    iou: float
    exact: bool


def best_threshold(scores: Float[Tensor, "source destination"], truth: Circuit) -> BestThreshold:
    """Return the threshold with the largest IoU; of several, the highest."""
    label, score = _labelled(scores, truth)
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(label[order])
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # the last edge of each score
    iou = hits[last] / (label.sum() + last + 1 - hits[last])
    best = int(np.argmax(iou))
    return BestThreshold(float(score[order][last[best]]), float(iou[best]), bool(iou[best] == 1))


def _labelled(scores: Tensor, truth: Circuit) -> tuple[np.ndarray, np.ndarray]:
    """Return, for every edge of the graph, whether it is true and its score."""
    exists = edge_exists(truth.graph)
    return (circuit_mask(truth)[exists] > 0).numpy(), scores[exists].double().numpy()


class Behaviour:
    """Measures of circuits when they are run, on one sample of inputs.

    Args:
        model: the model.
        dataset: the model's inputs.
        ablation: what removed edges carry.
        inputs: number of inputs sampled, each with a corrupted input drawn for it.
        seed: seed of the sample.
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
        """Return f of each mask: 0 with every edge ablated, 1 for the full model; other values may lie outside."""
        return (self._metric(masks) - self._nothing) / self._range

    def of(self, circuit: Circuit) -> float:
        """Return f of a circuit."""
        return float(self.faithfulness(circuit_mask(circuit)[None])[0])

    def completeness(self, circuit: Circuit) -> float:
        """Return f of all edges outside the circuit."""
        return float(self.faithfulness((edge_exists(circuit.graph).float() - circuit_mask(circuit))[None])[0])

    def minimality(self, circuit: Circuit) -> float:
        """Return the smallest absolute change in f when one edge is removed; infinity for an empty circuit."""
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
        """Return CPR, for the edges with the highest scores, and CMD, for those with the largest absolute scores.

        Args:
            scores: the score of each edge.
            fractions: shares of all edges that are kept.
            signed: whether scores are signed attributions; if not (such as ACDC's), CMD ranks by the scores themselves.
        """
        by_size = sizes(scores) if signed else scores
        cpr, cmd = (self.faithfulness(highest(self._model.graph, s, fractions)).numpy() for s in (scores, by_size))
        return float(np.trapezoid(cpr, fractions)), float(np.trapezoid(np.abs(1 - cmd), fractions))


def highest(
    graph: Graph, scores: Float[Tensor, "source destination"], fractions: Sequence[float]
) -> Float[Tensor, "fraction source destination"]:
    """Return one mask per fraction: it keeps that share of all edges, rounded down, those with the highest scores."""
    cells = torch.nonzero(edge_exists(graph))
    order = cells[scores[cells[:, 0], cells[:, 1]].argsort(descending=True, stable=True)]
    masks = torch.zeros(len(fractions), *scores.shape)
    for mask, fraction in zip(masks, fractions, strict=True):
        kept = order[: int(fraction * len(order))]
        mask[kept[:, 0], kept[:, 1]] = 1
    return masks
