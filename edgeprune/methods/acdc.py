"""ACDC: remove edges one by one, each for good if that changes the output little.

Conmy et al., "Towards Automated Circuit Discovery for Mechanistic Interpretability", arXiv:2304.14997, algorithm 1:
from the logits backwards, an edge is removed for good if the divergence from the full model grows by less than a
threshold.

Note: the decisions equal the algorithm's, one by one, but several are evaluated in one batch. Most edges are removed,
so the next few masks assume that every edge before them was removed; results after the first kept edge are discarded.
One threshold serves all models. Edges are judged on one sample of inputs, drawn once. Numerical outputs have no
divergence and use squared error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from edgeprune.data import Dataset
from edgeprune.errors import ConfigError
from edgeprune.graph import Ablation, Edge, Graph
from edgeprune.masked_model import MaskedModel
from edgeprune.masks import edge_exists
from edgeprune.methods.circuit_loss import CircuitLoss
from edgeprune.methods.loss import Loss
from edgeprune.methods.method import Discovery, keep_above


@dataclass(frozen=True, kw_only=True)
class AcdcConfig:
    """Settings of `remove_greedily`."""

    threshold: float = 0.01
    """Threshold tau: an edge is removed if the loss grows by less than this."""

    order: Literal["latest first", "earliest first"] = "latest first"
    """Order in which the sources of a destination are tried. Destinations always come latest first."""

    loss: Loss = "divergence"
    """Loss whose growth is measured; see `loss.Loss`."""

    logit_scale: float = 10.0
    """Factor on the logits before the divergence; above 1 because compiled outputs are one-hot."""

    inputs: int = 256
    """Inputs in the sample that edges are judged on; all if there are fewer."""

    at_once: int = 32
    """Largest number of decisions evaluated in one batch; affects time only."""

    batch_size: int = 512
    """Inputs per forward pass; affects time and memory only."""

    def __post_init__(self) -> None:
        counts = ("inputs", "at_once", "batch_size")
        faults = [f"{name} >= 1, got {getattr(self, name)}" for name in counts if getattr(self, name) < 1]
        if faults:
            raise ConfigError(f"Expected {'; '.join(faults)}")


_BROKEN: Final = 1e6
"""Score of an edge without which the loss is not finite."""


@torch.no_grad()
def remove_greedily(
    model: MaskedModel,
    dataset: Dataset,
    ablation: Ablation,
    *,
    seed: int = 0,
    progress: bool = False,
    config: AcdcConfig | None = None,
) -> Discovery:
    """Remove edges one by one. An edge's score is the growth of the loss without it. See `Method`, `AcdcConfig`."""
    config = AcdcConfig() if config is None else config
    loss_of = CircuitLoss(
        model,
        dataset,
        ablation,
        loss=config.loss,
        logit_scale=config.logit_scale,
        inputs=config.inputs,
        batch_size=config.batch_size,
        seed=seed,
    )
    cells = [model.graph.position(edge) for edge in traversal(model.graph, config.order)]
    kept = edge_exists(model.graph).float()
    scores = torch.zeros_like(kept)
    current, done, width = float(loss_of(kept[None])[0]), 0, 1
    with tqdm(total=len(cells), desc=f"ACDC, {ablation}", disable=None if progress else True) as bar:
        while done < len(cells):
            ahead = cells[done : done + width]
            losses = loss_of(_without_more_and_more(kept, ahead)).tolist()
            width = min(2 * width, config.at_once)
            for (row, column), loss in zip(ahead, losses, strict=True):
                done += 1
                change = loss - current if math.isfinite(loss) else _BROKEN
                scores[row, column] = change
                if change >= config.threshold:
                    width = 1
                    break
                kept[row, column], current = 0, loss
            bar.update(done - bar.n)
    return replace(keep_above(model.graph, ablation, kept, 0.5), scores=scores)


def traversal(graph: Graph, order: Literal["latest first", "earliest first"]) -> list[Edge]:
    """Return the edges in the order in which they are tried: by destination, from the logits backwards."""
    sign = -1 if order == "latest first" else 1
    # The graph lists nodes in order of computation.
    by_source = [graph.sources[::sign].index(source) for source in graph.sources]
    return sorted(
        graph.edges,
        key=lambda e: (-graph.destination_index[e.destination], by_source[graph.source_index[e.source]]),
    )


def _without_more_and_more(kept: Tensor, cells: Sequence[tuple[int, int]]) -> Float[Tensor, "cell source destination"]:
    """Return masks that remove from `kept` the first of `cells`, the first two, and so on."""
    masks = kept.repeat(len(cells), 1, 1)
    for number, (row, column) in enumerate(cells):
        masks[number:, row, column] = 0
    return masks
