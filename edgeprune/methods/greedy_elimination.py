"""Greedy elimination: repeatedly remove the edge whose removal harms least.

This baseline measures every removal in the current circuit; ACDC measures each edge once, in a fixed order.

Note: while many edges are left, a share of them is removed together: those whose removal alone harms least.
"""

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from tqdm import tqdm

from edgeprune.data import Dataset
from edgeprune.graph import Ablation
from edgeprune.masked_model import MaskedModel
from edgeprune.masks import edge_exists, live, without_each
from edgeprune.methods.circuit_loss import CircuitLoss
from edgeprune.methods.loss import Loss
from edgeprune.methods.method import Discovery, keep_above
from edgeprune.methods.settings import out_of_range, refuse

_TOGETHER: Final = 256
"""Masks evaluated in one call."""


@dataclass(frozen=True, kw_only=True)
class GreedyConfig:
    """Settings of `eliminate`."""

    threshold: float = 0.01
    """Largest loss of the returned circuit. The ranking of edges does not depend on it."""

    many: int = 250
    """Number of edges above which a share of them is removed per round."""

    share: float = 0.05
    """Share of the edges removed per round while there are more than `many`."""

    loss: Loss = "divergence"
    """Loss of a circuit; see `loss.Loss`."""

    logit_scale: float = 10.0
    """Factor on the logits before the divergence; above 1 because compiled outputs are one-hot."""

    inputs: int = 128
    """Inputs that removals are judged on; all if there are fewer."""

    batch_size: int = 32
    """Inputs per forward pass; affects time and memory only."""

    def __post_init__(self) -> None:
        faults = out_of_range(self, counts=("many", "inputs", "batch_size"), positive=("logit_scale",))
        if not 0 < self.share <= 1:
            faults.append(f"0 < share <= 1, got {self.share}")
        refuse(faults)


@torch.no_grad()
def eliminate(
    model: MaskedModel,
    dataset: Dataset,
    ablation: Ablation,
    *,
    seed: int = 0,
    progress: bool = False,
    config: GreedyConfig | None = None,
) -> Discovery:
    """Remove all edges one by one. An edge's score is the share of all edges that were removed before it.

    The returned circuit is the last one whose loss was within the threshold. See `Method`, `GreedyConfig`.
    """
    config = GreedyConfig() if config is None else config
    loss = CircuitLoss(
        model,
        dataset,
        ablation,
        loss=config.loss,
        logit_scale=config.logit_scale,
        inputs=config.inputs,
        batch_size=config.batch_size,
        seed=seed,
    )
    exists = edge_exists(model.graph)
    kept, scores, last = exists.clone(), torch.zeros(exists.shape), exists
    with tqdm(total=model.graph.total, desc=f"greedy, {ablation}", disable=None if progress else True) as bar:
        while kept.any():
            gone = kept & ~_fewer(loss, kept, config)
            scores[gone] = (bar.total - int(kept.sum())) / bar.total
            kept = kept & ~gone
            bar.update(int(gone.sum()))
            if float(loss(kept[None].float())[0]) <= config.threshold:
                last = kept
    return replace(keep_above(model.graph, ablation, last.float(), 0.5), scores=scores)


def _fewer(loss: CircuitLoss, kept: Tensor, config: GreedyConfig) -> Tensor:
    """Return the edges left after one round; dead edges are removed first, because they have no effect."""
    alive = live(loss.graph, kept)
    if not torch.equal(alive, kept):
        return alive
    cells = torch.nonzero(kept)
    if len(cells) <= config.many:
        without = without_each(kept, cells)
        number, _ = loss.best(without.float())
        return without[number]
    losses = torch.cat([loss(without_each(kept, some).float()) for some in cells.split(_TOGETHER)])
    gone = cells[losses.argsort(stable=True)[: max(1, int(config.share * len(cells)))]]
    fewer = kept.clone()
    fewer[gone[:, 0], gone[:, 1]] = False
    return fewer
