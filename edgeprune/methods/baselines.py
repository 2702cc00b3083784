"""Baselines at the two extremes: ablate every edge alone, or score edges at random."""

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
"""Largest number of masked inputs per forward pass."""


@dataclass(frozen=True, kw_only=True)
class SingleEdgeConfig:
    """Settings of `ablate_each`."""

    loss: Loss = "worst"
    """Loss of the model without an edge; see `loss.Loss`."""

    threshold: float = 0.0
    """Edges that score above this are kept. The loss `worst` is 0 for outputs that count as the same."""

    inputs: int = 512
    """Inputs in the sample that edges are judged on; all if there are fewer."""

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

    The scores are exact single-edge effects. Of two redundant edges, each scores 0 and neither is kept.

    Note: an edge's score is the loss without it (with it, the loss is 0), not the change of a metric. By default this
    is the worst loss over the inputs, because the truth asks whether any input needs an edge.
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
    """Score every edge uniformly at random in [0, 1) and keep scores above 0.5: a baseline without knowledge."""
    generator = torch.Generator().manual_seed(seed)
    exists = edge_exists(model.graph)
    return keep_above(model.graph, ablation, exists * torch.rand(exists.shape, generator=generator), 0.5)
