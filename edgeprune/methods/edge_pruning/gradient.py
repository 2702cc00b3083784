"""Gradient of E[loss] with respect to log_alpha: through z, or by the likelihood ratio of rounded masks."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from edgeprune.data import Batch
from edgeprune.masked_model import Mask
from edgeprune.masks import LearnedMask, SampledMasks
from edgeprune.methods.edge_pruning.problem import Problem
from edgeprune.methods.loss import Pairs
from edgeprune.methods.settings import refuse


@dataclass(frozen=True)
class Estimate:
    """Result of one draw of masks."""

    loss: float
    """Mean over the samples."""

    gradient: Float[Tensor, " entry"]
    per_input: Float[Tensor, "mask batch"]
    """Loss of each mask on each input. The likelihood ratio puts the current circuit first."""

    draw: SampledMasks
    """The samples; differentiable with respect to log_alpha if the gradient goes through z."""


@dataclass(frozen=True, kw_only=True)
class ThroughZ:
    """Gradient through z: dloss/dz times dz/dlog_alpha, as in the paper (arXiv:1712.01312)."""

    mask_samples: int = 1
    """Masks sampled per step, each run on all inputs of the batch (paper: 1)."""

    explored: float = 1.0
    """Share of mask entries that each sample draws; the others keep their mean, rounded to 0 or 1. 1 draws all."""

    @property
    def rounded(self) -> bool:
        """Whether samples are rounded to 0 and 1: never, because the gradient needs an unrounded z."""
        return False

    def __post_init__(self) -> None:
        _check(self.mask_samples, self.explored, least=1)

    def estimate(self, problem: Problem, masks: LearnedMask, pairs: Pairs, generator: torch.Generator) -> Estimate:
        """Draw masks, run them on a batch part by part, and backpropagate."""
        batches, total, losses = problem.batches(pairs), 0.0, list[Tensor]()
        draw = masks.draw(self.mask_samples, generator, explored=self.explored)
        mask = draw.mask.detach().requires_grad_()
        for batch in batches:
            per_input = problem.losses(mask, batch)
            loss = problem.objective.reduce(per_input).mean() * (len(batch.clean) / pairs.shape[1])
            loss.backward()
            total += float(loss.detach())
            losses.append(per_input.detach())
            del per_input, loss  # frees the autograd graph before the next part runs
        (gradient,) = torch.autograd.grad(draw.mask, masks.log_alpha, mask.grad, retain_graph=True)
        return Estimate(total, gradient, torch.cat(losses, -1), draw)


@dataclass(frozen=True, kw_only=True)
class LikelihoodRatio:
    """Likelihood-ratio gradient (REINFORCE: Williams, 1992): the score of each sample times its change of the loss.

    It needs no derivative of the model. Compiled attention is saturated: the derivative for a query or key edge is 0
    almost everywhere, and the path through z sees its effect only in the rare sample in which z falls on the step.

    Note: what this estimates. A sample draws a share of the entries; the others keep their mean, rounded to 0 or 1. The
    loss of the rounded mask is subtracted, input by input. Under the loss `worst`, a sample's advantage is then the
    largest increase of the loss on any input of the batch plus the largest decrease, a signed sum of the two
    (`Objective.change`). So this is not the gradient of E[loss], but of the mean of that sum over samples among entries
    at rounded means. Under other losses, with all entries drawn, it is an unbiased estimate of the gradient of E[loss].
    """

    mask_samples: int = 64
    """Masks sampled per step, all run in one batched forward pass."""

    explored: float = 0.1
    """Share of mask entries that each sample draws; the others keep their mean, rounded to 0 or 1. 1 draws all."""

    rounded: bool = True
    """Whether sampled masks are rounded to 0 and 1, as the circuit is."""

    def __post_init__(self) -> None:
        _check(self.mask_samples, self.explored, least=2)

    @torch.no_grad()
    def estimate(self, problem: Problem, masks: LearnedMask, pairs: Pairs, generator: torch.Generator) -> Estimate:
        """Draw masks, run them and the current circuit on a batch, and weight their scores by the change of loss."""
        batches = problem.batches(pairs)
        draw = masks.draw(self.mask_samples, generator, explored=self.explored, rounded=self.rounded)
        standing = masks.rounded()
        per_input = torch.cat([losses_per_input(problem, batch, draw.mask, standing) for batch in batches], -1)
        change = problem.objective.change(per_input[1:], per_input[0])
        loss = float(problem.objective.reduce(per_input[1:]).mean())
        return Estimate(loss, masks.likelihood_ratio_gradient(draw, change), per_input, draw)


def losses_per_input(
    problem: Problem, batch: Batch, sampled: Float[Tensor, "sample source destination"], standing: Mask
) -> Float[Tensor, "mask batch"]:
    """Return the losses of the current circuit, then of the sampled masks, from one batched forward pass.

    Samples that equal the circuit are not run again; once most entries have converged, most samples do.
    """
    differs = (sampled != standing).flatten(1).any(-1)
    run = problem.losses(torch.cat([standing[None], sampled[differs]]), batch)
    losses = run[:1].repeat(1 + len(sampled), 1)
    losses[1:][differs] = run[1:]
    return losses


def _check(samples: int, explored: float, *, least: int) -> None:
    faults = [f"mask_samples >= {least}, got {samples}"] if samples < least else []
    if not 0 < explored <= 1:
        faults.append(f"0 < explored <= 1, got {explored}")
    refuse(faults)
