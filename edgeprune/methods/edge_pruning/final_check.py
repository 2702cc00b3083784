"""The last stage of Edge Pruning: run the circuit on many more inputs than it was learned on, and remove edges."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Int
from torch import Tensor

from edgeprune.ablation import rows_at_once
from edgeprune.graph import Edge
from edgeprune.groups import Removals, masks_without, removals
from edgeprune.masked_model import Mask
from edgeprune.masks import edges_of, live
from edgeprune.methods.edge_pruning.problem import Problem
from edgeprune.methods.loss import Pairs, draw_pairs

Known = Int[Tensor, "2 known"]
"""Pairs, as in `Pairs`, that showed some mask to be wrong."""

_FIRST: Final = 32
"""Inputs on which a removal is tried before it is tried on many more."""

_FEWEST: Final = 8
"""Pairs that a removal is tried on first; they expose nearly every wrong removal."""

_ROWS: Final = 4096
"""Largest number of masked inputs per forward pass."""


@dataclass(frozen=True)
class FinalCheck:
    """Runs circuits on all inputs or pairs, or on a sample of them."""

    problem: Problem
    """The problem. Its loss is 0 where a circuit is right, and nowhere else."""

    generator: torch.Generator
    count: int
    """Largest number of inputs, or of pairs of clean and corrupted inputs."""

    def pairs(self, known: Known) -> Pairs:
        """Return the pairs to run a circuit on: all in random order, or a sample and the `known` pairs."""
        dataset = self.problem.dataset
        if self.problem.ablator.ablation != "resample" or dataset.counterparts is not None:  # one pair per clean input
            return torch.cat([draw_pairs(dataset, self.count, self.generator), known], dim=1)
        if int(dataset.group.bincount().square().sum()) <= self.count:
            every = torch.stack(dataset.pairs())
            return every[:, torch.randperm(every.shape[1], generator=self.generator)]
        walks = math.ceil(self.count / len(dataset))
        drawn = [draw_pairs(dataset, self.count, self.generator) for _ in range(walks)]
        return torch.cat([torch.cat(drawn, dim=1)[:, : self.count], known], dim=1)

    @torch.no_grad()
    def counterexamples(self, mask: Mask, pairs: Pairs) -> Known:
        """Return the pairs on which a mask is wrong."""
        problem, wrong = self.problem, list[Pairs]()
        for some in pairs.split(rows_at_once(problem.model, problem.dataset), dim=1):
            batch = problem.dataset.take(some[0], some[1])
            wrong.append(some[:, ~(problem.losses(mask, batch) <= 0)])
        return torch.cat(wrong, dim=1)

    def without_superfluous(self, mask: Mask, known: Known) -> frozenset[Edge]:
        """Remove edges and groups of edges from a mask until none can go, large groups first; return the edges left.

        A removal is tried on the known pairs and a few inputs, then on all. A pair on which it is wrong becomes known.
        """
        graph = self.problem.graph
        edges = edges_of(graph, live(graph, mask > 0))
        while True:
            listed = sorted(edges)
            removed = removals(graph, listed).flip(0)
            for number in self._right_on_few(listed, removed, known):
                (mask,) = masks_without(graph, listed, removed[[number]])
                wrong = self.counterexamples(mask, self.pairs(known))
                if not wrong.shape[1]:
                    edges = edges_of(graph, live(graph, mask > 0))
                    break
                known = torch.cat([known, wrong[:, :1]], dim=1)
            else:
                return edges

    @torch.no_grad()
    def _right_on_few(self, edges: Sequence[Edge], removed: Removals, known: Known) -> list[int]:
        """Return the removals that are right on the known pairs and a few drawn inputs; some of these run first."""
        pairs = torch.cat([known, draw_pairs(self.problem.dataset, _FIRST, self.generator)], dim=1)
        right = torch.arange(len(removed))
        for some in (pairs[:, :_FEWEST], pairs[:, _FEWEST:]):
            if not len(right) or not some.shape[1]:
                break
            batch, verdicts = self.problem.dataset.take(some[0], some[1]), list[Tensor]()
            ablated = self.problem.ablator.own(batch)
            for part in removed[right].split(_ROWS // max(1, some.shape[1])):
                masks = masks_without(self.problem.graph, edges, part)
                outputs = self.problem.model(batch.clean, masks, ablated, batch.positions)
                verdicts.append((self.problem.objective.per_input(outputs, batch) <= 0).all(-1))
            right = right[torch.cat(verdicts)]
        return right.tolist()
