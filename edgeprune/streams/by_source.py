"""The disentangled residual stream of language models: hundreds of sources, each as wide as the stream.

`by_column.py` holds single columns of small compiled models. This module holds per-source activations in one
preallocated buffer `[run, source, row, d_model]`; a row is one position of one input. The destinations of a layer read
together: one matrix product of their mask columns with the sources written so far, then each one's norm, then their
weights.

The inputs of all destinations are larger than the buffer, so they are not held unless they are small. A few rows at a
time are mixed, used and dropped, and mixed again in the backward pass. Gradients of sources add up in a second buffer.
Custom autograd Functions update both buffers in place, without copies; zero-size tensors fix the order of the backward
pass. So memory grows with the number of sources, not with layers times sources.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Written = Float[Tensor, "run source row d_model"]
"""Activations: what some sources write."""

Norm = Callable[[Tensor], Tensor]
"""The norm that a destination applies to each row of its input, before its weights."""

ReadWeights = tuple[Float[Tensor, "_ d_model width"], ...]
"""Weights that destinations apply after the norm, one matrix each; queries, keys and values may be separate tensors."""

Taken = Float[Tensor, "destination run row width"]
"""What destinations compute from their inputs; as wide as the stream if they have no weights."""

_AT_ONCE: Final = {"cpu": 2**21, "cuda": 2**27}
"""Numbers mixed at a time, by device: as many as fit a CPU's cache, or fill a GPU."""

_as_on: str | None = None
"""The kind of device that `mixing_as_on` sets; None means the tensors' own."""

_HELD: Final = 2**22
"""Largest size, in numbers, at which the inputs of one read's destinations are held rather than mixed again."""


@contextmanager
def mixing_as_on(device: str) -> Generator[None]:
    """Mix as many numbers at a time as on this kind of device, to plan for a device that is not here."""
    global _as_on
    before, _as_on = _as_on, device
    try:
        yield
    finally:
        _as_on = before


class SourceStream:
    """The sources written so far in a masked run.

    A destination reads `base` plus the sum of `z * (clean - ablated)` over all earlier sources. The base is the sum of
    their ablation values and of the constants that the model adds. The stream holds `clean - ablated`.

    Args:
        size: the numbers of runs, rows and columns.
        mask: z, `[run or 1, source, destination]`; its dtype and device are those of the stream.
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
        # A zero-size part of the mask: through it, calls of `on_the_way_back` run whenever the mask needs a gradient.
        self._order = mask.flatten()[:0]

    @property
    def held(self) -> Written:
        """What all sources have written, minus their ablation values."""
        return self._stacks.held

    def write(self, contribution: Float[Tensor, "_ written row d_model"]) -> None:
        """Store what the next sources, in the graph's order, write."""
        part = slice(self._sources, self._sources + contribution.shape[1])
        self._sources = part.stop
        ablated = None
        if self._ablated is not None:
            ablated = self._ablated[:, part]
            self._base = self._base + ablated.sum(1, keepdim=True)
        self._order = _Write.apply(self._stacks, part, contribution, ablated, self._order)

    def add(self, constant: Float[Tensor, " d_model"]) -> None:
        """Add a constant that belongs to no source and is never ablated."""
        self._base = self._base + constant

    def on_the_way_back(self, call: Callable[[], None]) -> None:
        """Run `call` in the backward pass, after it has passed through all later writes and reads."""
        self._order = _Call.apply(self._order, call)

    def read(self, norm: Norm, weights: ReadWeights = ()) -> Taken:
        """Return what the next destinations, in the graph's order, compute: one per matrix of `weights`, or one."""
        part = slice(self._destinations, self._destinations + _count(weights))
        self._destinations = part.stop
        z = self._mask[:, : self._sources, part]
        taken = _Read.apply(self._stacks, z, self._base, self._order, norm, weights)
        return taken  # pyright: ignore[reportReturnType]


