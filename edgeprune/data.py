"""Inputs that a circuit is discovered and judged on."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edgeprune.errors import TaskError
from edgeprune.masked_model import MaskedModel, OnlyMasked
from edgeprune.metrics.answers import Answers

_AT_ONCE: Final = 64
"""Inputs that the full model runs on at a time."""


@dataclass(frozen=True)
class Batch:
    """Clean inputs, each with the corrupted input that resample ablation puts in its place."""

    clean: Int[Tensor, "*lead batch pos"]
    corrupted: Int[Tensor, "*lead batch pos"]
    scored: Bool[Tensor, "*lead batch predicted"]
    """The predictions that count."""

    target: Float[Tensor, "*lead batch predicted vocab"]
    """The full model's outputs on `clean`."""

    group: Int[Tensor, "*lead batch"]
    """The group (length) of each input: its mean ablation is over that group."""

    positions: Int[Tensor, "*lead batch predicted"] | None = None
    """The positions at which outputs are wanted; all where it is None."""

    answers: Answers | None = None
    """What a task asks for."""


class LazyTarget:
    """The full model's outputs, computed again whenever rows of them are asked for: all together would not fit.

    Args:
        model: the full model.
        tokens: its inputs.
        positions: those of each input at which outputs are wanted.
    """

    def __init__(
        self, model: MaskedModel, tokens: Int[Tensor, "batch pos"], positions: Int[Tensor, "batch predicted"]
    ) -> None:
        self._model, self._tokens, self._positions = model, tokens, positions

    def copy(self) -> "LazyTarget":
        """The same of inputs in memory of its own, and of nothing but a `MaskedModel`."""
        return LazyTarget(OnlyMasked(self._model), self._tokens.clone(), self._positions.clone())

    @torch.no_grad()
    def __getitem__(self, rows: Int[Tensor, "*lead batch"]) -> Float[Tensor, "*lead batch predicted vocab"]:
        parts = [
            self._model(self._tokens[some], positions=self._positions[some]) for some in rows.flatten().split(_AT_ONCE)
        ]
        return torch.cat(parts).unflatten(0, rows.shape)


@dataclass(frozen=True)
class Dataset:
    """All inputs that may be drawn. Inputs of one group (one length) may stand in for each other when corrupted."""

    tokens: Int[Tensor, "batch pos"]
    scored: Bool[Tensor, "batch predicted"]
    """The predictions that count."""

    target: Float[Tensor, "batch predicted vocab"] | LazyTarget
    """The full model's outputs."""

    group: Int[Tensor, " batch"]
    logits: bool = True
    """Whether outputs are logits, one a value, or values themselves: it decides what their divergence is."""

    positions: Int[Tensor, "batch predicted"] | None = None
    """The positions at which outputs are wanted; all where it is None."""

    counterparts: Int[Tensor, "batch pos"] | None = None
    """The one corrupted input of each input; where it is None, any input of its group may be."""

    answers: Answers | None = None
    """What a task asks for, where it has right answers besides the full model's."""

    def copy(self) -> "Dataset":
        """The same in memory of its own."""
        return replace(
            self,
            tokens=self.tokens.clone(),
            scored=self.scored.clone(),
            target=self.target.clone() if isinstance(self.target, Tensor) else self.target.copy(),
            group=self.group.clone(),
            positions=None if self.positions is None else self.positions.clone(),
            counterparts=None if self.counterparts is None else self.counterparts.clone(),
            answers=None if self.answers is None else self.answers.copy(),
        )

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def take(self, clean: Int[Tensor, "*lead batch"], corrupted: Int[Tensor, "*lead batch"]) -> Batch:
        """The batch of these rows of the dataset; corrupted inputs are counterparts where there are any."""
        return Batch(
            clean=self.tokens[clean],
            corrupted=(self.tokens if self.counterparts is None else self.counterparts)[corrupted],
            scored=self.scored[clean],
            target=self.target[clean],
            group=self.group[clean],
            positions=None if self.positions is None else self.positions[clean],
            answers=None if self.answers is None else self.answers[clean],
        )

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Every input once, in order, each with a corrupted input drawn for it; `size` at a time."""
        for clean in torch.arange(len(self)).split(size):
            yield self.take(clean, self.partners(clean, generator))

    def sample(self, size: int, generator: torch.Generator) -> Batch:
        """One batch of `size` inputs drawn without replacement, or of all where there are fewer."""
        (batch,) = self.sample_batches(size, size, generator)
        return batch

    def sample_batches(
        self, size: int, batch_size: int, generator: torch.Generator, *, among: Int[Tensor, " row"] | None = None
    ) -> Iterator[Batch]:
        """The same in batches; of some rows, where they are named."""
        rows = torch.arange(len(self)) if among is None else among
        clean = rows[torch.randperm(len(rows), generator=generator)[:size]]
        corrupted = self.partners(clean, generator)
        for some in zip(clean.split(batch_size), corrupted.split(batch_size), strict=True):
            yield self.take(*some)

    def partners(self, clean: Int[Tensor, "*lead"], generator: torch.Generator) -> Int[Tensor, "*lead"]:
        """For each row the row of its corrupted input: a uniformly drawn one of its group, or its counterpart's."""
        if self.counterparts is not None:
            return clean
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
        """All clean rows, and the rows of their corrupted inputs: the domain of resample ablation."""
        if self.counterparts is not None:
            rows = torch.arange(len(self))
            return rows, rows
        same = self.group[:, None] == self.group[None, :]
        clean, corrupted = torch.nonzero(same, as_tuple=True)
        return clean, corrupted


def check_counterparts(tokens: Int[Tensor, "batch pos"], counterparts: Int[Tensor, "batch pos"]) -> None:
    """Resample ablation has something to put in place of what is removed.

    Raises:
        TaskError: all corrupted inputs are the clean ones.
    """
    if torch.equal(tokens, counterparts):
        raise TaskError(
            "Expected corrupted texts that differ from clean ones, which resample ablation puts in their place; all "
            "that circuits are found on are the same: give others, or ablate by zero or mean"
        )
