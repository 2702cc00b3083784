"""Runs masks over a whole domain and says how far their outputs are from the full model's."""

from collections.abc import Callable, Sequence
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edgeprune.ablation import Ablator
from edgeprune.data import Dataset
from edgeprune.graph import Ablation
from edgeprune.metrics import largest_difference
from edgeprune.model import MaskedModel

PAIR_BUDGET: Final = 100_000
"""Pairs of clean and corrupted inputs that are run before a seeded sample stands in for all."""

_ROWS: Final = 16_384
"""Masked inputs in one forward; a bound on memory, and no larger than pays."""

_PAIRS: Final = 1024
"""Pairs whose ablated sources are held at a time."""


class Judge:
    """Whether masks reproduce the full model under one ablation, on every input or pair of the domain.

    Args:
        model: the model to run.
        dataset: its domain.
        ablation: what removed edges carry.
        atol: the largest difference, before decoding, that counts as the same output.
        seed: of the order in which pairs are run, and of their sample where they exceed PAIR_BUDGET.
    """

    def __init__(self, model: MaskedModel, dataset: Dataset, ablation: Ablation, *, atol: float, seed: int = 0) -> None:
        self.model, self.dataset, self.ablation, self.atol = model, dataset, ablation, atol
        generator = torch.Generator().manual_seed(seed)
        self._ablator = Ablator(model, dataset, ablation)
        self.total_pairs = int((torch.bincount(dataset.group) ** 2).sum())
        self.exhaustive = True
        if ablation != "resample":
            clean = corrupted = torch.randperm(len(dataset), generator=generator)
        elif self.total_pairs <= PAIR_BUDGET:
            clean, corrupted = dataset.pairs()
            order = torch.randperm(len(clean), generator=generator)
            clean, corrupted = clean[order], corrupted[order]
        else:
            self.exhaustive = False
            clean = torch.randint(len(dataset), (PAIR_BUDGET,), generator=generator)
            corrupted = dataset.partners(clean, generator)
        self._clean: Int[Tensor, " pair"] = clean
        self._corrupted: Int[Tensor, " pair"] = corrupted
        self.rows = 0
        """Masked inputs run so far: what certification costs, whatever the machine."""

    @property
    def pairs(self) -> int:
        """Inputs, or pairs under resample, that a verdict covers."""
        return len(self._clean)

    def differences(self, masks: Float[Tensor, "mask source destination"]) -> Float[Tensor, " mask"]:
        """The largest difference from the full model's output that each mask makes anywhere."""
        return self._chunked(masks, 0, self.pairs)

    def reproduces(self, masks: Float[Tensor, "mask source destination"]) -> Bool[Tensor, " mask"]:
        """Whether each mask reproduces the full model everywhere.

        A mask that fails on the first few pairs runs no further.
        """
        verdict = torch.ones(len(masks), dtype=torch.bool)
        start, size = 0, 8
        while start < self.pairs and verdict.any():
            stop = min(start + size, self.pairs)
            alive = torch.nonzero(verdict)[:, 0]
            verdict[alive] = self._chunked(masks[alive], start, stop) <= self.atol
            start, size = stop, size * 4
        return verdict

    def screen(self, build: Callable[[slice], Tensor], count: int, *, size: int = 8) -> Bool[Tensor, " mask"]:
        """Whether each of `count` masks reproduces the first `size` pairs; `build` makes the masks of a slice."""
        size = min(size, self.pairs)
        step = _ROWS // size
        parts = [
            self._chunked(build(slice(start, start + step)), 0, size) <= self.atol for start in range(0, count, step)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def edges_agree(self, read: Sequence[Tensor]) -> Bool[Tensor, "source destination"]:
        """Whether a source's clean and ablated values look the same to a destination on every pair, in a plain run.

        Args:
            read: the weights `[d_model, out]` that each destination reads with.
        """
        graph = self.model.graph
        agree = torch.ones(len(graph.sources), len(graph.destinations), dtype=torch.bool)
        step = _ROWS // 16
        for start in range(0, self.pairs, step):
            rows = slice(start, start + step)
            batch = self.dataset.take(self._clean[rows], self._corrupted[rows])
            clean, ablated = self.model.sources(batch.clean), self._ablator(batch)
            change = (clean if ablated is None else clean - ablated).flatten(1, -2)
            for column, weight in enumerate(read):
                agree[:, column] &= ((change @ weight) == 0).all(-1).all(-1)
        return agree

    @torch.no_grad()
    def _chunked(self, masks: Tensor, start: int, stop: int) -> Tensor:
        """Differences of masks over pairs `start` to `stop`, in forwards of bounded size.

        What a chunk of pairs carries when ablated is computed once for all its masks.
        """
        worst = torch.zeros(len(masks))
        for first in range(start, stop, _PAIRS):
            last = min(first + _PAIRS, stop)
            batch = self.dataset.take(self._clean[first:last], self._corrupted[first:last])
            ablated = self._ablator(batch)
            for chunk in torch.arange(len(masks)).split(_ROWS // (last - first)):
                outputs = self.model(batch.clean, masks[chunk], ablated)
                difference = largest_difference(outputs, batch.target, batch.scored).amax(-1)
                worst[chunk] = torch.maximum(worst[chunk], difference)
            self.rows += len(masks) * (last - first)
        return worst
