"""Edge attribution patching: what ablating each edge would do, to first order, from one backward pass.

Syed, Rager and Conmy, "Attribution Patching Outperforms Automated Circuit Discovery", arXiv:2310.10348: an edge
scores `(ablated - clean) . d loss / d input of its destination`, the mean over inputs: about how much the loss rises
without the edge. Below 0, the edge works against the answer. A destination reads `z * clean + (1 - z) * ablated`, so
that the score is minus the derivative of the loss by z, at z = 1; all edges have theirs from one forward and one
backward pass. Edges are chosen by the size of their scores, as in the paper and by default in EAP-IG's code.

Note: the loss is minus a logit difference, for any number of answers, or its like for numbers (`loss.Loss`); a
divergence from the full model has no gradient there. Where the paper keeps a given number of edges, those
above one threshold are kept, for every model alike. Compiled attention is saturated: the derivative by a query or key
edge is zero almost everywhere, and what depends on it is not seen.
"""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from edgeprune.ablation import Ablator
from edgeprune.data import Dataset
from edgeprune.errors import ConfigError
from edgeprune.graph import Ablation
from edgeprune.masked_model import MaskedModel
from edgeprune.methods.loss import Loss, Objective
from edgeprune.methods.method import Discovery, keep_above


@dataclass(frozen=True, kw_only=True)
class EapConfig:
    """Settings of `attribution_patching`."""

    loss: Loss = "disagreement"
    """See `loss.Loss`; a distance has no gradient at the full model."""

    threshold: float = 0.01
    """Size of a score above which an edge is kept, in units of the loss."""

    batch_size: int = 512
    """Inputs a pass; every input is run once."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"Expected batch_size >= 1, got {self.batch_size}")


def attribution_patching(
    model: MaskedModel,
    dataset: Dataset,
    ablation: Ablation,
    *,
    seed: int = 0,
    progress: bool = False,
    config: EapConfig | None = None,
) -> Discovery:
    """Score every edge by its derivative; see `Method` and `EapConfig`."""
    config = EapConfig() if config is None else config
    generator = torch.Generator().manual_seed(seed)
    ablator, objective = Ablator(model, dataset, ablation), Objective(dataset, config.loss)
    total = torch.zeros(len(model.graph.sources), len(model.graph.destinations))
    batches = dataset.batches(config.batch_size, generator)
    for batch in tqdm(batches, desc=f"EAP, {ablation}", disable=None if progress else True):
        mask = torch.ones_like(total, requires_grad=True)
        loss = objective.per_input(model(batch.clean, mask, ablator.own(batch), batch.positions), batch).sum()
        total -= torch.autograd.grad(loss, mask)[0]
        del loss  # and all that it holds, before the next batch runs
    return keep_above(model.graph, ablation, total / len(dataset), config.threshold, signed=True)
