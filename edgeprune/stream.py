"""The disentangled residual stream: every source's contribution kept apart, mixed anew for each destination."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Slots:
    """One entry for every residual column that a source can write: (source, column) pairs, by source.

    A dense stream holds `source * d_model` numbers a position. Where the weights show which columns a source can
    write at all, the rest is zero whatever the input and need not be held, moved or multiplied.
    """

    source: Int[Tensor, " slot"]
    column: Int[Tensor, " slot"]
    starts: tuple[int, ...]
    """Where each source's slots start; one more entry holds the total."""

    @staticmethod
    def from_supports(supports: Sequence[Int[Tensor, " _"]]) -> "Slots":
        """Slots for sources that write the given columns."""
        counts = [len(support) for support in supports]
        starts = [0]
        for count in counts:
            starts.append(starts[-1] + count)
        source = torch.repeat_interleave(torch.arange(len(supports)), torch.tensor(counts))
        return Slots(source, torch.cat(list(supports)), tuple(starts))


@dataclass(frozen=True)
class Read:
    """How one destination reads: the slots that its weights reach, and the weights themselves."""

    destination: int
    """Column of the mask."""

    slots: Int[Tensor, " read"]
    sources: Int[Tensor, " read"]
    """Row of the mask for each slot read."""

    weight: Float[Tensor, "read out"]


class Stream:
    """The slots written so far in one masked run.

    A destination reads `(ablated + z * (clean - ablated)) @ weight`. The difference is held instead of the clean value,
    so that the ablated part, which is the same for all masks, is projected once for them all.

    Args:
        slots: who writes where.
        mask: z, `[*masks, source, destination]`; None keeps every edge.
        ablated: `[source, *lead, batch, pos, d_model]`; None stands for zeros.
    """

    def __init__(self, slots: Slots, mask: Tensor | None, ablated: Tensor | None) -> None:
        self._mask = mask
        self._slots = slots
        # Advanced indices split by slices put the slot dimension first.
        self._ablated = (
            None if ablated is None or mask is None else ablated[slots.source, ..., slots.column].movedim(0, -1)
        )
        self._written: Tensor | None = None
        self._rows = 0

    def write(self, contributions: Sequence[Float[Tensor, "..."]]) -> None:
        """Append the next sources of the graph's order, each as `[*lead, batch, pos, columns]` of its slots."""
        parts = [] if self._written is None else [self._written]
        for contribution in contributions:
            if self._ablated is None:
                parts.append(contribution)
            else:
                columns = slice(self._slots.starts[self._rows], self._slots.starts[self._rows + 1])
                parts.append(contribution - self._ablated[..., columns])
            self._rows += 1
        # The largest is what all broadcast to; torch.broadcast_shapes would say so slowly.
        lead = max((part.shape[:-1] for part in parts), key=lambda shape: (len(shape), math.prod(shape)))
        self._written = torch.cat([part.expand(*lead, part.shape[-1]) for part in parts], dim=-1)

    def read(self, how: Read) -> Float[Tensor, "*lead batch pos out"]:
        """What a destination computes from all slots that it reads."""
        assert self._written is not None, "embeddings are written first"
        held = self._written[..., how.slots]
        if self._mask is not None:
            held = self._mask[..., how.sources, how.destination][..., None, None, :] * held
        if self._ablated is None:
            return held @ how.weight
        return held @ how.weight + self._ablated[..., how.slots] @ how.weight
