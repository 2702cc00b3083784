"""How far masked outputs are from the full model's, as a training loss, and on which inputs it is asked."""

import math
from functools import cached_property
from typing import Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edgeprune.data import Batch, Dataset
from edgeprune.metrics.distances import (
    ATOL,
    kl_divergence,
    largest_difference,
    logit_difference,
    scored_mean,
    squared_error,
)

Loss = Literal["worst", "divergence", "squared", "disagreement"]
"""
- `worst`: the largest difference from the full model's outputs anywhere in the batch, on a logarithmic scale: 0 up to
  what counts as the same output (`metrics.ATOL`), well above 0 beyond it, 1 from the outputs' range on. It asks what
  the truth asks: whether any input needs an edge at all.
- `divergence`: KL(full model || circuit) where outputs are logits, else as `squared`.
- `squared`: squared error over the outputs' variance, averaged over the batch.
- `disagreement`: minus how far outputs point where the full model's do. It is linear in the outputs, so that its
  gradient is not zero at the full model, as that of a distance is. Of logits it is a logit difference, as in
  arXiv:2310.10348: the full model's answer above the mean of all other outputs. Of values it is their product with the
  full model's, over its mean square. It is -1 at the full model of a compiled program. Where a task names right and
  wrong answers, it is minus the task's own metric.
"""

DISTANCES: Final[tuple[Loss, ...]] = ("worst", "divergence", "squared")
"""The losses that are 0 at the full model and nowhere below."""

_ROOM: Final = 2**26
"""Numbers among outputs that their range and variance are taken of."""

Over = Literal["mean", "worst"]
"""How the losses of inputs become one: their mean, or the largest of them."""

Pairs = Int[Tensor, "2 pair"]
"""Rows of a dataset: clean inputs, and below them their corrupted inputs."""


class Objective:
    """A loss, scaled by the outputs of `dataset`.

    Args:
        dataset: the inputs; their outputs' range and variance are the units of `worst` and `squared`.
        loss: which one.
        logit_scale: what logits are multiplied by before `divergence`; Tracr's outputs are one-hot, so that at 1 even a
            perfect answer is an unsure one.
        over: how the losses of inputs become one; the largest counts for `worst`, whatever this is.
    """

    def __init__(self, dataset: Dataset, loss: Loss, *, logit_scale: float = 1.0, over: Over = "mean") -> None:
        self._dataset = dataset
        self._loss: Loss = loss
        self.over: Over = "worst" if loss == "worst" else over
        self._logit_scale = logit_scale
        self._logits = dataset.logits

    @cached_property
    def _target(self) -> Tensor:
        one = self._dataset.target[torch.arange(1)].numel()
        rows = torch.arange(len(self._dataset))[: max(1, _ROOM // one)]
        return self._dataset.target[rows][self._dataset.scored[rows]]

    @cached_property
    def _range(self) -> float:
        return float(self._target.max() - self._target.min())

    @cached_property
    def _variance(self) -> float:
        return float(self._target.var(correction=0))

    @cached_property
    def _square(self) -> float:
        return float(self._target.square().mean())

    def __call__(self, outputs: Float[Tensor, "*masks batch pos vocab"], batch: Batch) -> Float[Tensor, "*masks"]:
        """The loss of each mask over the whole batch."""
        return self.reduce(self.per_input(outputs, batch))

    def per_input(
        self, outputs: Float[Tensor, "*masks batch pos vocab"], batch: Batch
    ) -> Float[Tensor, "*masks batch"]:
        """The loss of each mask on each input."""
        if self._loss == "worst":
            largest = largest_difference(outputs, batch.target, batch.scored)
            scaled = (torch.log1p(largest / ATOL) / math.log1p(self._range / ATOL)).clamp(max=1)
            return torch.where(largest <= ATOL, 0.0, scaled)
        if self._loss == "divergence" and self._logits:
            scale = self._logit_scale
            return kl_divergence(scale * outputs, scale * batch.target, batch.scored)
        if self._loss == "disagreement" and batch.answers is not None:
            return -scored_mean(batch.answers.preference(outputs), batch.scored)
        if self._loss == "disagreement":
            agreement = logit_difference(outputs, batch.target) if self._logits else (outputs * batch.target).sum(-1)
            return -scored_mean(agreement / (1 if self._logits else self._square), batch.scored)
        return squared_error(outputs, batch.target, batch.scored) / self._variance

    def reduce(self, losses: Float[Tensor, "*masks batch"]) -> Float[Tensor, "*masks"]:
        """The loss of a batch from those of its inputs."""
        return losses.amax(-1) if self.over == "worst" else losses.mean(-1)

    def change(
        self, losses: Float[Tensor, "*masks batch"], baseline: Float[Tensor, " batch"]
    ) -> Float[Tensor, "*masks"]:
        """How much worse than a baseline masks fare, compared input by input; below 0 for better.

        For `worst`, the most that any input loses, less the most that any gains. The difference of the largest losses
        would be 0 once some input is as wrong as can be, whatever else a mask breaks, and every edge would fall.
        """
        difference = losses - baseline
        if self._loss != "worst":
            return difference.mean(-1)
        return difference.amax(-1).clamp(min=0) + difference.amin(-1).clamp(max=0)


def draw_pairs(dataset: Dataset, size: int, generator: torch.Generator) -> Pairs:
    """`size` inputs without replacement, or all where there are fewer, each with a corrupted input of its group."""
    clean = torch.randperm(len(dataset), generator=generator)[:size]
    return torch.stack([clean, dataset.partners(clean, generator)])
