"""The disentangled residual stream: every source's contribution kept apart, mixed anew for each destination.

What a source writes is held slot by slot, as `[slot, pos, *lead, batch]`. Compiled models are a few columns wide and
run on thousands of masked inputs at once: with those innermost, every operation goes over long rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Columns = Float[Tensor, "_ pos ..."]
"""Some columns of the residual stream, or of what a destination makes of it: `[column, pos, *lead, batch]`."""


@dataclass(frozen=True)
class Read:
    """How one destination reads: the slots that its weights reach, and the weights themselves."""

    number: int
    """Its place among all reads."""

    slots: Int[Tensor, " read"]
    weight: Float[Tensor, "out read"]


class Wiring:
    """Who writes where, and who reads what.

    There is a slot for every residual column that a source can write. Where the weights show which columns those are,
    the rest is zero whatever the input and need not be held, moved or multiplied.

    Args:
        supports: the columns that each source writes.
        weights: the weights `[d_model, out]` that destinations read with, by their column of the mask.
        edges: true for the edges that are read along.
    """

    def __init__(
        self,
        supports: Sequence[Int[Tensor, " _"]],
        weights: Mapping[int, Float[Tensor, "d_model _"]],
        edges: Bool[Tensor, "source destination"],
    ) -> None:
        source = torch.repeat_interleave(torch.tensor([len(support) for support in supports]))
        column = torch.cat(list(supports))
        self.d_model = len(next(iter(weights.values())))
        self.sources = len(supports)
        self.cells: Int[Tensor, " slot"] = source * self.d_model + column
        """Each slot's place among all columns of all sources."""

        self.reads: dict[int, Read] = {}
        entries: list[Tensor] = []
        for number, (destination, weight) in enumerate(weights.items()):
            reached = (weight != 0).any(1)[column] & edges[source, destination]
            slots = torch.nonzero(reached)[:, 0]
            self.reads[destination] = Read(number, slots, weight[column[slots]].T.contiguous())
            entries.append(source[slots] * edges.shape[1] + destination)
        self.entries: Int[Tensor, " read"] = torch.cat(entries)
        """The mask's entry for each slot of each read, one read after the other."""

        self.weight: Float[Tensor, "out slot"] = torch.cat(
            [
                read.weight.new_zeros(len(read.weight), len(column)).index_copy(1, read.slots, read.weight)
                for read in self.reads.values()
            ]
        )
        """The weights of all reads together."""


class ColumnStream:
    """The slots written so far in one run.

    A destination reads `weight @ (ablated + z * (clean - ablated))`. The difference is held instead of the clean value,
    so that the ablated part, which is the same for all masks, is projected once for them all.

    Args:
        wiring: who writes where, and who reads what.
        lead: how many leading dimensions runs have, the batch aside.
        mask: z, `[*masks, source, destination]`; None keeps every edge.
        ablated: `[source, *lead, batch, pos, d_model]`, finite; None stands for zeros.
    """

    def __init__(self, wiring: Wiring, lead: int, mask: Tensor | None, ablated: Tensor | None) -> None:
        self._wiring = wiring
        self._masks: tuple[Tensor, ...] | None = None
        self._ablated: Tensor | None = None
        self._read_ablated: tuple[Tensor, ...] = ()
        reads = wiring.reads.values()
        if mask is not None:
            z = mask.flatten(-2).movedim(-1, 0).index_select(0, wiring.entries)
            z = align(z[:, None, ..., None], lead)
            self._masks = z.split([len(read.slots) for read in reads])
        if mask is not None and ablated is not None:
            cells = ablated.movedim((-1, -2), (1, 2)).flatten(0, 1)
            self._ablated = align(cells.index_select(0, wiring.cells), lead)
            self._read_ablated = project(wiring.weight, self._ablated).split([len(read.weight) for read in reads])
        self.written: Float[Tensor, "slot pos *lead batch"] | None = None

    def write(self, contributions: Sequence[Columns]) -> None:
        """Append what the next sources of the graph's order write to their slots."""
        parts = [] if self.written is None else [self.written]
        start = sum(part.shape[0] for part in parts)
        for contribution in contributions:
            end = start + contribution.shape[0]
            parts.append(contribution if self._ablated is None else contribution - self._ablated[start:end])
            start = end
        # What all broadcast to; torch.broadcast_shapes would say so slowly.
        shapes = (part.shape[1:] for part in parts)
        runs = [max(sizes) if min(sizes) else 0 for sizes in zip(*shapes, strict=True)]
        self.written = torch.cat([part.expand(-1, *runs) for part in parts])

    def read(self, destination: int) -> Columns:
        """What a destination computes from all slots that it reads."""
        assert self.written is not None, "embeddings are written first"
        read = self._wiring.reads[destination]
        held = self.written.index_select(0, read.slots)
        if self._masks is not None:
            held = self._masks[read.number] * held
        value = project(read.weight, held)
        return value if self._ablated is None else value + self._read_ablated[read.number]


def project(weight: Float[Tensor, "out column"], columns: Columns) -> Columns:
    """`weight` applied to the columns, position by position."""
    return (weight @ columns.flatten(1)).view(len(weight), *columns.shape[1:])


def align(value: Shaped[Tensor, "_ _ ..."], lead: int) -> Shaped[Tensor, "_ _ ..."]:
    """`[_, _, *lead, batch]` with leading dimensions of size 1 added, so that there are `lead`."""
    return value.reshape(*value.shape[:2], *[1] * (lead + 3 - value.ndim), *value.shape[2:])
