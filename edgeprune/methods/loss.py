"""Training losses that measure how far masked outputs are from the full model's, and the inputs they are taken on."""

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
- `worst`: the largest difference from the full model's outputs anywhere in the batch, on a logarithmic scale: 0 for
  outputs that count as the same (`metrics.ATOL`), well above 0 beyond that, and 1 from the outputs' range on. It asks
  what the truth asks: whether any input needs an edge at all.
- `divergence`: KL(full model || circuit) if outputs are logits, else as `squared`.
- `squared`: squared error divided by the variance of the outputs, averaged over the batch.
- `disagreement`: minus the agreement with the full model's outputs. It is linear in the outputs, so its gradient does
  not vanish at the full model, as a distance's does. For logits, agreement is a logit difference, as in
  arXiv:2310.10348: the full model's answer minus the mean of all other logits. For values, it is their product with the
  full model's values, divided by the mean square of those. The loss is -1 at the full model of a compiled program. If a
  task names right and wrong answers, the loss is minus the task's own metric.
"""

DISTANCES: Final[tuple[Loss, ...]] = ("worst", "divergence", "squared")
"""The losses that are 0 at the full model and never below 0."""

_ROOM: Final = 2**26
"""Largest number of output values from which their range and variance are computed."""

Over = Literal["mean", "worst"]
"""How the losses of inputs are reduced to one: their mean, or the largest."""

Pairs = Int[Tensor, "2 pair"]
"""Row numbers of a dataset: clean inputs in the first row, their corrupted inputs in the second."""


class Objective:
    """A loss, scaled by the outputs of `dataset`.

    Args:
        dataset: the inputs. The range and variance of their outputs are the units of `worst` and `squared`.
        loss: the loss.
        logit_scale: factor on the logits before `divergence`. Tracr's outputs are one-hot, so at 1 even a perfect
            answer is an uncertain one.
        over: how the losses of inputs are reduced to one; `worst` always takes the largest.
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
        """Return the loss of each mask over the whole batch."""
        return self.reduce(self.per_input(outputs, batch))

    def per_input(
        self, outputs: Float[Tensor, "*masks batch pos vocab"], batch: Batch
    ) -> Float[Tensor, "*masks batch"]:
        """Return the loss of each mask on each input."""
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
        """Reduce the losses of the inputs to the loss of the batch."""
        return losses.amax(-1) if self.over == "worst" else losses.mean(-1)

    def change(
        self, losses: Float[Tensor, "*masks batch"], baseline: Float[Tensor, " batch"]
    ) -> Float[Tensor, "*masks"]:
        """Return how much worse than a baseline each mask is, compared input by input; negative means better.

        For `worst`, this is the largest per-input loss increase minus the largest decrease. Comparing the largest
        losses alone would give 0 once one input has the maximal loss, whatever else a mask breaks, and every edge would
        fall.
        """
        difference = losses - baseline
        if self._loss != "worst":
            return difference.mean(-1)
        return difference.amax(-1).clamp(min=0) + difference.amin(-1).clamp(max=0)


def draw_pairs(dataset: Dataset, size: int, generator: torch.Generator) -> Pairs:
    """Draw `size` inputs without replacement (all if there are fewer), each with a corrupted input of its group."""
    clean = torch.randperm(len(dataset), generator=generator)[:size]
    return torch.stack([clean, dataset.partners(clean, generator)])
