"""The two ends between which methods lie: every edge tried alone, and none tried at all."""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from edgeprune.ablation import Ablator
from edgeprune.data import Dataset
from edgeprune.errors import ConfigError
from edgeprune.graph import Ablation
from edgeprune.masked_model import MaskedModel
from edgeprune.masks import edge_exists, without_each
from edgeprune.methods.loss import Loss, Objective
from edgeprune.methods.method import Discovery, keep_above

_ROWS = 8192
"""Masked inputs in one forward."""


@dataclass(frozen=True, kw_only=True)
class SingleEdgeConfig:
    """Settings of `ablate_each`."""

    loss: Loss = "worst"
    """See `loss.Loss`."""

    threshold: float = 0.0
    """Loss above which an edge is kept; `worst` is 0 up to what counts as the same output."""

    inputs: int = 512
    """Inputs in the sample on which edges are judged, or all where there are fewer."""

    def __post_init__(self) -> None:
        if self.inputs < 1:
            raise ConfigError(f"Expected inputs >= 1, got {self.inputs}")


@torch.no_grad()
def ablate_each(
    model: MaskedModel,
    dataset: Dataset,
    ablation: Ablation,
    *,
    seed: int = 0,
    progress: bool = False,
    config: SingleEdgeConfig | None = None,
) -> Discovery:
    """Ablate every edge alone in the full model: what EAP approximates (arXiv:2310.10348).

    Exact in what each edge does by itself. Edges of which either would do score nothing, and neither is kept.

    Note: an edge scores the loss without it, which is 0 with it, in place of the change of a metric. By default that is
    the worst over the inputs, as the truth asks whether any input needs an edge.
    """
    config = SingleEdgeConfig() if config is None else config
    batch = dataset.sample(config.inputs, torch.Generator().manual_seed(seed))
    ablated, objective = Ablator(model, dataset, ablation)(batch), Objective(dataset, config.loss)
    exists = edge_exists(model.graph)
    cells = torch.nonzero(exists)
    scores = torch.zeros(exists.shape)
    chunks = cells.split(max(1, _ROWS // len(batch.clean)))
    for chunk in tqdm(chunks, desc=f"single edges, {ablation}", disable=None if progress else True):
        masks = without_each(exists, chunk).float()
        scores[chunk[:, 0], chunk[:, 1]] = objective(model(batch.clean, masks, ablated, batch.positions), batch)
    return keep_above(model.graph, ablation, scores, config.threshold)


def draw_scores(
    model: MaskedModel, dataset: Dataset, ablation: Ablation, *, seed: int = 0, progress: bool = False
) -> Discovery:
    """A uniform score for every edge, and the better half of them kept: what knowing nothing gives."""
    generator = torch.Generator().manual_seed(seed)
    exists = edge_exists(model.graph)
    return keep_above(model.graph, ablation, exists * torch.rand(exists.shape, generator=generator), 0.5)
