"""What a model must offer to have its circuit discovered."""

import copy
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from edgeprune.graph import Graph

Tokens = Int[Tensor, "*lead batch pos"]
"""Token ids."""

Sources = Float[Tensor, "source *lead batch pos d_model"]
"""What every source of the graph writes."""

Mask = Float[Tensor, "*masks source destination"]
"""1 keeps an edge and 0 ablates it; entries that no edge stands behind are not read."""

Positions = Int[Tensor, "*places batch predicted"]
"""The positions of each input at which outputs are wanted."""

Outputs = Float[Tensor, "*runs batch predicted vocab"]
"""Outputs before decoding: logits, or the value itself."""


@runtime_checkable
class MaskedModel(Protocol):
    """A frozen transformer whose edges can be ablated one by one.

    Leading dimensions batch whole runs: a mask of shape `[M, source, destination]` on tokens `[B, pos]` gives outputs
    `[M, B, pos, vocab]`, and on tokens `[M, B, pos]` each mask meets tokens of its own.
    """

    @property
    def graph(self) -> Graph:
        """The edges that masks stand for."""
        ...

    def sources(self, tokens: Tokens) -> Sources:
        """What every source writes in a plain run, for use as `ablated`."""
        ...

    def __call__(
        self,
        tokens: Tokens,
        mask: Mask | None = None,
        ablated: Sources | None = None,
        positions: Positions | None = None,
    ) -> Outputs:
        """Outputs with every edge mixed: `z * clean + (1 - z) * ablated`.

        Args:
            tokens: the clean input.
            mask: z for every edge; a plain run where it is None.
            ablated: what removed edges carry; zero where it is None.
            positions: those of each input at which outputs are wanted, in that order; all where it is None.
        """
        ...


class OnlyMasked:
    """A model with nothing to it but what `MaskedModel` promises, and its weights: what a discovery method is handed,
    so that it does not lean on what only a compiled model knows of itself."""

    def __init__(self, model: MaskedModel) -> None:
        self.graph = model.graph
        self._model = model

    @cached_property
    def weights(self) -> Any:
        """What the model computes with, for a published implementation that has to run it in its own way; None where it
        does not say. Of a compiled program, `tracr_bridge.compile.weights.Weights`. A copy, to write into."""
        return copy.deepcopy(getattr(self._model, "weights", None))

    def sources(self, tokens: Tokens) -> Sources:
        """See `MaskedModel`."""
        return self._model.sources(tokens)

    def __call__(
        self,
        tokens: Tokens,
        mask: Mask | None = None,
        ablated: Sources | None = None,
        positions: Positions | None = None,
    ) -> Outputs:
        """See `MaskedModel`."""
        return self._model(tokens, mask, ablated, positions)
