"""How far masked outputs are from the full model's, as a training loss: one number for each mask sample."""

from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from edgeprune.data import Batch, Dataset
from edgeprune.metrics import kl_divergence, largest_difference, squared_error

Loss = Literal["worst", "divergence", "squared"]
"""
- `worst`: the largest difference from the full model's outputs anywhere in the batch, over the outputs' range, at
  most 1. It asks what the truth asks: whether any input needs an edge.
- `divergence`: KL(full model || circuit) where outputs are logits, else as `squared`.
- `squared`: squared error over the outputs' variance, averaged over the batch.
"""

LOSSES: Final[tuple[Loss, ...]] = ("worst", "divergence", "squared")


class Objective:
    """A loss, scaled by the outputs of `dataset`.

    Args:
        dataset: the inputs; their outputs' range and variance are the units of `worst` and `squared`.
        loss: which one.
        logit_scale: what logits are multiplied by before `divergence`; Tracr's outputs are one-hot, so that at 1 even a
            perfect answer is an unsure one.
    """

    def __init__(self, dataset: Dataset, loss: Loss, *, logit_scale: float = 1.0) -> None:
        scored = dataset.target[dataset.scored]
        self._range = float(scored.max() - scored.min())
        self._variance = float(scored.var(correction=0))
        self._loss: Loss = loss
        self._logit_scale = logit_scale
        self._logits = dataset.logits

    def __call__(self, outputs: Float[Tensor, "*masks batch pos vocab"], batch: Batch) -> Float[Tensor, "*masks"]:
        """The loss of each mask."""
        if self._loss == "worst":
            worst = largest_difference(outputs, batch.target, batch.scored).amax(-1)
            return (worst / self._range).clamp(max=1)
        if self._loss == "divergence" and self._logits:
            scale = self._logit_scale
            return kl_divergence(scale * outputs, scale * batch.target, batch.scored).mean(-1)
        return (squared_error(outputs, batch.target, batch.scored) / self._variance).mean(-1)


def draw_batch(dataset: Dataset, size: int, generator: torch.Generator) -> Batch:
    """`size` inputs without replacement, or all where there are fewer, each with a corrupted input of its group."""
    clean = torch.randperm(len(dataset), generator=generator)[:size]
    return dataset.take(clean, dataset.partners(clean, generator))
