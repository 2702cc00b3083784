"""Subnetwork probing: masks on nodes or on edges, learned by gradient descent under a penalty.

Cao, Sanh and Rush, "Low-Complexity Probing via Finding Subnetworks", arXiv:2104.03514: hard-concrete masks that
minimise `loss + lambda * E[L0]`. The ACDC paper (arXiv:2304.14997) applied it to circuits, with the divergence from the
full model as the loss and masks on nodes; an edge is in the circuit if both of its ends are.

Note: the gradient goes through z, as in the paper, and several masks are sampled per step. `lambda` and all other
settings are one configuration for every model. Numerical outputs have no divergence and use squared error. The engine
is Edge Pruning's.
"""

from dataclasses import replace
from typing import Final

from edgeprune.data import Dataset
from edgeprune.graph import Ablation
from edgeprune.masked_model import MaskedModel
from edgeprune.masks import edge_exists
from edgeprune.methods.edge_pruning.config import LossConfig, MaskConfig, PruningConfig
from edgeprune.methods.edge_pruning.engine import prune_edges
from edgeprune.methods.edge_pruning.gradient import ThroughZ
from edgeprune.methods.edge_pruning.optimizer import AdamConfig
from edgeprune.methods.edge_pruning.pressure import Penalty
from edgeprune.methods.hisp import edge_scores
from edgeprune.methods.method import Discovery, keep_above

EDGES: Final = PruningConfig(
    name="subnetwork-probing",
    steps=400,
    batch_size=16,
    gradient=ThroughZ(mask_samples=16),
    pressure=Penalty(penalty=0.05, counted="entries"),
    optimizer=AdamConfig(learning_rate=0.1, learning_rate_decay=0.0),
    masks=MaskConfig(masked="edges", initial_log_alpha=5.0),
    loss=LossConfig(logit_scale=10.0),
)
"""Masks on edges. Compiled outputs are one-hot, so logits are scaled by 10."""

NODES: Final = replace(EDGES, name="subnetwork-probing-nodes", masks=replace(EDGES.masks, masked="nodes"))
"""Masks on nodes, as in both papers."""


def probe_nodes(
    model: MaskedModel,
    dataset: Dataset,
    ablation: Ablation,
    *,
    seed: int = 0,
    progress: bool = False,
    config: PruningConfig = NODES,
) -> Discovery:
    """Learn masks on nodes. An edge's score is the lower of its two nodes'. See `Method`."""
    found = prune_edges(model, dataset, ablation, seed=seed, progress=progress, config=config)
    exists = edge_exists(model.graph)
    # Every edge out of a source has that source's mask.
    scores = edge_scores(model.graph, found.scores.amax(-1))
    snapshots = tuple(
        replace(shot, kept=exists & (edge_scores(model.graph, shot.kept.any(-1).float()) > 0.5))
        for shot in found.snapshots
    )
    circuit = keep_above(model.graph, ablation, scores, 0.5).circuit
    return replace(found, circuit=circuit, scores=scores, snapshots=snapshots)
