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

_ROWS: Final = 4096
"""Masked inputs in one forward; a bound on memory, and no larger than pays. Attention holds key size times length
squared numbers for each."""

_FIRST: Final = 168
"""Pairs, 8 + 32 + 128, on which nearly every mask that fails at all is found out."""

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
        self._counterexamples: dict[int, None] = {}
        """Pairs on which a mask failed, in the order in which they were met."""

        self.rows = 0
        """Masked inputs run so far: what certification costs, whatever the machine."""

    @property
    def pairs(self) -> int:
        """Inputs, or pairs under resample, that a verdict covers."""
        return len(self._clean)

    @property
    def counterexamples(self) -> int:
        """How many pairs a mask has failed on so far; later masks are run on them first."""
        return len(self._counterexamples)

    def differences(self, masks: Float[Tensor, "mask source destination"]) -> Float[Tensor, " mask"]:
        """The largest difference from the full model's output that each mask makes anywhere."""
        return self._run(masks, torch.arange(self.pairs))[0]

    def reproduces(self, masks: Float[Tensor, "mask source destination"]) -> Bool[Tensor, " mask"]:
        """Whether each mask reproduces the full model everywhere.

        A mask that fails on the first few pairs runs no further, and the pair on which it failed is the first that
        later masks are run on.
        """
        verdict = self.seems_to_reproduce(masks)
        start, size = min(_FIRST, self.pairs), 4 * _FIRST
        while start < self.pairs and verdict.any():
            self._refute(masks, verdict, torch.arange(start, min(start + size, self.pairs)))
            start, size = start + size, size * 4
        return verdict

    def seems_to_reproduce(self, masks: Float[Tensor, "mask source destination"]) -> Bool[Tensor, " mask"]:
        """Whether each mask reproduces a few pairs, those among them on which others failed: no proof, unlike a no."""
        verdict = torch.ones(len(masks), dtype=torch.bool)
        self._refute(masks, verdict, torch.tensor(list(self._counterexamples), dtype=torch.long))
        start, size = 0, 8
        while start < min(_FIRST, self.pairs) and verdict.any():
            self._refute(masks, verdict, torch.arange(start, min(start + size, _FIRST, self.pairs)))
            start, size = start + size, size * 4
        return verdict

    def _refute(self, masks: Tensor, verdict: Tensor, pairs: Tensor) -> None:
        """Run the masks whose verdict still stands on `pairs`, and turn it where they fail."""
        alive = torch.nonzero(verdict)[:, 0]
        worst, where = self._run(masks[alive], pairs)
        failed = worst > self.atol
        verdict[alive[failed]] = False
        for pair in where[failed].tolist():
            self._counterexamples[pair] = None

    def screen(self, build: Callable[[slice], Tensor], count: int, *, size: int = 8) -> Bool[Tensor, " mask"]:
        """Whether each of `count` masks reproduces the first `size` pairs; `build` makes the masks of a slice."""
        pairs = torch.arange(min(size, self.pairs))
        step = _ROWS // len(pairs)
        parts = [self._run(build(slice(start, start + step)), pairs)[0] <= self.atol for start in range(0, count, step)]
        return torch.cat(parts)

    @torch.no_grad()
    def edges_agree(
        self, read: Sequence[Tensor], edges: Bool[Tensor, "source destination"]
    ) -> Bool[Tensor, "source destination"]:
        """Which of `edges` carry a clean and an ablated value that look the same at the other end, in plain runs.

        Args:
            read: the weights `[d_model, out]` that each destination reads with.
            edges: true where it is asked.
        """
        agree = edges.clone()
        for pairs in torch.arange(self.pairs).split(_PAIRS):
            batch = self.dataset.take(self._clean[pairs], self._corrupted[pairs])
            clean, ablated = self.model.sources(batch.clean), self._ablator(batch)
            change = (clean if ablated is None else clean - ablated).flatten(1, -2)
            for column in torch.nonzero(agree.any(0))[:, 0].tolist():
                rows = torch.nonzero(agree[:, column])[:, 0]
                agree[rows, column] = ((change[rows] @ read[column]) == 0).all(-1).all(-1)
        return agree

    @torch.no_grad()
    def _run(self, masks: Tensor, pairs: Int[Tensor, " pair"]) -> tuple[Tensor, Tensor]:
        """The largest difference that each mask makes on `pairs`, and on which; in forwards of bounded size.

        What a chunk of pairs carries when ablated is computed once for all its masks.
        """
        worst, where = torch.zeros(len(masks)), torch.zeros(len(masks), dtype=torch.long)
        for chunk in pairs.split(_PAIRS) if len(masks) and len(pairs) else ():
            batch = self.dataset.take(self._clean[chunk], self._corrupted[chunk])
            ablated = self._ablator(batch)
            for part in torch.arange(len(masks)).split(_ROWS // len(chunk)):
                outputs = self.model(batch.clean, masks[part], ablated)
                difference, index = largest_difference(outputs, batch.target, batch.scored).max(-1)
                larger = difference > worst[part]
                worst[part[larger]], where[part[larger]] = difference[larger], chunk[index[larger]]
            self.rows += len(masks) * len(chunk)
        return worst, where
