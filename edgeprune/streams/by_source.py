"""The disentangled residual stream of language models: hundreds of sources, each as wide as the stream.

Where `by_column.py` holds single columns of small compiled models, this one holds all that a source writes, in one
preallocated stack `[run, source, row, d_model]`; a row is one position of one input. The destinations of a layer read
together: one product of their columns of the mask with the part of the stack that is written by then, then the norm
that each of them has, then their weights.

What destinations read is larger than the stack itself, and not held unless it is small: some rows of it at a time are
mixed, used and thrown away, and mixed again while autograd walks back. Sources' gradients then add up in a second
stack. Neither stack is ever copied or concatenated: autograd does not see them, and keeps the order of writes and reads
by empty tensors that lead from each to the next. So memory grows with sources, and not with layers times sources.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Written = Float[Tensor, "run source row d_model"]
"""What some sources write."""

Norm = Callable[[Tensor], Tensor]
"""What a destination does to what it reads, row by row, before its weights."""

ReadWeights = tuple[Float[Tensor, "_ d_model width"], ...]
"""What destinations do next, each with weights of its own: queries, keys and values may lie apart in memory."""

Taken = Float[Tensor, "destination run row width"]
"""What destinations make of what they read; as wide as the stream where they have no weights."""

_AT_ONCE: Final = {"cpu": 2**21, "cuda": 2**27}
"""Numbers that are mixed at a time: what fits a processor's cache, and what fills a GPU."""

_as_on: str | None = None
"""The kind of device that `mixing_as_on` says."""

_HELD: Final = 2**22
"""Numbers that the destinations of a layer may read to be held rather than mixed again."""


@contextmanager
def mixing_as_on(device: str) -> Generator[None]:
    """Mix as much at a time as on that kind of device, wherever tensors are: to plan for one that is not here."""
    global _as_on
    before, _as_on = _as_on, device
    try:
        yield
    finally:
        _as_on = before


class SourceStream:
    """What has been written so far in a run under masks, and how it is read.

    A destination reads `base + z * (clean - ablated)`, where the base has the ablated values of all earlier sources,
    and what the model adds besides. The difference is held instead of the clean value.

    Args:
        size: how many runs, rows and columns there are.
        mask: z, `[run or 1, source, destination]`, of the type and on the device that the stream is to have.
        ablated: what removed edges carry, `[run or 1, source, row, d_model]`; None stands for zeros.
    """

    def __init__(
        self,
        size: tuple[int, int, int],
        mask: Float[Tensor, "_ source destination"],
        ablated: Float[Tensor, "_ source row d_model"] | None,
    ) -> None:
        runs, rows, width = size
        self._mask = mask.expand(runs, -1, -1)
        self._ablated = ablated
        self._stacks = _Stacks(mask.new_empty(runs, mask.shape[1], rows, width))
        self._base = mask.detach().new_zeros(1, 1, rows, width)
        self._sources = self._destinations = 0
        # Nothing, of the mask: what is asked for on the way back is called whatever gradients are wanted.
        self._order = mask.flatten()[:0]

    @property
    def held(self) -> Written:
        """What all sources have written, less what they are ablated to."""
        return self._stacks.held

    def write(self, contribution: Float[Tensor, "_ written row d_model"]) -> None:
        """Take what the next sources of the graph's order write."""
        part = slice(self._sources, self._sources + contribution.shape[1])
        self._sources = part.stop
        ablated = None
        if self._ablated is not None:
            ablated = self._ablated[:, part]
            self._base = self._base + ablated.sum(1, keepdim=True)
        self._order = _Write.apply(self._stacks, part, contribution, ablated, self._order)

    def add(self, constant: Float[Tensor, " d_model"]) -> None:
        """Add what belongs to no source, and is never ablated."""
        self._base = self._base + constant

    def on_the_way_back(self, call: Callable[[], None]) -> None:
        """Call it when all that is written and read from here on has been walked back through."""
        self._order = _Call.apply(self._order, call)

    def read(self, norm: Norm, weights: ReadWeights = ()) -> Taken:
        """What the next destinations of the graph's order make of what they read: one for each of `weights`, or one."""
        part = slice(self._destinations, self._destinations + _count(weights))
        self._destinations = part.stop
        z = self._mask[:, : self._sources, part]
        taken = _Read.apply(self._stacks, z, self._base, self._order, norm, weights)
        return taken  # pyright: ignore[reportReturnType]


class PlainStream:
    """The stream of a plain run: one sum that all read alike.

    Args:
        held: a stack for what sources write, if that is to be kept.
    """

    def __init__(self, held: Written | None = None) -> None:
        self._held, self._sources = held, 0
        self._total: Tensor | None = None

    def write(self, contribution: Written) -> None:
        """As `SourceStream.write`."""
        if self._held is not None:
            self._held[:, self._sources : self._sources + contribution.shape[1]] = contribution
        self._sources += contribution.shape[1]
        together = contribution.sum(1, keepdim=True)
        self._total = together if self._total is None else self._total + together

    def add(self, constant: Float[Tensor, " d_model"]) -> None:
        """As `SourceStream.add`."""
        assert self._total is not None, "embeddings are written first"
        self._total = self._total + constant

    def on_the_way_back(self, call: Callable[[], None]) -> None:
        """As `SourceStream.on_the_way_back`: there is none."""

    def read(self, norm: Norm, weights: ReadWeights = ()) -> Taken:
        """As `SourceStream.read`."""
        assert self._total is not None, "embeddings are written first"
        return _weighted(norm(self._total).expand(-1, _count(weights), -1, -1), weights)


