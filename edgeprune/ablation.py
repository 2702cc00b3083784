"""What a removed edge carries: nothing, a mean, or the value on a corrupted input."""

import torch
from jaxtyping import Int
from torch import Tensor

from edgeprune.data import Batch, Dataset
from edgeprune.graph import Ablation
from edgeprune.model import MaskedModel, Sources


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
def group_means(model: MaskedModel, dataset: Dataset, *, chunk: int = 1024) -> Tensor:
    """Every source's mean over each group of `dataset`, position by position: `[source, group, pos, d_model]`."""
    groups = int(dataset.group.max()) + 1
    total: Tensor | None = None
    for start in range(0, len(dataset), chunk):
        sources = model.sources(dataset.tokens[start : start + chunk])
        group: Int[Tensor, " batch"] = dataset.group[start : start + chunk]
        if total is None:
            total = sources.new_zeros(sources.shape[0], groups, *sources.shape[2:])
        total.index_add_(1, group, sources)
    assert total is not None, "a dataset is never empty"
    counts = torch.bincount(dataset.group, minlength=groups).clamp(min=1)
    return total / counts[:, None, None]
