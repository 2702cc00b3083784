"""The loss of many circuits on one sample of inputs, which is drawn once."""

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
"""Numbers that ablated sources of all inputs may be to be held."""

_SLACK: Final = 1e-5
"""Share of a limit by which sums of parts may differ from the mean of the whole."""


class CircuitLoss:
    """Runs circuits, several masks in a forward.

    Args:
        model: the full model.
        dataset: inputs to draw from.
        ablation: what removed edges carry, or what gives it.
        loss: of each input, see `loss.Loss`.
        logit_scale: what logits are multiplied by before a divergence.
        over: how the losses of inputs become one.
        inputs: inputs in the sample, or all where there are fewer; those of which no output counts are in none.
        batch_size: inputs in a forward; it changes nothing but time and memory.
        seed: of the sample.
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
        """The edges that masks stand for."""
        return self._model.graph

    @torch.no_grad()
    def __call__(
        self, masks: Float[Tensor, "mask source destination"], *, limit: float = math.inf
    ) -> Float[Tensor, " mask"]:
        """The loss of each; infinite where it is no number.

        Args:
            masks: circuits.
            limit: infinite stands for a loss above it, and the circuit need not be run to the end. Only for losses that
                are nowhere below 0.
        """
        promise(self._is_distance or limit == math.inf, "a limit asks for losses that are nowhere below 0")
        self.masks_run += len(masks)
        return self._race(masks, limit, self._on(0, masks))

    @torch.no_grad()
    def glance(self, masks: Float[Tensor, "mask source destination"]) -> Float[Tensor, " mask"]:
        """The loss of each on the first inputs alone, by which it can be guessed which is best."""
        self.masks_run += len(masks)
        return self._objective.reduce(self._on(0, masks))

    @torch.no_grad()
    def best(self, masks: Float[Tensor, "mask source destination"], *, limit: float = math.inf) -> tuple[int, float]:
        """The circuit of least loss, and that loss; infinite where none is within the limit.

        The one that is best on the first inputs is run to the end, and others as long as they may be better still.
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
        """The losses, given those on the first inputs; each circuit is run as long as it may be within the limit."""
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
        """The loss of each mask on each input of a batch; infinite where it is no number."""
        batch, ablated = self._batches[number], self._ablated(number)
        losses = self._objective.per_input(self._model(batch.clean, masks, ablated, batch.positions), batch)
        losses = torch.nan_to_num(losses, nan=math.inf, posinf=math.inf)
        if self._is_distance:  # rounding may say that it is less
            losses = losses.clamp(min=0)
        losses = losses.contiguous()
        ranks_of(self._model).take_first(losses)  # or processes would go on with others
        return losses

    def gradient(self, mask: Float[Tensor, "source destination"]) -> Float[Tensor, "source destination"]:
        """The derivative of a circuit's mean loss by each entry of its mask."""
        mask = mask.clone().requires_grad_()
        for number, batch in enumerate(self._batches):
            ablated = self._ablated(number)
            loss = self._objective.per_input(self._model(batch.clean, mask, ablated, batch.positions), batch)
            (loss.sum() / self.inputs).backward()
        assert mask.grad is not None
        ranks_of(self._model).take_first(mask.grad)
        return mask.grad

    def _least(self, losses: Float[Tensor, "mask input"]) -> Float[Tensor, " mask"]:
        """The least that losses over all inputs can be, given those of some."""
        return losses.amax(-1) if self._objective.over == "worst" else losses.sum(-1) / self.inputs


def _ablated(ablator: Ablator, batches: Sequence[Batch]) -> Callable[[int], Tensor | None]:
    """The ablated sources of each batch: held where they fit, and otherwise computed whenever they are asked for."""
    first = ablator.own(batches[0])
    if first is None or first.numel() * len(batches) <= _ROOM:
        return [first, *map(ablator.own, batches[1:])].__getitem__
    return lambda number: ablator.own(batches[number])
