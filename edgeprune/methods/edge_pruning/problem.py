"""The problem that Edge Pruning solves: a model, inputs, an ablation, and a loss for masked outputs."""

from dataclasses import dataclass

import torch
from jaxtyping import Float

from edgeprune.ablation import Ablator
from edgeprune.data import Batch, Dataset
from edgeprune.graph import Ablation, Graph
from edgeprune.masked_model import Mask, MaskedModel
from edgeprune.methods.loss import Loss, Objective, Over, Pairs


@dataclass(frozen=True)
class Problem:
    """A model, its inputs, an ablation and a loss. Batches are run in parts to save memory."""

    model: MaskedModel
    dataset: Dataset
    objective: Objective
    ablator: Ablator
    parts: int = 1
    """Number of parts that a batch is run in, one after the other."""

    @staticmethod
    def of(
        model: MaskedModel,
        dataset: Dataset,
        ablation: Ablation,
        loss: Loss,
        *,
        logit_scale: float = 1.0,
        over: Over = "mean",
        parts: int = 1,
    ) -> "Problem":
        """Return the problem of finding a circuit under an ablation."""
        objective = Objective(dataset, loss, logit_scale=logit_scale, over=over)
        return Problem(model, dataset, objective, Ablator(model, dataset, ablation), parts)

    @property
    def graph(self) -> Graph:
        """The graph whose edges the masks refer to."""
        return self.model.graph

    def batches(self, pairs: Pairs) -> list[Batch]:
        """Return the batch of these pairs of rows, in `parts` parts."""
        return [self.dataset.take(some[0], some[1]) for some in pairs.chunk(self.parts, dim=1)]

    def losses(self, masks: Mask, batch: Batch) -> Float[torch.Tensor, "*masks batch"]:
        """Return the loss of each mask on each input."""
        outputs = self.model(batch.clean, masks, self.ablator.own(batch), batch.positions)
        return self.objective.per_input(outputs, batch)
