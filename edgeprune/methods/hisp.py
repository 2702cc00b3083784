"""Head importance scores for pruning (HISP): attribution to whole nodes.

Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", arXiv:1905.10650: a head's importance is
`E |output . d loss / d output|`. As in the ACDC paper (arXiv:2304.14997), `clean - ablated` replaces the output, MLPs
and embeddings are scored like heads, and an edge is kept if both of its ends are.

Note: scores are not normalised per layer, because that would make the only MLP of a layer as important as any. The loss
is EAP's, for the same reason as there: a distance has no gradient at the full model.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from edgeprune.ablation import Ablator
from edgeprune.data import Dataset
from edgeprune.errors import ConfigError
from edgeprune.graph import Ablation, Graph
from edgeprune.masked_model import MaskedModel
from edgeprune.methods.loss import Loss, Objective
from edgeprune.methods.method import Discovery, keep_above


@dataclass(frozen=True, kw_only=True)
class HispConfig:
    """Settings of `score_nodes`."""

    loss: Loss = "disagreement"
    """Loss to differentiate; see `loss.Loss`. A distance has no gradient at the full model."""

    threshold: float = 0.01
    """Nodes that score above this are kept; in units of the loss."""

    batch_size: int = 128
    """Inputs per pass. Each has its own mask, so that effects of opposite sign on different inputs do not cancel."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"Expected batch_size >= 1, got {self.batch_size}")


def score_nodes(
    model: MaskedModel,
    dataset: Dataset,
    ablation: Ablation,
    *,
    seed: int = 0,
    progress: bool = False,
    config: HispConfig | None = None,
) -> Discovery:
    """Score every node by its derivative, every edge by the lower of its two nodes; see `Method`, `HispConfig`."""
    config = HispConfig() if config is None else config
    generator = torch.Generator().manual_seed(seed)
    ablator, objective = Ablator(model, dataset, ablation), Objective(dataset, config.loss)
    shape = len(model.graph.sources), len(model.graph.destinations)
    total = torch.zeros(shape[0])
    batches = dataset.batches(config.batch_size, generator)
    for batch in tqdm(batches, desc=f"HISP, {ablation}", disable=None if progress else True):
        ablated = ablator(batch)
        masks = torch.ones(len(batch.clean), *shape, requires_grad=True)
        # One mask per input.
        ablated = None if ablated is None else ablated[:, :, None]
        positions = None if batch.positions is None else batch.positions[:, None]
        outputs = model(batch.clean[:, None], masks, ablated, positions)
        loss = objective.per_input(outputs[:, 0], batch).sum()
        # A source's output is read along its edges alone, so their derivatives sum to the node's attribution.
        total += torch.autograd.grad(loss, masks)[0].sum(-1).abs().sum(0)
    return keep_above(model.graph, ablation, edge_scores(model.graph, total / len(dataset)), config.threshold)


def edge_scores(graph: Graph, nodes: Float[Tensor, " source"]) -> Float[Tensor, "source destination"]:
    """Return each edge's score: the lower of its source's and its destination's. The logits never lower it.

    If several heads share keys and values, the destination has the score of the highest-scoring one.
    """
    rows = [
        [graph.source_index[node] for node in graph.readers[d] if node.kind != "logits"] for d in graph.destinations
    ]
    by_destination = torch.stack([nodes[row].max() if row else nodes.max() for row in rows])
    return torch.minimum(nodes[:, None], by_destination)
