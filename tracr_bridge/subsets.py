"""Every subset of edges that could be a circuit: those in which each edge leads on to the logits."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from edgeprune.graph import Edge, Graph, Node


def live_subsets(graph: Graph, edges: Sequence[Edge], *, limit: int) -> Bool[Tensor, "subset edge"] | None:
    """All subsets of `edges` whose every edge has a path to the logits within the subset.

    Built backwards from the logits: a destination may have inputs only once something reads what is computed with it.
    Counted first, so that nothing is built beyond `limit`, where the answer is None.
    """
    into: dict[Node, list[int]] = {}
    out_of: dict[Node, list[int]] = {}
    for index, edge in enumerate(edges):
        into.setdefault(edge.destination, []).append(index)
        out_of.setdefault(edge.source, []).append(index)
    subsets = torch.zeros(1, len(edges), dtype=torch.bool)
    for destination in sorted(into, key=lambda node: -node.stage):
        if destination.kind == "logits":
            live = torch.ones(len(subsets), dtype=torch.bool)
        else:
            read = [index for node in graph.readers[destination] for index in out_of.get(node, [])]
            live = subsets[:, read].any(-1)
        inputs = into[destination]
        if len(inputs) > 30 or int(live.sum()) * (1 << len(inputs)) + int((~live).sum()) > limit:
            return None
        codes = torch.arange(1 << len(inputs))
        choices = (codes[:, None] >> torch.arange(len(inputs))) & 1 == 1
        grown = subsets[live].repeat_interleave(len(choices), dim=0)
        grown[:, inputs] = choices.repeat(int(live.sum()), 1)
        subsets = torch.cat([grown, subsets[~live]])
    return subsets
