"""A discovery method that is no part of the toolkit: ablate every edge alone, and keep those that matter."""

import torch

from edgeprune.ablation import Ablator
from edgeprune.data import Dataset
from edgeprune.graph import Ablation, Circuit, Edge
from edgeprune.masked_model import MaskedModel
from edgeprune.masks import mask_of


def knockout(model: MaskedModel, dataset: Dataset, ablation: Ablation, *, seed: int) -> Circuit:
    """The edges whose removal alone changes some output by more than 0.01 on 512 random pairs of inputs."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(len(dataset), (512,), generator=generator)
    batch = dataset.take(clean, dataset.partners(clean, generator))
    ablated = Ablator(model, dataset, ablation)(batch)
    everything = frozenset(model.graph.edges)
    kept: set[Edge] = set()
    for edge in model.graph.edges:
        outputs = model(batch.clean, mask_of(model.graph, everything - {edge}), ablated)
        if float((outputs - batch.target).abs().amax(-1)[batch.scored].max()) > 0.01:
            kept.add(edge)
    return Circuit(model.graph, ablation, frozenset(kept))
