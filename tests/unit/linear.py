"""A masked model whose outputs, losses and gradients can be written down: a sum of what its edges carry."""

import torch

from edgeprune.data import Dataset
from edgeprune.graph import Graph
from edgeprune.masks import edge_exists

GRAPH = Graph.transformer(embeddings=("embed",), layers=1, heads=1)
"""Eight edges."""

EXISTS = edge_exists(GRAPH)


class Linear:
    """An edge carries its weight times the input's one token, or times the ablated one's where it is removed."""

    graph = GRAPH

    def __init__(self, weights) -> None:
        self.weights = torch.zeros(EXISTS.shape).masked_scatter(EXISTS, torch.tensor(weights))

    def sources(self, tokens):
        return tokens[None, ..., None].float().repeat(len(GRAPH.sources), 1, 1, 1)

    def __call__(self, tokens, mask=None, ablated=None, positions=None):
        total = self.weights.sum()
        kept = total if mask is None else (mask * self.weights).sum((-2, -1))[..., None, None]
        other = 0.0 if ablated is None else ablated[0, ..., 0]
        return (kept * tokens + (total - kept) * other)[..., None]


WEIGHTS = [1.0, -0.5, 0.25, 2.0, 0.0, 0.75, -1.5, 0.5]


def data(model, tokens=(1, 2, 4, 5, 7), group=None, **more):
    """Inputs of one token each, all of one length unless `group` says otherwise."""
    tokens = torch.tensor(tokens)[:, None]
    group = torch.zeros(len(tokens), dtype=torch.long) if group is None else torch.tensor(group)
    scored = torch.ones(len(tokens), 1, dtype=torch.bool)
    return Dataset(tokens, scored, model(tokens), group, logits=False, **more)
