"""What a removed edge carries: nothing, a mean, or the value on a corrupted input."""

from typing import Final

import torch
from jaxtyping import Int
from torch import Tensor

from edgeprune.data import Batch, Dataset
from edgeprune.graph import Ablation
from edgeprune.model import MaskedModel, Sources

_ROOM: Final = 2**26
"""Numbers that sources are held in at a time."""


class Ablator:
    """Gives the ablated sources of a batch, under one ablation.

    Args:
        model: the model whose sources are ablated.
        dataset: the inputs that a mean runs over, group by group.
        ablation: zero, mean or resample.
    """

    def __init__(self, model: MaskedModel, dataset: Dataset, ablation: Ablation) -> None:
        self.ablation: Ablation = ablation
        self._model = model
        self._means = group_means(model, dataset) if ablation == "mean" else None

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Sources | None:
        """The ablated sources of `batch`; None stands for zeros."""
        if self.ablation == "zero":
            return None
        if self._means is not None:
            return self._means[:, batch.group]
        return self._model.sources(batch.corrupted)


@torch.no_grad()
def group_means(model: MaskedModel, dataset: Dataset) -> Tensor:
    """Every source's mean over each group of `dataset`, position by position: `[source, group, pos, d_model]`."""
    groups = int(dataset.group.max()) + 1
    total: Tensor | None = None
    kept = torch.float32
    # As many inputs at a time as fit, of a model however wide.
    chunk = max(1, min(1024, _ROOM // model.sources(dataset.tokens[:1]).numel()))
    for start in range(0, len(dataset), chunk):
        sources = model.sources(dataset.tokens[start : start + chunk])
        group: Int[Tensor, " batch"] = dataset.group[start : start + chunk]
        if total is None:
            # Half precision has too few digits to add up many.
            kind, kept = torch.promote_types(sources.dtype, torch.float32), sources.dtype
            total = sources.new_zeros(sources.shape[0], groups, *sources.shape[2:], dtype=kind)
        total.index_add_(1, group.to(sources.device), sources.to(total.dtype))
    assert total is not None, "a dataset is never empty"
    counts = torch.bincount(dataset.group, minlength=groups).clamp(min=1)
    return (total / counts[:, None, None].to(total.device)).to(kept)
