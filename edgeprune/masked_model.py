"""The interface that a model must offer for circuit discovery."""

import copy
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from edgeprune.graph import Graph

Tokens = Int[Tensor, "*lead batch pos"]
"""Token ids."""

Sources = Float[Tensor, "source *lead batch pos d_model"]
"""Activations: what every source of the graph writes."""

Mask = Float[Tensor, "*masks source destination"]
"""1 keeps an edge and 0 ablates it; entries where the graph has no edge are not read."""

Positions = Int[Tensor, "*places batch predicted"]
"""The positions of each input at which outputs are computed."""

Outputs = Float[Tensor, "*runs batch predicted vocab"]
"""Outputs before decoding: logits, or the values themselves."""


@runtime_checkable
class MaskedModel(Protocol):
    """A frozen transformer whose edges can be ablated one by one.

    Leading dimensions batch whole runs. A mask of shape `[M, source, destination]` on tokens `[B, pos]` gives outputs
    `[M, B, pos, vocab]`; on tokens `[M, B, pos]`, each mask runs on its own tokens.
    """

    @property
    def graph(self) -> Graph:
        """The graph whose edges the masks cover."""
        ...

    def sources(self, tokens: Tokens) -> Sources:
        """Return what every source writes in an unmasked run, for use as `ablated`."""
        ...

    def __call__(
        self,
        tokens: Tokens,
        mask: Mask | None = None,
        ablated: Sources | None = None,
        positions: Positions | None = None,
    ) -> Outputs:
        """Return the outputs when every edge carries `z * clean + (1 - z) * ablated`.

        Args:
            tokens: the clean inputs.
            mask: z for every edge; None runs the full model.
            ablated: the ablation values that removed edges carry; None means zeros.
            positions: the positions of each input at which outputs are computed, in that order; None means all.
        """
        ...


class OnlyMasked:
    """A model reduced to the `MaskedModel` interface and its weights. Discovery methods receive this, so that they
    cannot rely on what only a compiled model offers."""

    def __init__(self, model: MaskedModel) -> None:
        self.graph = model.graph
        self._model = model

    @cached_property
    def weights(self) -> Any:
        """A writable copy of the model's weights, for published implementations that must run the model themselves.
        None if the model offers none. For a compiled program, a `tracr_bridge.compile.weights.Weights`."""
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
