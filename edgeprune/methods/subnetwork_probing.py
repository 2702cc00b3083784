"""Subnetwork probing: masks on nodes or on edges, learned by gradient descent under a penalty.

Cao, Sanh and Rush, "Low-Complexity Probing via Finding Subnetworks", arXiv:2104.03514: hard-concrete masks that
minimise `loss + lambda * E[L0]`. The ACDC paper (arXiv:2304.14997) brought it to circuits, with the
divergence from the full model for a loss and masks on nodes; an edge is in that circuit where both of its ends are.

Note: the masks' gradient is the path derivative, as in the paper; several masks are sampled a step. `lambda` and all
else is one configuration for every model. Numbers, which have no divergence, take a squared error.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from edgeprune.ablation import Ablator
from edgeprune.data import Dataset
from edgeprune.errors import ConfigError
from edgeprune.graph import Ablation
from edgeprune.masks import HardConcrete, LearnedMask
from edgeprune.methods.hisp import edge_scores
from edgeprune.methods.method import Discovery, Trace
from edgeprune.methods.objective import Loss, Objective, draw_pairs
from edgeprune.model import MaskedModel


@dataclass(frozen=True, kw_only=True)
class ProbingConfig:
    """Settings of `probe_subnetwork`."""

    masked: Literal["edges", "nodes"] = "edges"
    """What has masks."""

    penalty: float = 0.05
    """lambda: what one expected mask entry costs, in units of the loss."""

    steps: int = 400
    """Optimiser steps."""

    mask_samples: int = 16
    """Masks sampled a step."""

    batch_size: int = 16
    """Inputs a step, shared by all masks."""

    learning_rate: float = 0.1
    """Adam's, in units of log_alpha a step."""

    initial_log_alpha: float = 5.0
    """Start of every entry: all but surely kept."""

    loss: Loss = "divergence"
    """See `objective.Loss`."""

    logit_scale: float = 10.0
    """Logits are multiplied by this before a divergence; compiled outputs are one-hot."""

    hard_concrete: HardConcrete = field(default_factory=HardConcrete)
    """The masks' distribution (paper)."""

    def __post_init__(self) -> None:
        names = ("penalty", "steps", "mask_samples", "batch_size", "learning_rate")
        faults = [f"{name} > 0, got {getattr(self, name)}" for name in names if not getattr(self, name) > 0]
        if faults:
            raise ConfigError(f"Expected {'; '.join(faults)}")


def probe_subnetwork(
    model: MaskedModel,
    dataset: Dataset,
    ablation: Ablation,
    *,
    seed: int = 0,
    progress: bool = False,
    config: ProbingConfig | None = None,
) -> Discovery:
    """Learn masks; with masks of nodes, an edge's score is the lesser of its ends'. See `Method`, `ProbingConfig`."""
    config = ProbingConfig() if config is None else config
    generator = torch.Generator().manual_seed(seed)
    masks = LearnedMask(model.graph, config.hard_concrete, initial=config.initial_log_alpha, of=config.masked)
    optimizer = torch.optim.Adam([masks.log_alpha], lr=config.learning_rate)
    objective = Objective(dataset, config.loss, logit_scale=config.logit_scale)
    ablator = Ablator(model, dataset, ablation)

    def scores() -> Float[Tensor, "source destination"]:
        mean = config.hard_concrete.mean(masks.log_alpha.detach())
        return edge_scores(model.graph, mean) if config.masked == "nodes" else masks.mean().detach()

    trace = Trace(masks, config.steps, lambda: scores() > 0.5)
    description = f"probing {config.masked}, {ablation}"
    for _ in tqdm(range(config.steps), desc=description, disable=None if progress else True):
        pairs = draw_pairs(dataset, config.batch_size, generator)
        batch = dataset.take(pairs[0], pairs[1])
        mask = masks.draw(config.mask_samples, generator).mask
        loss = objective(model(batch.clean, mask, ablator(batch), batch.positions), batch).mean()
        kept = config.hard_concrete.probability_positive(masks.log_alpha).sum()
        optimizer.zero_grad()
        (loss + config.penalty * kept).backward()
        optimizer.step()
        with torch.no_grad():
            trace.note(loss.item(), masks.expected_edges())
    return trace.discovery(ablation, scores())
