"""The slow, obvious masked forward: dense sources, one edge at a time, for one mask and one input."""

import numpy as np
import torch

from edgeprune.graph import Graph
from tracr_bridge.compile.weights import Weights


def sources_and_output(weights: Weights, graph: Graph, ids, mask, ablated):
    """All sources `[source, pos, d_model]` and the outputs `[pos, outputs]` of one unpadded input.

    `mask` is `[source, destination]`; `ablated` is `[source, pos, d_model]`. Works in float64, differentiably.
    """
    length = len(ids)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).double()

    written = [tensor(weights.token)[ids], tensor(weights.position)[:length]]

    def read(destination: int) -> torch.Tensor:
        total = torch.zeros(length, weights.token.shape[1], dtype=torch.float64)
        for row, clean in enumerate(written):
            if graph.sources[row].stage < graph.destinations[destination].stage:
                z = mask[row, destination]
                total = total + z * clean + (1 - z) * ablated[row]
        return total

    column = 0
    for layer in weights.layers:
        heads = len(layer.heads)
        outputs = []
        for h, head in enumerate(layer.heads):
            query = read(column + h) @ tensor(head.query)
            key = read(column + heads + h) @ tensor(head.key)
            value = read(column + 2 * heads + h) @ tensor(head.value)
            scores = query @ key.T / head.query.shape[1] ** 0.5
            if weights.causal:
                scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            outputs.append(torch.softmax(scores, dim=-1) @ value @ tensor(head.output))
        written += outputs
        column += 3 * heads
        written.append(torch.relu(read(column) @ tensor(layer.hidden)) @ tensor(layer.output))
        column += 1
    return torch.stack(written), read(column) @ tensor(weights.unembed)