def _count(weights: ReadWeights) -> int:
    """How many destinations read; one where they have no weights."""
    return sum(map(len, weights)) or 1


def _weighted(normed: Float[Tensor, "run destination row d_model"], weights: ReadWeights) -> Taken:
    """Every destination's own product, those of all runs together."""
    normed = normed.transpose(0, 1)
    if not weights:
        return normed
    parts = normed.flatten(1, 2).split([len(part) for part in weights])
    taken = [part @ own for part, own in zip(parts, weights, strict=True)]
    return (taken[0] if len(taken) == 1 else torch.cat(taken)).unflatten(1, normed.shape[1:3])


class _Stacks:
    """What sources write less what they are ablated to, and, on the way back, the gradient by it."""

    def __init__(self, held: Written) -> None:
        self.held = held
        self._gradient: Tensor | None = None

    @property
    def gradient(self) -> Written:
        if self._gradient is None:
            self._gradient = torch.empty_like(self.held)
        return self._gradient


class _Write(torch.autograd.Function):
    """Puts contributions into the stack. All reads of them have been walked back through before it is."""

    @staticmethod
    def forward(
        ctx: Any, stacks: _Stacks, part: slice, contribution: Tensor, ablated: Tensor | None, order: Tensor
    ) -> Tensor:
        ctx.stacks, ctx.part = stacks, part
        stacks.held[:, part] = contribution
        if ablated is not None:
            stacks.held[:, part] -= ablated
        return torch.empty_like(order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, order: Tensor) -> tuple[None, None, Tensor, None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, ctx.stacks.gradient[:, ctx.part], None, order


class _Call(torch.autograd.Function):
    """Nothing but a call on the way back."""

    @staticmethod
    def forward(ctx: Any, order: Tensor, call: Callable[[], None]) -> Tensor:
        ctx.call = call
        return torch.empty_like(order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, order: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.call()
        return order, None


class _Read(torch.autograd.Function):
    """`weights(norm(base + z * held))`, summed over the sources written so far."""

    @staticmethod
    def forward(
        ctx: Any, stacks: _Stacks, z: Tensor, base: Tensor, order: Tensor, norm: Norm, weights: ReadWeights
    ) -> Tensor:
        ctx.save_for_backward(z, base)
        ctx.stacks, ctx.norm, ctx.weights, ctx.held = stacks, norm, weights, list[Tensor]()
        width = weights[0].shape[-1] if weights else base.shape[-1]
        taken = z.new_empty(z.shape[2], len(z), base.shape[2], width)
        for rows in _row_slices(z, base):
            mixed = _mixed(stacks.held, z, base, rows)
            taken[:, :, rows] = _weighted(norm(mixed), weights)
            if taken.shape[:3].numel() * base.shape[-1] <= _HELD:
                ctx.held.append(mixed)
        return taken

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Taken
    ) -> tuple[None, Tensor | None, None, Tensor | None, None, None]:
        z, base = ctx.saved_tensors
        by_mask = torch.zeros_like(z) if ctx.needs_input_grad[1] else None
        order = z.new_empty(0) if ctx.needs_input_grad[3] else None
        for number, rows in enumerate(_row_slices(z, base)):
            mixed = ctx.held[number] if ctx.held else _mixed(ctx.stacks.held, z, base, rows)
            with torch.enable_grad():
                normed = ctx.norm(mixed.requires_grad_())
            by_normed = _weighted(gradient[:, :, rows].transpose(0, 1), tuple(part.mT for part in ctx.weights))
            (by_mixed,) = torch.autograd.grad(normed, mixed, by_normed.transpose(0, 1))
            by_mixed = by_mixed.flatten(2)
            if by_mask is not None:
                by_mask.baddbmm_(_part(ctx.stacks.held, z, rows), by_mixed.mT)
            if order is not None:
                # The logits, which alone read every source, are walked back through first: nothing is there yet.
                more = z.shape[1] < ctx.stacks.held.shape[1]
                _part(ctx.stacks.gradient, z, rows).baddbmm_(z, by_mixed, beta=float(more))
        return None, by_mask, None, order, None, None


def _row_slices(z: Tensor, base: Tensor) -> Iterator[slice]:
    """Rows that are mixed at a time."""
    rows, width = base.shape[2:]
    at_once = _AT_ONCE.get(_as_on or z.device.type, max(_AT_ONCE.values()))
    some = max(1, at_once // (len(z) * z.shape[2] * width))
    return (slice(start, min(rows, start + some)) for start in range(0, rows, some))


def _part(stack: Written, z: Tensor, rows: slice) -> Float[Tensor, "run written number"]:
    """Some rows of the sources written so far, as a matrix that shares their memory."""
    return stack[:, : z.shape[1], rows].flatten(2)


def _mixed(held: Written, z: Tensor, base: Tensor, rows: slice) -> Float[Tensor, "run destination some d_model"]:
    """What destinations read at some rows."""
    some = base[:, :, rows]
    shared = some.flatten(2).expand(len(z), z.shape[2], -1)
    return torch.baddbmm(shared, z.mT, _part(held, z, rows)).unflatten(2, some.shape[2:])
