"""Edge attribution patching: a first-order estimate of what ablating each edge does, from one backward pass.

Syed, Rager and Conmy, "Attribution Patching Outperforms Automated Circuit Discovery", arXiv:2310.10348. An edge's score
is `(ablated - clean) . d loss / d input of its destination`, averaged over inputs: about how much the loss rises
without the edge. A negative score means that the edge works against the answer. A destination reads
`z * clean + (1 - z) * ablated`, so the score is minus the derivative of the loss with respect to z, at z = 1. One
forward and one backward pass give it for all edges. Edges are chosen by the size of their scores, as in the paper and
by default in EAP-IG's code.

Note: the loss is minus a logit difference, for any number of answers, or its analogue for numerical outputs
(`loss.Loss`); the divergence from the full model has no gradient at the full model. The paper keeps a given number of
edges; here, edges above one threshold are kept, the same for every model. Compiled attention is saturated: the
derivative for a query or key edge is 0 almost everywhere, so EAP does not see such edges.
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
    """Loss to differentiate; see `loss.Loss`. A distance has no gradient at the full model."""

    threshold: float = 0.01
    """Edges whose score exceeds this in size are kept; in units of the loss."""

    batch_size: int = 512
    """Inputs per pass; every input is run once."""

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
    """Score every edge by minus its derivative; see `Method` and `EapConfig`."""
    config = EapConfig() if config is None else config
    generator = torch.Generator().manual_seed(seed)
    ablator, objective = Ablator(model, dataset, ablation), Objective(dataset, config.loss)
    total = torch.zeros(len(model.graph.sources), len(model.graph.destinations))
    batches = dataset.batches(config.batch_size, generator)
    for batch in tqdm(batches, desc=f"EAP, {ablation}", disable=None if progress else True):
        mask = torch.ones_like(total, requires_grad=True)
        loss = objective.per_input(model(batch.clean, mask, ablator.own(batch), batch.positions), batch).sum()
        total -= torch.autograd.grad(loss, mask)[0]
        del loss  # frees the autograd graph before the next batch runs
    return keep_above(model.graph, ablation, total / len(dataset), config.threshold, signed=True)
