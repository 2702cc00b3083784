"""The last stage of Edge Pruning: a circuit is run on many more inputs than it was learned on, and cut down."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Int
from torch import Tensor

from edgeprune.ablation import Ablator, rows_at_once
from edgeprune.data import Dataset
from edgeprune.graph import Edge, live_edges
from edgeprune.groups import Removals, masks_without, removals
from edgeprune.masks import edges_of
from edgeprune.methods.objective import Objective, Pairs, draw_pairs
from edgeprune.model import Mask, MaskedModel

Known = Int[Tensor, "2 known"]
"""Pairs, as `Pairs`, that showed some mask to be wrong."""

_FIRST: Final = 32
"""Inputs on which a removal is tried before many more are run."""

_FEWEST: Final = 8
"""Those of them on which nearly every removal that is wrong is found out."""

_ROWS: Final = 4096
"""Masked inputs in one forward."""


@dataclass(frozen=True)
class FinalCheck:
    """Runs circuits on all inputs or pairs, or on so many drawn ones."""

    model: MaskedModel
    dataset: Dataset
    objective: Objective
    """A loss that is 0 where a circuit is right, and nowhere else."""

    ablator: Ablator
    generator: torch.Generator
    count: int
    """Inputs, or pairs of clean and corrupted inputs, at the most."""

    @torch.no_grad()
    def counterexamples(self, mask: Mask, known: Known) -> Pairs:
        """The pairs on which a mask is wrong: of all, in random order, or of so many drawn ones and of those known."""
        dataset = self.dataset
        if self.ablator.ablation != "resample" or dataset.counterparts is not None:  # it does not matter what is put in
            pairs = torch.cat([draw_pairs(dataset, self.count, self.generator), known], dim=1)
        elif int(dataset.group.bincount().square().sum()) <= self.count:
            every = torch.stack(dataset.pairs())
            pairs = every[:, torch.randperm(every.shape[1], generator=self.generator)]
        else:
            walks = math.ceil(self.count / len(dataset))
            drawn = [draw_pairs(dataset, self.count, self.generator) for _ in range(walks)]
            pairs = torch.cat([torch.cat(drawn, dim=1)[:, : self.count], known], dim=1)
        wrong: list[Pairs] = []
        for some in pairs.split(rows_at_once(self.model, dataset), dim=1):
            batch = dataset.take(some[0], some[1])
            outputs = self.model(batch.clean, mask, self.ablator(batch), batch.positions)
            wrong.append(some[:, ~(self.objective.per_input(outputs, batch) <= 0)])
        return torch.cat(wrong, dim=1)

    def without_superfluous(self, mask: Mask, known: Known) -> frozenset[Edge]:
        """The edges of a mask that are left once no edge and no group of edges can go; large groups go first.

        A removal is tried on a few inputs and on known pairs, then on all. A pair on which it is wrong becomes known.
        """
        graph = self.model.graph
        edges = live_edges(graph, edges_of(graph, mask > 0))
        while True:
            listed = sorted(edges)
            removed = removals(graph, listed).flip(0)
            for number in self._right_on_few(listed, removed, known):
                (mask,) = masks_without(graph, listed, removed[[number]])
                wrong = self.counterexamples(mask, known)
                if not wrong.shape[1]:
                    edges = live_edges(graph, edges_of(graph, mask > 0))
                    break
                known = torch.cat([known, wrong[:, :1]], dim=1)
            else:
                return edges

    @torch.no_grad()
    def _right_on_few(self, edges: Sequence[Edge], removed: Removals, known: Known) -> list[int]:
        """The removals after which edges are right on known pairs and on a few drawn inputs, a few of these first."""
        pairs = torch.cat([known, draw_pairs(self.dataset, _FIRST, self.generator)], dim=1)
        right = torch.arange(len(removed))
        for some in (pairs[:, :_FEWEST], pairs[:, _FEWEST:]):
            if not len(right):
                break
            batch = self.dataset.take(some[0], some[1])
            ablated, verdicts = self.ablator(batch), list[Tensor]()
            for part in removed[right].split(_ROWS // max(1, some.shape[1])):
                masks = masks_without(self.model.graph, edges, part)
                outputs = self.model(batch.clean, masks, ablated, batch.positions)
                verdicts.append((self.objective.per_input(outputs, batch) <= 0).all(-1))
            right = right[torch.cat(verdicts)]
        return right.tolist()
