"""Runs masks on a whole domain and compares their outputs with the full model's."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edgeprune.ablation import Ablator
from edgeprune.data import Batch, Dataset
from edgeprune.fingerprints import Level, salt, scrambled
from edgeprune.graph import Ablation
from edgeprune.masked_model import Mask, MaskedModel, Sources, Tokens
from edgeprune.metrics.distances import largest_difference

PAIR_BUDGET: Final = 100_000
"""Largest number of (clean, corrupted) pairs that are all run. Of more, a seeded sample of this size is run."""

CLOSE: Final = 1e-3
"""A difference closer to the tolerance than this is computed again in double precision."""

_ROUNDING: Final = 1e-6
"""So is a difference closer than this share of the largest output, as single precision may be off by as much."""

_ROWS: Final = 4096
"""Masked inputs in one forward. It bounds memory (attention holds key size times length squared numbers for each); a
larger number does not pay."""

_FIRST: Final = 168
"""Pairs run first (8 + 32 + 128). Nearly every mask that fails at all fails on one of them."""

_PAIRS: Final = 1024
"""Pairs whose ablated sources are in memory at a time."""


class JudgedModel(MaskedModel, Protocol):
    """A masked model with what certification needs besides. Discovery methods are not given these members."""

    def fingerprints(
        self,
        tokens: Tokens,
        mask: Mask,
        ablated: Sources | None,
        relevant: Bool[Tensor, "source batch pos"],
        layers: int,
    ) -> Int[Tensor, "source mask batch"]:
        """Return a number for what each source of the first `layers` writes on each input in a masked run.

        Two runs have the same number where the source writes the same, bit by bit, at all relevant positions.
        """
        ...

    @property
    def in_double(self) -> MaskedModel:
        """The same model in double precision."""
        ...


@dataclass(frozen=True)
class Places:
    """Where outputs are compared: pairs (columns of `Judge.rows_of_pairs`), and the scored positions of each."""

    pairs: Int[Tensor, " pair"]
    scored: Bool[Tensor, "pair pos"]

    def split(self, size: int) -> "Iterator[Places]":
        """Yield the places of `size` pairs at a time."""
        return (Places(*part) for part in zip(self.pairs.split(size), self.scored.split(size), strict=True))


class Judge:
    """Decides whether masks reproduce the full model under one ablation, on every input or pair of the domain.

    Args:
        model: the model to run.
        dataset: its domain.
        ablation: what removed edges carry.
        atol: the largest difference, before decoding, that counts as the same output.
        seed: seed of the order in which pairs are run, and of their sample if there are more than `PAIR_BUDGET`.
    """

    def __init__(self, model: JudgedModel, dataset: Dataset, ablation: Ablation, *, atol: float, seed: int = 0) -> None:
        self.model, self.dataset, self.atol = model, dataset, atol
        self.ablation: Ablation = ablation
        generator = torch.Generator().manual_seed(seed)
        self._ablator = Ablator(model, dataset, ablation)
        self._exact: _Exact | None = None
        self._close = max(CLOSE, _ROUNDING * float(dataset.target[torch.arange(len(dataset))].abs().max()))
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
        self.rows_of_pairs: Int[Tensor, "2 pair"] = torch.stack([clean, corrupted])
        """The rows of the dataset that are run: clean inputs first, their corrupted inputs second."""

        self._counterexamples: dict[int, None] = {}
        """Pairs on which a mask failed, in the order in which they were found."""

        self.rows = 0
        """Number of masked inputs run so far: the cost of certification, independent of the machine."""

        self.margin = math.inf
        """The smallest |difference - tolerance| among the verdicts of `reproduces` so far; exact if below `atol`."""

    @property
    def pairs(self) -> int:
        """Number of inputs, or pairs under resample, that a verdict covers."""
        return self.rows_of_pairs.shape[1]

    @property
    def counterexamples(self) -> list[int]:
        """Pairs on which masks have failed so far. Later masks are run on them first."""
        return list(self._counterexamples)

    def places(self, pairs: Int[Tensor, " pair"] | None = None) -> Places:
        """Return all scored positions of `pairs`, or of all pairs."""
        pairs = torch.arange(self.pairs) if pairs is None else pairs
        return Places(pairs, self.dataset.scored[self.rows_of_pairs[0, pairs]])

    def differences(
        self, masks: Float[Tensor, "mask source destination"], places: Places | None = None
    ) -> Float[Tensor, " mask"]:
        """Return the largest difference from the full model's output that each mask makes, at `places` or anywhere."""
        return self._run(masks, self.places() if places is None else places)[0]

    def reproduces(self, masks: Float[Tensor, "mask source destination"]) -> Bool[Tensor, " mask"]:
        """Return whether each mask reproduces the full model on every pair.

        A mask that fails on some pairs runs no further. The pair on which it failed becomes a counterexample, on which
        later masks are run first. A mask that fails by little runs on every pair, so that `margin` is exact.
        """
        worst = self._worst_of_few(masks)
        start, size = min(_FIRST, self.pairs), 4 * _FIRST
        while start < self.pairs and bool((worst <= self.atol).any()):
            self._refute(masks, worst, torch.arange(start, min(start + size, self.pairs)))
            start, size = start + size, size * 4
        narrow = torch.nonzero((worst > self.atol) & (worst - self.atol < min(self.margin, self.atol)))[:, 0]
        if len(narrow):
            worst[narrow] = self.differences(masks[narrow])
        if len(worst):
            self.margin = min(self.margin, float((worst - self.atol).abs().min()))
        return worst <= self.atol

    def seems_to_reproduce(self, masks: Float[Tensor, "mask source destination"]) -> Bool[Tensor, " mask"]:
        """Return whether each mask passes the first pairs and all counterexamples. False is proof; True is not."""
        return self._worst_of_few(masks) <= self.atol

    def _worst_of_few(self, masks: Tensor) -> Float[Tensor, " mask"]:
        worst = torch.zeros(len(masks)).double()
        self._refute(masks, worst, torch.tensor(self.counterexamples, dtype=torch.long))
        start, size = 0, 8
        while start < min(_FIRST, self.pairs) and bool((worst <= self.atol).any()):
            self._refute(masks, worst, torch.arange(start, min(start + size, _FIRST, self.pairs)))
            start, size = start + size, size * 4
        return worst

    def _refute(self, masks: Tensor, worst: Tensor, pairs: Tensor) -> None:
        """Run the masks that have not failed yet on `pairs`. Update `worst`, their largest differences."""
        alive = torch.nonzero(worst <= self.atol)[:, 0]
        difference, where = self._run(masks[alive], self.places(pairs))
        worst[alive] = torch.maximum(worst[alive], difference)
        for pair in where[difference > self.atol].tolist():
            self._counterexamples[pair] = None

    @torch.no_grad()
    def fingerprints(
        self,
        masks: Float[Tensor, "mask source destination"],
        places: Places,
        spreading: Bool[Tensor, " source"],
        layers: int,
    ) -> Int[Tensor, "mask source"]:
        """Return a number per mask and source of the first `layers`: equal for masks with which it writes the same.

        Args:
            masks: the masks to run.
            places: the pairs to run, and the positions at which what a source writes counts.
            spreading: sources for which every position counts.
            layers: number of layers that are run.
        """
        found = torch.zeros(len(masks), len(self.model.graph.sources), dtype=torch.long)
        salts = salt(len(places.pairs), Level.INPUT).split(_PAIRS)
        for of_inputs, some in zip(salts, places.split(_PAIRS), strict=True):
            batch, ablated = self._batch(some.pairs)
            relevant = some.scored | spreading[:, None, None]
            for part in torch.arange(len(masks)).split(_ROWS // len(some.pairs)):
                each = self.model.fingerprints(batch.clean, masks[part], ablated, relevant, layers)
                found[part] += scrambled(each, of_inputs).sum(-1).T
            self.rows += len(masks) * len(some.pairs)
        return found

    @torch.no_grad()
    def edges_agree(
        self, read: Sequence[Tensor], edges: Bool[Tensor, "source destination"]
    ) -> Bool[Tensor, "source destination"]:
        """Return which of `edges` carry clean and ablated values that their destination reads as equal, in plain runs.

        Args:
            read: the weights `[d_model, out]` that each destination reads with.
            edges: True for the edges to test.
        """
        agree, rows = edges.clone(), torch.arange(len(self.dataset))
        # Under resample, comparing every input with one of its group is enough: equality is transitive.
        stand_ins = torch.stack(
            [torch.nonzero(self.dataset.group == g)[0, 0] for g in range(int(self.dataset.group.max()) + 1)]
        )
        for some in rows.split(_PAIRS):
            batch = self.dataset.take(some, stand_ins[self.dataset.group[some]])
            clean, ablated = self.model.sources(batch.clean), self._ablator(batch)
            change = (clean if ablated is None else clean - ablated).flatten(1, -2)
            for column in torch.nonzero(agree.any(0))[:, 0].tolist():
                asked = torch.nonzero(agree[:, column])[:, 0]
                agree[asked, column] = ((change[asked] @ read[column]) == 0).all(-1).all(-1)
        return agree

    def _batch(self, pairs: Int[Tensor, " pair"]) -> tuple[Batch, Sources | None]:
        """Return the batch of some pairs, and the ablated sources on it."""
        clean, corrupted = self.rows_of_pairs[:, pairs]
        batch = self.dataset.take(clean, corrupted)
        return batch, self._ablator(batch)

    @torch.no_grad()
    def _run(self, masks: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """Return the largest difference that each mask makes at `places`, and the pair on which it makes it.

        Each forward has a bounded size. The ablated sources of a chunk of pairs are computed once for all masks.
        """
        worst, where = torch.zeros(len(masks)).double(), torch.zeros(len(masks), dtype=torch.long)
        for some in places.split(_PAIRS) if len(masks) and len(places.pairs) else ():
            batch, ablated = self._batch(some.pairs)
            for part in torch.arange(len(masks)).split(_ROWS // len(some.pairs)):
                outputs = self.model(batch.clean, masks[part], ablated)
                each = largest_difference(outputs, batch.target, some.scored).double()
                self._decide_in_double(each, masks[part], some)
                difference, index = each.max(-1)
                larger = difference > worst[part]
                worst[part[larger]], where[part[larger]] = difference[larger], some.pairs[index[larger]]
            self.rows += len(masks) * len(some.pairs)
        return worst, where

    def _decide_in_double(self, differences: Float[Tensor, "mask pair"], masks: Tensor, places: Places) -> None:
        """Replace differences too close to the tolerance for single precision by those of double precision."""
        rows, columns = torch.nonzero((differences - self.atol).abs() < self._close, as_tuple=True)
        if len(rows):
            self._exact = self._exact or _Exact(self.model.in_double, self.dataset, self.ablation)
            chosen = Places(places.pairs[columns], places.scored[columns])
            for some, part in zip(torch.arange(len(rows)).split(_PAIRS), chosen.split(_PAIRS), strict=True):
                clean, corrupted = self.rows_of_pairs[:, part.pairs]
                found = self._exact.differences(masks[rows[some]], clean, corrupted, part.scored)
                differences[rows[some], columns[some]] = found
            self.rows += len(rows)


class _Exact:
    """Compares with the full model in double precision, each mask on one input or pair of its own."""

    def __init__(self, model: MaskedModel, dataset: Dataset, ablation: Ablation) -> None:
        self._model, self._dataset = model, dataset
        self._ablator = Ablator(model, dataset, ablation)

    def differences(self, masks: Tensor, clean: Tensor, corrupted: Tensor, scored: Tensor) -> Float[Tensor, " mask"]:
        batch = self._dataset.take(clean[:, None], corrupted[:, None])
        outputs = self._model(batch.clean, masks.double(), self._ablator(batch))
        return largest_difference(outputs, self._model(batch.clean), scored[:, None])[:, 0].double()
