"""The disentangled residual stream of compiled models: sources are kept apart, and mixed for each destination.

Contributions are held by slot, as `[slot, pos, *lead, batch]`. Compiled models are a few columns wide and run on
thousands of masked inputs at once. With the inputs as the innermost dimensions, every operation runs over long rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Columns = Float[Tensor, "_ pos ..."]
"""Columns of the residual stream, or of what a destination computes from it: `[column, pos, *lead, batch]`."""


@dataclass(frozen=True)
class Read:
    """How one destination reads: the slots that its weights reach, and those weights."""

    number: int
    """Index among all reads."""

    slots: Int[Tensor, " read"]
    weight: Float[Tensor, "out read"]


class Wiring:
    """The slots that sources write and destinations read.

    There is one slot for every residual column that a source can write. All other columns of a source are zero for
    every input, so they are not held, moved or multiplied.

    Args:
        supports: the columns that each source can write.
        weights: each destination's read weights `[d_model, out]`; the key is the destination's column of the mask.
        edges: True for the edges along which destinations read.
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
        """Each slot's index into all columns of all sources, `source * d_model + column`."""

        self.reads: dict[int, Read] = {}
        entries: list[Tensor] = []
        for number, (destination, weight) in enumerate(weights.items()):
            reached = (weight != 0).any(1)[column] & edges[source, destination]
            slots = torch.nonzero(reached)[:, 0]
            self.reads[destination] = Read(number, slots, weight[column[slots]].T.contiguous())
            entries.append(source[slots] * edges.shape[1] + destination)
        self.entries: Int[Tensor, " read"] = torch.cat(entries)
        """The flat index into the mask of each slot of each read, one read after the other."""

        self.weight: Float[Tensor, "out slot"] = torch.cat(
            [
                read.weight.new_zeros(len(read.weight), len(column)).index_copy(1, read.slots, read.weight)
                for read in self.reads.values()
            ]
        )
        """The weights of all reads, concatenated; 0 at slots that a read does not use."""


class ColumnStream:
    """The slots written so far in one run.

    A destination reads `weight @ (ablated + z * (clean - ablated))`. The stream holds `clean - ablated`, so that the
    ablated part, which is the same for all masks, is projected only once.

    Args:
        wiring: the slots that sources write and destinations read.
        lead: number of leading dimensions of the runs, without the batch.
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
        """Append what the next sources, in the graph's order, write to their slots."""
        parts = [] if self.written is None else [self.written]
        start = sum(part.shape[0] for part in parts)
        for contribution in contributions:
            end = start + contribution.shape[0]
            parts.append(contribution if self._ablated is None else contribution - self._ablated[start:end])
            start = end
        # The shape that all parts broadcast to; torch.broadcast_shapes is slow.
        shapes = (part.shape[1:] for part in parts)
        runs = [max(sizes) if min(sizes) else 0 for sizes in zip(*shapes, strict=True)]
        self.written = torch.cat([part.expand(-1, *runs) for part in parts])

    def read(self, destination: int) -> Columns:
        """Return what a destination computes from all slots that it reads."""
        assert self.written is not None, "embeddings are written first"
        read = self._wiring.reads[destination]
        held = self.written.index_select(0, read.slots)
        if self._masks is not None:
            held = self._masks[read.number] * held
        value = project(read.weight, held)
        return value if self._ablated is None else value + self._read_ablated[read.number]


def project(weight: Float[Tensor, "out column"], columns: Columns) -> Columns:
    """Apply `weight` to the columns at every position."""
    return (weight @ columns.flatten(1)).view(len(weight), *columns.shape[1:])


def align(value: Shaped[Tensor, "_ _ ..."], lead: int) -> Shaped[Tensor, "_ _ ..."]:
    """Return `[_, _, *lead, batch]` with leading dimensions of size 1 added until there are `lead`."""
    return value.reshape(*value.shape[:2], *[1] * (lead + 3 - value.ndim), *value.shape[2:])
