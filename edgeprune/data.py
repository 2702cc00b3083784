"""Datasets and batches of the inputs that a circuit is discovered and evaluated on."""

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
"""Inputs per forward pass of the full model."""


@dataclass(frozen=True)
class Batch:
    """Clean inputs, each with the corrupted input that resample ablation uses for it."""

    clean: Int[Tensor, "*lead batch pos"]
    corrupted: Int[Tensor, "*lead batch pos"]
    scored: Bool[Tensor, "*lead batch predicted"]
    """True for the predictions that count."""

    target: Float[Tensor, "*lead batch predicted vocab"]
    """The full model's outputs on `clean`."""

    group: Int[Tensor, "*lead batch"]
    """The group (length) of each input; mean ablation averages over that group."""

    positions: Int[Tensor, "*lead batch predicted"] | None = None
    """The positions at which outputs are computed; None means all."""

    answers: Answers | None = None
    """The task's right and wrong answers; None if it has none."""


class LazyTarget:
    """The full model's outputs, recomputed whenever rows are indexed: all outputs together would not fit in memory.

    Args:
        model: the full model.
        tokens: the inputs of the model.
        positions: the positions of each input at which outputs are computed.
    """

    def __init__(
        self, model: MaskedModel, tokens: Int[Tensor, "batch pos"], positions: Int[Tensor, "batch predicted"]
    ) -> None:
        self._model, self._tokens, self._positions = model, tokens, positions

    def copy(self) -> "LazyTarget":
        """Return a copy with its own input tensors; its model is wrapped in `OnlyMasked`."""
        return LazyTarget(OnlyMasked(self._model), self._tokens.clone(), self._positions.clone())

    @torch.no_grad()
    def __getitem__(self, rows: Int[Tensor, "*lead batch"]) -> Float[Tensor, "*lead batch predicted vocab"]:
        parts = [
            self._model(self._tokens[some], positions=self._positions[some]) for some in rows.flatten().split(_AT_ONCE)
        ]
        return torch.cat(parts).unflatten(0, rows.shape)


@dataclass(frozen=True)
class Dataset:
    """All inputs that may be drawn. Inputs of one group (one length) may serve as each other's corrupted inputs."""

    tokens: Int[Tensor, "batch pos"]
    scored: Bool[Tensor, "batch predicted"]
    """True for the predictions that count."""

    target: Float[Tensor, "batch predicted vocab"] | LazyTarget
    """The full model's outputs."""

    group: Int[Tensor, " batch"]
    logits: bool = True
    """True if outputs are logits (one per value), False if they are values; it decides which divergence is used."""

    positions: Int[Tensor, "batch predicted"] | None = None
    """The positions at which outputs are computed; None means all."""

    counterparts: Int[Tensor, "batch pos"] | None = None
    """The corrupted input of each input; None allows any input of the same group."""

    answers: Answers | None = None
    """The task's right and wrong answers, if it has any besides the full model's own."""

    def copy(self) -> "Dataset":
        """Return a copy that shares no memory."""
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
        """Return the batch of these rows; row numbers in `corrupted` index the counterparts where there are any."""
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
        """Yield every input once, in order, `size` at a time, each with a corrupted input drawn for it."""
        for clean in torch.arange(len(self)).split(size):
            yield self.take(clean, self.partners(clean, generator))

    def sample(self, size: int, generator: torch.Generator) -> Batch:
        """Return one batch of `size` inputs drawn without replacement, or of all inputs if there are fewer."""
        (batch,) = self.sample_batches(size, size, generator)
        return batch

    def sample_batches(
        self, size: int, batch_size: int, generator: torch.Generator, *, among: Int[Tensor, " row"] | None = None
    ) -> Iterator[Batch]:
        """Yield `size` inputs drawn without replacement, in batches; only rows in `among` are drawn, if given."""
        rows = torch.arange(len(self)) if among is None else among
        clean = rows[torch.randperm(len(rows), generator=generator)[:size]]
        corrupted = self.partners(clean, generator)
        for some in zip(clean.split(batch_size), corrupted.split(batch_size), strict=True):
            yield self.take(*some)

    def partners(self, clean: Int[Tensor, "*lead"], generator: torch.Generator) -> Int[Tensor, "*lead"]:
        """Return the row of each input's corrupted input: its counterpart's, or a uniform draw from its group."""
        if self.counterparts is not None:
            return clean
        order, starts, counts = self._by_group
        group = self.group[clean]
        draw = torch.rand(clean.shape, generator=generator)
        offset = (draw * counts[group]).long().clamp(max=counts[group] - 1)
        return order[starts[group] + offset]

    @cached_property
    def _by_group(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows sorted by group; the index at which each group starts; the size of each group."""
        counts = torch.bincount(self.group)
        return torch.argsort(self.group, stable=True), counts.cumsum(0) - counts, counts

    def pairs(self) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
        """Return the clean and the corrupted row of every allowed pair: the domain of resample ablation."""
        if self.counterparts is not None:
            rows = torch.arange(len(self))
            return rows, rows
        same = self.group[:, None] == self.group[None, :]
        clean, corrupted = torch.nonzero(same, as_tuple=True)
        return clean, corrupted


def check_counterparts(tokens: Int[Tensor, "batch pos"], counterparts: Int[Tensor, "batch pos"]) -> None:
    """Raise TaskError if resample ablation would change nothing.

    Raises:
        TaskError: every corrupted input equals its clean input.
    """
    if torch.equal(tokens, counterparts):
        raise TaskError(
            "Expected corrupted texts that differ from clean ones, which resample ablation puts in their place; all "
            "that circuits are found on are the same: give others, or ablate by zero or mean"
        )