class PlainStream:
    """The stream of an unmasked run: one sum that all destinations read.

    Args:
        held: a buffer in which to keep what sources write; None keeps nothing.
    """

    def __init__(self, held: Written | None = None) -> None:
        self._held, self._sources = held, 0
        self._total: Tensor | None = None

    def write(self, contribution: Written) -> None:
        """See `SourceStream.write`."""
        if self._held is not None:
            self._held[:, self._sources : self._sources + contribution.shape[1]] = contribution
        self._sources += contribution.shape[1]
        together = contribution.sum(1, keepdim=True)
        self._total = together if self._total is None else self._total + together

    def add(self, constant: Float[Tensor, " d_model"]) -> None:
        """See `SourceStream.add`."""
        assert self._total is not None, "embeddings are written first"
        self._total = self._total + constant

    def on_the_way_back(self, call: Callable[[], None]) -> None:
        """Do nothing: an unmasked run has no backward pass. See `SourceStream.on_the_way_back`."""

    def read(self, norm: Norm, weights: ReadWeights = ()) -> Taken:
        """See `SourceStream.read`."""
        assert self._total is not None, "embeddings are written first"
        return _weighted(norm(self._total).expand(-1, _count(weights), -1, -1), weights)


def _count(weights: ReadWeights) -> int:
    """Return how many destinations read: one per matrix of `weights`, or one without weights."""
    return sum(map(len, weights)) or 1


def _weighted(normed: Float[Tensor, "run destination row d_model"], weights: ReadWeights) -> Taken:
    """Return every destination's input times its own weights, destinations first."""
    normed = normed.transpose(0, 1)
    if not weights:
        return normed
    parts = normed.flatten(1, 2).split([len(part) for part in weights])
    taken = [part @ own for part, own in zip(parts, weights, strict=True)]
    return (taken[0] if len(taken) == 1 else torch.cat(taken)).unflatten(1, normed.shape[1:3])


class _Stacks:
    """The buffer of what sources write minus their ablation values, and the buffer of its gradient."""

    def __init__(self, held: Written) -> None:
        self.held = held
        self._gradient: Tensor | None = None

    @property
    def gradient(self) -> Written:
        if self._gradient is None:
            self._gradient = torch.empty_like(self.held)
        return self._gradient


class _Write(torch.autograd.Function):
    """Autograd Function that writes contributions to the buffer. Backward reaches it after all reads of them."""

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
    """Autograd Function that calls a function in the backward pass, and does nothing else."""

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
    """Autograd Function for `weights(norm(base + z * held))`; `z * held` is summed over the sources written so far."""

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
                # Only the logits read every source, and backward starts there: the buffer is still uninitialised.
                more = z.shape[1] < ctx.stacks.held.shape[1]
                _part(ctx.stacks.gradient, z, rows).baddbmm_(z, by_mixed, beta=float(more))
        return None, by_mask, None, order, None, None


def _row_slices(z: Tensor, base: Tensor) -> Iterator[slice]:
    """Return the slices of rows that are mixed one at a time."""
    rows, width = base.shape[2:]
    at_once = _AT_ONCE.get(_as_on or z.device.type, max(_AT_ONCE.values()))
    some = max(1, at_once // (len(z) * z.shape[2] * width))
    return (slice(start, min(rows, start + some)) for start in range(0, rows, some))


def _part(stack: Written, z: Tensor, rows: slice) -> Float[Tensor, "run written number"]:
    """Return some rows of the sources written so far, as one matrix per run that shares the buffer's memory."""
    return stack[:, : z.shape[1], rows].flatten(2)


def _mixed(held: Written, z: Tensor, base: Tensor, rows: slice) -> Float[Tensor, "run destination some d_model"]:
    """Return the destinations' inputs at some rows."""
    some = base[:, :, rows]
    shared = some.flatten(2).expand(len(z), z.shape[2], -1)
    return torch.baddbmm(shared, z.mT, _part(held, z, rows)).unflatten(2, some.shape[2:])
