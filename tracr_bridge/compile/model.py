"""A compiled program as a PyTorch transformer that implements `MaskedModel`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edgeprune.fingerprints import Level, bits_of, salt, scrambled
from edgeprune.graph import Edge, Graph, Node
from edgeprune.masked_model import Mask, Outputs, Positions, Sources, Tokens
from edgeprune.streams.by_column import Columns, ColumnStream, Wiring, align, project
from tracr_bridge.compile.weights import HeadWeights, LayerWeights, Weights


@dataclass(frozen=True)
class _Head:
    """An attention head with nonzero output weights; all other heads are left out."""

    index: int
    query: int
    key: int
    value: int
    """Mask columns of the head's destinations: `query` (q), `key` (k) and `value` (v)."""

    output: Float[Tensor, "columns width"]


@dataclass(frozen=True)
class _Layer:
    heads: tuple[_Head, ...]
    hidden: int
    """Mask column of the MLP as a destination."""

    output: Float[Tensor, "columns d_mlp"]


Observer = Callable[[int, int, Tensor], None]
"""Called during a run with (layer, head, attention scores `[*lead, batch, query, key]`)."""


class TracrModel:
    """A compiled program as a masked transformer: no LayerNorm, ReLU MLPs, softmax over scores / sqrt(key_size).

    Tokens are ids `[*lead, batch, pos]` with BOS first and PAD on the right. No position attends to PAD, so a batch can
    hold inputs of several lengths. Outputs are `[..., batch, pos, outputs]`, before decoding.

    Args:
        weights: the weights that `extract_weights` returns.
        token_ids: ids that can occur in an input, including BOS; structural edges are determined for these ids only.
    """

    def __init__(self, weights: Weights, *, token_ids: list[int]) -> None:
        heads = len(weights.layers[0].heads)
        self.graph = Graph.transformer(embeddings=("tok", "pos"), layers=len(weights.layers), heads=heads)
        self.weights = weights
        self._token_ids = token_ids
        self._causal = weights.causal
        self._key_size = weights.layers[0].heads[0].query.shape[1]
        written = [weights.token[token_ids], weights.position, *(m for layer in weights.layers for m in layer.written)]
        read = [*(matrix for layer in weights.layers for matrix in layer.read), weights.unembed]
        self.structural_mask = structural_mask(self.graph, written, read)
        self.read = [torch.from_numpy(matrix) for matrix in read]
        self._supports = [np.flatnonzero(np.any(matrix != 0, axis=0)) for matrix in written]
        self._token = torch.from_numpy(weights.token[:, self._supports[0]].T.copy())
        self._position = torch.from_numpy(weights.position[:, self._supports[1]].T.copy())
        self._reads: dict[int, Tensor] = {}
        self._layers = tuple(self._layer(i, layer) for i, layer in enumerate(weights.layers))
        self._unembed = self._reader(Node("logits"), weights.unembed)
        supports = [torch.from_numpy(support) for support in self._supports]
        self._wiring = Wiring(supports, self._reads, self.structural_mask)

    @property
    def structural(self) -> frozenset[Edge]:
        """Edges whose source writes where their destination reads; every other edge contributes exactly zero."""
        return frozenset(edge for edge in self.graph.edges if self.structural_mask[self.graph.position(edge)])

    def sources(self, tokens: Tokens) -> Sources:
        """Return what every source writes in an unmasked run, `[source, *lead, batch, pos, d_model]`."""
        written = self._run(tokens, None, None, None)[1]
        cells = written.new_zeros(self._wiring.sources * self._wiring.d_model, *written.shape[1:])
        cells.index_copy_(0, self._wiring.cells, written)
        return cells.unflatten(0, (self._wiring.sources, -1)).movedim((1, 2), (-1, -2))

    def __call__(
        self,
        tokens: Tokens,
        mask: Mask | None = None,
        ablated: Sources | None = None,
        positions: Positions | None = None,
    ) -> Outputs:
        """Return outputs before decoding, every edge mixed as `z * clean + (1 - z) * ablated`; see `MaskedModel`."""
        outputs = self._run(tokens, mask, ablated, None)[0]
        if positions is None:
            return outputs
        chosen = positions[..., None].expand(*outputs.shape[:-2], -1, outputs.shape[-1])
        return outputs.gather(-2, chosen)

    def fingerprints(
        self,
        tokens: Tokens,
        mask: Mask,
        ablated: Sources | None,
        relevant: Bool[Tensor, "source batch pos"],
        layers: int,
    ) -> Int[Tensor, "source mask batch"]:
        """See `JudgedModel`."""
        written = self._write_all(tokens, mask, ablated, None, layers).written
        assert written is not None
        slots, positions = written.shape[:2]
        source = self._wiring.cells[:slots] // self._wiring.d_model
        counted = (relevant & self.is_token(tokens)).movedim(-1, 1)[source]
        summed = (scrambled(bits_of(written), self._salts[:slots, :positions, None, None]) * counted[:, :, None]).sum(1)
        return summed.new_zeros(self._wiring.sources, *summed.shape[1:]).index_add_(0, source, summed)

    @cached_property
    def _salts(self) -> Int[Tensor, "slot pos"]:
        shape = (len(self._wiring.cells), len(self.weights.position))
        return salt(shape[0] * shape[1], Level.COLUMN).view(shape)

    @property
    def in_double(self) -> "TracrModel":
        """The same model in double precision."""
        return TracrModel(self.weights.in_double(), token_ids=self._token_ids)

    def observe(self, tokens: Tokens, observer: Observer) -> Outputs:
        """Return the outputs of an unmasked run; pass each head's scores (scaled, not yet masked) to `observer`."""
        return self._run(tokens, None, None, observer)[0]

    def _run(
        self, tokens: Tensor, mask: Tensor | None, ablated: Tensor | None, observer: Observer | None
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs, and what all sources wrote, by slot (see `ColumnStream`)."""
        stream = self._write_all(tokens, mask, ablated, observer, len(self._layers))
        assert stream.written is not None
        return _runs_first(stream.read(self._unembed)), stream.written

    def _write_all(
        self, tokens: Tensor, mask: Tensor | None, ablated: Tensor | None, observer: Observer | None, layers: int
    ) -> ColumnStream:
        """Return the stream to which the embeddings and the first `layers` layers have written."""
        masked = [] if mask is None else [mask.ndim, 0 if ablated is None else ablated.ndim - 2]
        lead = max([tokens.ndim, *masked]) - 2
        stream = ColumnStream(self._wiring, lead, mask, ablated)
        ids = tokens.movedim(-1, 0)
        token = self._token.index_select(1, ids.flatten()).unflatten(1, ids.shape)
        position = self._position[:, : len(ids), None]
        stream.write([align(token, lead), align(position, lead)])
        visible = align(self._visible(ids), lead)
        for number, layer in enumerate(self._layers[:layers]):
            stream.write([self._attend(stream, head, visible, number, observer) for head in layer.heads])
            stream.write([project(layer.output, torch.relu(stream.read(layer.hidden)))])
        return stream

    def _attend(
        self, stream: ColumnStream, head: _Head, visible: Tensor, layer: int, observer: Observer | None
    ) -> Columns:
        query, key, value = stream.read(head.query), stream.read(head.key), stream.read(head.value)
        # Scores are `[key, query, *lead, batch]`: with runs innermost, softmax over the first dimension has long rows.
        scores = (key[:, :, None] * query[:, None]).sum(0) / self._key_size**0.5
        if observer is not None:
            observer(layer, head.index, _runs_first(scores))
        pattern = torch.softmax(torch.where(visible, scores, -1e30), dim=0)
        return project(head.output, (value[:, :, None] * pattern).sum(1))

    def is_token(self, tokens: Tokens) -> Bool[Tensor, "*lead batch pos"]:
        """Return whether each position holds a token or BOS, rather than PAD."""
        return tokens != self.weights.pad_id

    def _visible(self, ids: Int[Tensor, "pos *lead batch"]) -> Bool[Tensor, "key query *lead batch"]:
        """Return which keys each query can attend to: never PAD and, in a causal program, no later position."""
        visible = self.is_token(ids)[:, None]
        if not self._causal:
            return visible
        earlier = torch.ones(len(ids), len(ids), dtype=torch.bool).triu()
        return visible & earlier.reshape(len(ids), len(ids), *[1] * (ids.ndim - 1))

    def _layer(self, number: int, layer: LayerWeights) -> _Layer:
        heads = tuple(self._head(number, h, head) for h, head in enumerate(layer.heads) if np.any(head.output != 0))
        units = np.flatnonzero(np.any(layer.hidden != 0, axis=0) & np.any(layer.output != 0, axis=1))
        node = Node("m", number)
        return _Layer(heads, self._reader(node, layer.hidden[:, units]), self._writer(node, layer.output[units]))

    def _head(self, number: int, index: int, head: HeadWeights) -> _Head:
        matched = np.flatnonzero(np.any(head.query != 0, axis=0) & np.any(head.key != 0, axis=0))
        moved = np.flatnonzero(np.any(head.value != 0, axis=0) & np.any(head.output != 0, axis=1))
        return _Head(
            index,
            self._reader(Node("a", number, index, "q"), head.query[:, matched]),
            self._reader(Node("a", number, index, "k"), head.key[:, matched]),
            self._reader(Node("a", number, index, "v"), head.value[:, moved]),
            self._writer(Node("a", number, index), head.output[moved]),
        )

    def _reader(self, destination: Node, weight: np.ndarray) -> int:
        """Register the weight `[d_model, out]` that `destination` reads with, and return its mask column."""
        column = self.graph.destination_index[destination]
        self._reads[column] = torch.from_numpy(weight)
        return column

    def _writer(self, source: Node, weight: np.ndarray) -> Float[Tensor, "columns width"]:
        """Return the columns of `weight` (`[width, d_model]`) that `source` writes, transposed."""
        return torch.from_numpy(weight[:, self._supports[self.graph.source_index[source]]].T.copy())


def _runs_first(columns: Columns) -> Float[Tensor, "*lead batch pos column"]:
    """Reorder the dimensions `[column, pos, *lead, batch]` to those of the model's outputs."""
    return columns.permute(*range(2, columns.ndim), 1, 0)


def structural_mask(
    graph: Graph, written: list[np.ndarray], read: list[np.ndarray]
) -> Bool[Tensor, "source destination"]:
    """Return a mask that is True for the edges whose `W_out @ W_in` is not zero."""
    structural = torch.zeros(len(graph.sources), len(graph.destinations), dtype=torch.bool)
    for edge in graph.edges:
        row, column = graph.position(edge)
        structural[row, column] = bool(np.any(written[row] @ read[column] != 0))
    return structural
