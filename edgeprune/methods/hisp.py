"""Head importance scores for pruning: attribution to whole nodes.

Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", arXiv:1905.10650: a head's importance is
`E |output . d loss / d output|`. As in the ACDC paper (arXiv:2304.14997), `clean - ablated` stands for the
output, MLPs and embeddings are scored as heads are, and an edge is kept where both of its ends are.

Note: scores are not normalised layer by layer, which would make the one MLP of a layer as important as any. The loss is
that of EAP, for the same reason.
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
    """See `loss.Loss`; a distance has no gradient at the full model."""

    threshold: float = 0.01
    """Score above which a node is kept, in units of the loss."""

    batch_size: int = 128
    """Inputs a pass, each with a mask of its own, so that what cancels between inputs does not cancel in the score."""

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
    """Score every node by its derivative, and every edge by the lesser of its ends; see `Method` and `HispConfig`."""
    config = HispConfig() if config is None else config
    generator = torch.Generator().manual_seed(seed)
    ablator, objective = Ablator(model, dataset, ablation), Objective(dataset, config.loss)
    shape = len(model.graph.sources), len(model.graph.destinations)
    total = torch.zeros(shape[0])
    batches = dataset.batches(config.batch_size, generator)
    for batch in tqdm(batches, desc=f"HISP, {ablation}", disable=None if progress else True):
        ablated = ablator(batch)
        masks = torch.ones(len(batch.clean), *shape, requires_grad=True)
        # A mask of its own for each input.
        ablated = None if ablated is None else ablated[:, :, None]
        positions = None if batch.positions is None else batch.positions[:, None]
        outputs = model(batch.clean[:, None], masks, ablated, positions)
        loss = objective.per_input(outputs[:, 0], batch).sum()
        # All that a source writes is read along its edges: the derivative by its output is the sum of theirs.
        total += torch.autograd.grad(loss, masks)[0].sum(-1).abs().sum(0)
    return keep_above(model.graph, ablation, edge_scores(model.graph, total / len(dataset)), config.threshold)


def edge_scores(graph: Graph, nodes: Float[Tensor, " source"]) -> Float[Tensor, "source destination"]:
    """The score of each edge: the lesser of its source's and its destination's, the logits being above all.

    Of heads that share keys and values, the one that scores highest counts.
    """
    rows = [
        [graph.source_index[node] for node in graph.readers[d] if node.kind != "logits"] for d in graph.destinations
    ]
    by_destination = torch.stack([nodes[row].max() if row else nodes.max() for row in rows])
    return torch.minimum(nodes[:, None], by_destination)
