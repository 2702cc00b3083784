"""Ablation values, which removed edges carry: zeros, means over inputs, or values on corrupted inputs."""

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
"""Largest number of source activation values held at a time."""


class Ablator:
    """A callable that gives the ablation values of every source for a batch, under one ablation.

    Args:
        model: the model whose sources are ablated.
        dataset: the inputs that means are taken over, group by group; batches may come from another dataset.
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
        """Return the ablation values of every source for `batch`; None stands for zeros."""
        return self._of(batch.corrupted, batch.group)

    @torch.no_grad()
    def own(self, batch: Batch) -> Sources | None:
        """Return the ablation values for the rows of `batch` that this process runs; None stands for zeros.

        The model needs no others: where several processes split a batch, each runs its own rows.
        """
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
    """Return every source's mean over each group of `dataset`, per position: `[source, group, pos, d_model]`."""
    ranks = ranks_of(model)
    present, group, counts = dataset.group.unique(return_inverse=True, return_counts=True)
    # Each process sums its own rows; a repeated row counts once.
    own, counted = ranks.rows(len(dataset)), ranks.first_times(len(dataset))
    one = model.sources(dataset.tokens[:1])
    # Sum in float32 or wider: half precision has too few digits for a sum over many inputs.
    kind = torch.promote_types(one.dtype, torch.float32)
    total = one.new_zeros(one.shape[0], len(present), *one.shape[2:], dtype=kind)
    size = rows_at_once(model, dataset)
    for rows, counts_once in zip(own.split(size), counted.split(size), strict=True):
        sources = model.sources(dataset.tokens[rows]).to(kind)
        sources[:, ~counts_once] = 0
        total.index_add_(1, group[rows].to(total.device), sources)
    return (ranks.summed(total) / counts.to(total)[:, None, None]).to(one.dtype)


def rows_at_once(model: MaskedModel, dataset: Dataset) -> int:
    """Return how many inputs to run at a time so that their sources fit in `_ROOM` values: 1 to 1024."""
    return max(1, min(1024, _ROOM // model.sources(dataset.tokens[:1]).numel()))
