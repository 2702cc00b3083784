"""What a removed edge carries: nothing, a mean, or the value on a corrupted input."""

from typing import Final

import torch
from jaxtyping import Int
from torch import Tensor

from edgeprune.data import Batch, Dataset
from edgeprune.errors import ConfigError
from edgeprune.graph import Ablation
from edgeprune.masked_model import MaskedModel, Sources, Tokens
from edgeprune.parallel import ranks_of

_ROOM: Final = 2**26
"""Numbers that sources are held in at a time."""


class Ablator:
    """Gives the ablated sources of a batch, under one ablation.

    Args:
        model: the model whose sources are ablated.
        dataset: the inputs that a mean runs over, group by group; batches of others may be given later.
        ablation: zero, mean or resample.
    """

    def __init__(self, model: MaskedModel, dataset: Dataset, ablation: Ablation) -> None:
        self.ablation: Ablation = ablation
        self._model = model
        self._ranks = ranks_of(model)
        self._means = None
        if ablation == "mean":
            self._groups = dataset.group.unique()
            self._means = group_means(model, dataset)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Sources | None:
        """The ablated sources of `batch`; None stands for zeros."""
        return self._of(batch.corrupted, batch.group)

    @torch.no_grad()
    def own(self, batch: Batch) -> Sources | None:
        """Those of the inputs that this process runs, where several split a batch, for a model that takes no others."""
        return self._of(self._ranks.own(batch.corrupted, -2), self._ranks.own(batch.group, -1))

    def _of(self, corrupted: Tokens, group: Int[Tensor, "*lead batch"]) -> Sources | None:
        if self.ablation == "zero":
            return None
        if self._means is not None:
            place = torch.searchsorted(self._groups, group).clamp(max=len(self._groups) - 1)
            if unknown := group[self._groups[place] != group].tolist():
                raise ConfigError(
                    f"Expected inputs of lengths that a mean was taken over; got one of length {unknown[0]}"
                )
            return self._means[:, place]
        return self._model.sources(corrupted)


@torch.no_grad()
def group_means(model: MaskedModel, dataset: Dataset) -> Tensor:
    """Every source's mean over each group that `dataset` has, position by position: `[source, group, pos, d_model]`."""
    ranks = ranks_of(model)
    present, group, counts = dataset.group.unique(return_inverse=True, return_counts=True)
    # Of several processes each adds up its own rows, and those that are there twice once.
    own, counted = ranks.rows(len(dataset)), ranks.first_times(len(dataset))
    one = model.sources(dataset.tokens[:1])
    # Half precision has too few digits to add up many.
    kind = torch.promote_types(one.dtype, torch.float32)
    total = one.new_zeros(one.shape[0], len(present), *one.shape[2:], dtype=kind)
    size = rows_at_once(model, dataset)
    for rows, counts_once in zip(own.split(size), counted.split(size), strict=True):
        sources = model.sources(dataset.tokens[rows]).to(kind)
        sources[:, ~counts_once] = 0
        total.index_add_(1, group[rows].to(total.device), sources)
    return (ranks.summed(total) / counts.to(total)[:, None, None]).to(one.dtype)


def rows_at_once(model: MaskedModel, dataset: Dataset) -> int:
    """How many inputs' sources fit, of a model however wide."""
    return max(1, min(1024, _ROOM // model.sources(dataset.tokens[:1]).numel()))
