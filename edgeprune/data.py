"""Inputs that a circuit is discovered and judged on."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Clean inputs, each with the corrupted input that resample ablation puts in its place."""

    clean: Int[Tensor, "*lead batch pos"]
    corrupted: Int[Tensor, "*lead batch pos"]
    scored: Bool[Tensor, "*lead batch pos"]
    """The positions whose output counts."""

    target: Float[Tensor, "*lead batch pos vocab"]
    """The full model's outputs on `clean`."""

    group: Int[Tensor, "*lead batch"]
    """The group (length) of each input: its mean ablation is over that group."""


@dataclass(frozen=True)
class Dataset:
    """All inputs that may be drawn. Inputs of one group (one length) may stand in for each other when corrupted."""

    tokens: Int[Tensor, "batch pos"]
    scored: Bool[Tensor, "batch pos"]
    target: Float[Tensor, "batch pos vocab"]
    """The full model's outputs."""

    group: Int[Tensor, " batch"]
    logits: bool = True
    """Whether outputs are logits, one a value, or values themselves: it decides what their divergence is."""

    def copy(self) -> "Dataset":
        """The same in memory of its own."""
        return replace(
            self,
            tokens=self.tokens.clone(),
            scored=self.scored.clone(),
            target=self.target.clone(),
            group=self.group.clone(),
        )

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def take(self, clean: Int[Tensor, "*lead batch"], corrupted: Int[Tensor, "*lead batch"]) -> Batch:
        """The batch of these rows of the dataset."""
        return Batch(
            clean=self.tokens[clean],
            corrupted=self.tokens[corrupted],
            scored=self.scored[clean],
            target=self.target[clean],
            group=self.group[clean],
        )

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Every input once, in order, each with a corrupted input drawn for it; `size` at a time."""
        for clean in torch.arange(len(self)).split(size):
            yield self.take(clean, self.partners(clean, generator))

    def sample(self, size: int, generator: torch.Generator) -> Batch:
        """One batch of `size` inputs drawn without replacement, or of all where there are fewer."""
        clean = torch.randperm(len(self), generator=generator)[:size]
        return self.take(clean, self.partners(clean, generator))

    def partners(self, clean: Int[Tensor, "*lead"], generator: torch.Generator) -> Int[Tensor, "*lead"]:
        """For each row a uniformly drawn row of its own group."""
        order, starts, counts = self._by_group
        group = self.group[clean]
        draw = torch.rand(clean.shape, generator=generator)
        offset = (draw * counts[group]).long().clamp(max=counts[group] - 1)
        return order[starts[group] + offset]

    @cached_property
    def _by_group(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows in order of their groups; where each group starts, and how many it has."""
        counts = torch.bincount(self.group)
        return torch.argsort(self.group, stable=True), counts.cumsum(0) - counts, counts

    def pairs(self) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
        """All ordered pairs of rows of one group: the domain of resample ablation."""
        same = self.group[:, None] == self.group[None, :]
        clean, corrupted = torch.nonzero(same, as_tuple=True)
        return clean, corrupted
