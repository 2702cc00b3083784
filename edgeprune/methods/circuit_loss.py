"""Loss of many circuits on one sample of inputs, drawn once."""

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from edgeprune.ablation import Ablator
from edgeprune.data import Batch, Dataset
from edgeprune.errors import promise
from edgeprune.graph import Ablation, Graph
from edgeprune.masked_model import MaskedModel
from edgeprune.methods.loss import DISTANCES, Loss, Objective, Over
from edgeprune.parallel import ranks_of

_ROOM: Final = 2**28
"""Largest number of ablated source values held in memory; above it they are recomputed."""

_SLACK: Final = 1e-5
"""Relative margin on a limit: rounding lets sums over batches differ from the mean over all inputs."""


class CircuitLoss:
    """Evaluates circuits on one sample, several masks per forward pass.

    Args:
        model: the full model.
        dataset: inputs to draw from.
        ablation: the ablation of removed edges, or an `Ablator`.
        loss: loss of each input; see `loss.Loss`.
        logit_scale: factor on the logits before a divergence.
        over: how the losses of the inputs are reduced to one.
        inputs: size of the sample; all inputs if there are fewer. Inputs without a scored prediction are never drawn.
        batch_size: inputs per forward pass; affects time and memory only.
        seed: seed of the sample.
    """

    def __init__(
        self,
        model: MaskedModel,
        dataset: Dataset,
        ablation: Ablation | Ablator,
        *,
        loss: Loss = "divergence",
        logit_scale: float = 1.0,
        over: Over = "mean",
        inputs: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self._model: MaskedModel = model
        self._is_distance = loss in DISTANCES
        self._objective = Objective(dataset, loss, logit_scale=logit_scale, over=over)
        ablator = ablation if isinstance(ablation, Ablator) else Ablator(model, dataset, ablation)
        counted = torch.nonzero(dataset.scored.any(-1))[:, 0]
        generator = torch.Generator().manual_seed(seed)
        self._batches = list(dataset.sample_batches(inputs, batch_size, generator, among=counted))
        self._ablated = _ablated(ablator, self._batches)
        self.inputs = sum(len(batch.clean) for batch in self._batches)
        self.masks_run = 0

    @property
    def graph(self) -> Graph:
        """The graph whose edges the masks refer to."""
        return self._model.graph

    @torch.no_grad()
    def __call__(
        self, masks: Float[Tensor, "mask source destination"], *, limit: float = math.inf
    ) -> Float[Tensor, " mask"]:
        """Return the loss of each mask; infinite where it is NaN.

        Args:
            masks: the circuits.
            limit: losses above this are returned as infinite, and such circuits need not be run on all inputs. Only for
                losses that are never below 0.
        """
        promise(self._is_distance or limit == math.inf, "a limit asks for losses that are nowhere below 0")
        self.masks_run += len(masks)
        return self._race(masks, limit, self._on(0, masks))

    @torch.no_grad()
    def glance(self, masks: Float[Tensor, "mask source destination"]) -> Float[Tensor, " mask"]:
        """Return the loss of each mask on the first batch alone, as a cheap estimate of their ranking."""
        self.masks_run += len(masks)
        return self._objective.reduce(self._on(0, masks))

    @torch.no_grad()
    def best(self, masks: Float[Tensor, "mask source destination"], *, limit: float = math.inf) -> tuple[int, float]:
        """Return the index and the loss of the best circuit; the loss is infinite if none is within the limit.

        The circuit that is best on the first batch is run on all inputs. The others are run only while they can still
        beat it.
        """
        promise(self._is_distance, "a race asks for losses that are nowhere below 0")
        self.masks_run += len(masks)
        first = self._on(0, masks)
        leader = int(self._objective.reduce(first).argmin())
        (of_leader,) = self._race(masks[[leader]], limit, first[[leader]])
        losses = self._race(masks, min(limit, float(of_leader)), first)
        losses[leader] = of_leader
        number = int(losses.argmin())
        return number, float(losses[number])

    def _race(
        self, masks: Float[Tensor, "mask source destination"], limit: float, first: Float[Tensor, "mask input"]
    ) -> Float[Tensor, " mask"]:
        """Return the losses, given those on the first batch; circuits are run while they can be within the limit."""
        losses, running = [first], torch.arange(len(masks))
        for number in range(1, len(self._batches)):
            if math.isfinite(limit):
                running = running[self._least(torch.cat(losses, -1))[running] <= limit * (1 + _SLACK)]
            found = first.new_full((len(masks), len(self._batches[number].clean)), math.inf)
            found[running] = self._on(number, masks[running])
            losses.append(found)
        reduced = self._objective.reduce(torch.cat(losses, -1))
        return torch.where(reduced <= limit, reduced, math.inf)

    def _on(self, number: int, masks: Float[Tensor, "mask source destination"]) -> Float[Tensor, "mask input"]:
        """Return the loss of each mask on each input of batch `number`; infinite where it is NaN."""
        batch, ablated = self._batches[number], self._ablated(number)
        losses = self._objective.per_input(self._model(batch.clean, masks, ablated, batch.positions), batch)
        losses = torch.nan_to_num(losses, nan=math.inf, posinf=math.inf)
        if self._is_distance:  # rounding may give slightly less than 0
            losses = losses.clamp(min=0)
        losses = losses.contiguous()
        ranks_of(self._model).take_first(losses)  # else processes would continue with different losses
        return losses

    def gradient(self, mask: Float[Tensor, "source destination"]) -> Float[Tensor, "source destination"]:
        """Return the derivative of the circuit's mean loss with respect to each mask entry."""
        mask = mask.clone().requires_grad_()
        for number, batch in enumerate(self._batches):
            ablated = self._ablated(number)
            loss = self._objective.per_input(self._model(batch.clean, mask, ablated, batch.positions), batch)
            (loss.sum() / self.inputs).backward()
        assert mask.grad is not None
        ranks_of(self._model).take_first(mask.grad)
        return mask.grad

    def _least(self, losses: Float[Tensor, "mask input"]) -> Float[Tensor, " mask"]:
        """Return a lower bound on the loss over all inputs, given the losses of some of them."""
        return losses.amax(-1) if self._objective.over == "worst" else losses.sum(-1) / self.inputs


def _ablated(ablator: Ablator, batches: Sequence[Batch]) -> Callable[[int], Tensor | None]:
    """Return a function that gives each batch's ablated sources: held in memory if they fit, else recomputed."""
    first = ablator.own(batches[0])
    if first is None or first.numel() * len(batches) <= _ROOM:
        return [first, *map(ablator.own, batches[1:])].__getitem__
    return lambda number: ablator.own(batches[number])
