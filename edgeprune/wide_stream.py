"""The disentangled residual stream of language models: hundreds of sources, each as wide as the stream.

Where `stream.py` holds single columns of small compiled models, this one holds all that a source writes, in one
preallocated stack `[run, source, row, d_model]`; a row is one position of one input. The destinations of a layer read
together: one product of their columns of the mask with the part of the stack that is written by then.

While autograd walks back, sources' gradients add up in a second stack. Neither stack is ever copied or concatenated:
autograd does not see them, and keeps the order of writes and reads by empty tensors that lead from each to the next.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Written = Float[Tensor, "run source row d_model"]
"""What some sources write."""

Read = Float[Tensor, "run destination row d_model"]
"""What some destinations read."""


class WideStream:
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
        self._order = mask.detach().new_empty(0)

    def write(self, contribution: Float[Tensor, "_ written row d_model"]) -> None:
        """Take what the next sources of the graph's order write."""
        part = slice(self._sources, self._sources + contribution.shape[1])
        self._sources = part.stop
        if self._ablated is not None:
            ablated = self._ablated[:, part]
            self._base = self._base + ablated.sum(1, keepdim=True)
            contribution = contribution - ablated
        self._order = _Write.apply(self._stacks, part, contribution, self._order)

    def add(self, constant: Float[Tensor, " d_model"]) -> None:
        """Add what belongs to no source, and is never ablated."""
        self._base = self._base + constant

    def read(self, destinations: int) -> Read:
        """What the next `destinations` of the graph's order read."""
        part = slice(self._destinations, self._destinations + destinations)
        self._destinations = part.stop
        z = self._mask[:, : self._sources, part]
        return _Read.apply(self._stacks, z, self._base, self._order)  # pyright: ignore[reportReturnType]


class PlainStream:
    """The stream of a plain run: one sum that all read alike.

    Args:
        keep: whether what sources write is kept.
    """

    def __init__(self, *, keep: bool) -> None:
        self._kept: list[Tensor] | None = [] if keep else None
        self._total: Tensor | None = None

    @property
    def written(self) -> Written:
        """What all sources wrote."""
        assert self._kept is not None, "made with keep=True"
        return torch.cat(self._kept, 1)

    def write(self, contribution: Written) -> None:
        """As `WideStream.write`."""
        if self._kept is not None:
            self._kept.append(contribution)
        together = contribution.sum(1, keepdim=True)
        self._total = together if self._total is None else self._total + together

    def add(self, constant: Float[Tensor, " d_model"]) -> None:
        """As `WideStream.add`."""
        assert self._total is not None, "embeddings are written first"
        self._total = self._total + constant

    def read(self, destinations: int) -> Float[Tensor, "run 1 row d_model"]:
        """What every destination reads, how many ever there are."""
        assert self._total is not None, "embeddings are written first"
        return self._total


class _Stacks:
    """What sources write less what they are ablated to, and, on the way back, the gradient by it."""

    def __init__(self, held: Written) -> None:
        self.held = held
        self._gradient: Tensor | None = None

    @property
    def gradient(self) -> Written:
        if self._gradient is None:
            self._gradient = torch.zeros_like(self.held)
        return self._gradient


class _Write(torch.autograd.Function):
    """Puts contributions into the stack. All reads of them have been walked back through before it is."""

    @staticmethod
    def forward(ctx: Any, stacks: _Stacks, part: slice, contribution: Tensor, order: Tensor) -> Tensor:
        ctx.stacks, ctx.part = stacks, part
        stacks.held[:, part] = contribution
        return torch.empty_like(order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, order: Tensor) -> tuple[None, None, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        collected = ctx.stacks.gradient[:, ctx.part]
        gradient = collected.clone()
        collected.zero_()  # a graph that is kept may be walked again
        return None, None, gradient, order


class _Read(torch.autograd.Function):
    """`base + z * held`, summed over the sources written so far."""

    @staticmethod
    def forward(ctx: Any, stacks: _Stacks, z: Tensor, base: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        ctx.stacks = stacks
        held = stacks.held[:, : z.shape[1]].flatten(2)
        base = base.expand(len(z), -1, -1, -1).flatten(2).expand(-1, z.shape[2], -1)
        return torch.baddbmm(base, z.mT, held).unflatten(2, stacks.held.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None, None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (z,) = ctx.saved_tensors
        gradient = gradient.flatten(2)
        by_mask = order = None
        if ctx.needs_input_grad[1]:
            by_mask = ctx.stacks.held[:, : z.shape[1]].flatten(2) @ gradient.mT
        if ctx.needs_input_grad[3]:
            ctx.stacks.gradient[:, : z.shape[1]].flatten(2).baddbmm_(z, gradient)
            order = z.new_empty(0)
        return None, by_mask, None, order
