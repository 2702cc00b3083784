"""The PyTorch transformer of compiled weights, as a `MaskedModel`."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from edgeprune.graph import Edge, Graph, Node
from edgeprune.model import Mask, Outputs, Sources, Tokens
from edgeprune.stream import Read, Slots, Stream
from tracr_bridge.weights import HeadWeights, LayerWeights, Weights


@dataclass(frozen=True)
class _Head:
    """An attention head whose weights are trimmed to what is not zero."""

    index: int
    query: Read
    key: Read
    value: Read
    output: Float[Tensor, "width columns"]


@dataclass(frozen=True)
class _Layer:
    heads: tuple[_Head, ...]
    hidden: Read
    output: Float[Tensor, "d_mlp columns"]


Observer = Callable[[int, int, Tensor], None]
"""Called with (layer, head, attention scores) while a run goes on."""


class TracrModel:
    """A compiled program as a masked transformer: no LayerNorm, ReLU, softmax over scores / sqrt(key_size).

    Tokens are `[*lead, batch, pos]` ids with BOS first and PAD on the right, which no position attends to, so inputs of
    several lengths share a batch. Outputs are `[..., batch, pos, outputs]` before decoding.

    Args:
        weights: as `extract_weights` gives them.
        token_ids: ids that can occur in an input, BOS among them; structure is read off for these alone.
        pad_id: the id of PAD.
    """

    def __init__(self, weights: Weights, *, token_ids: list[int], pad_id: int) -> None:
        heads = len(weights.layers[0].heads)
        self.graph = Graph.transformer(embeddings=("tok", "pos"), layers=len(weights.layers), heads=heads)
        self.pad_id = pad_id
        self._causal = weights.causal
        self._key_size = weights.layers[0].heads[0].query.shape[1]
        self._d_model = weights.token.shape[1]
        written, read = _written_matrices(weights, token_ids), _read_matrices(weights)
        self.structural_mask = _structural(self.graph, written, read)
        self.read = [torch.from_numpy(matrix) for matrix in read]
        supports = [torch.from_numpy(np.flatnonzero(np.any(m != 0, axis=0))) for m in written]
        self._slots = Slots.from_supports(supports)
        self._supports = supports
        self._token = torch.from_numpy(weights.token)[:, supports[0]]
        self._position = torch.from_numpy(weights.position)[:, supports[1]]
        self._layers = tuple(self._layer(i, layer) for i, layer in enumerate(weights.layers))
        self._unembed = self._reader(len(self.graph.destinations) - 1, weights.unembed)

    @property
    def structural(self) -> frozenset[Edge]:
        """The edges whose source writes where their destination reads; every other edge carries exactly zero."""
        return frozenset(edge for edge in self.graph.edges if self.structural_mask[self.graph.position(edge)])

    def sources(self, tokens: Tokens) -> Sources:
        """What every source writes in a plain run, `[source, *lead, batch, pos, d_model]`."""
        written = self._run(tokens, None, None, None)[1]
        dense = written[0].new_zeros(len(written), *tokens.shape, self._d_model)
        for row, (support, value) in enumerate(zip(self._supports, written, strict=True)):
            dense[row][..., support] = value.expand(*tokens.shape, -1)
        return dense

    def __call__(self, tokens: Tokens, mask: Mask | None = None, ablated: Sources | None = None) -> Outputs:
        """Outputs before decoding, every edge mixed as `z * clean + (1 - z) * ablated`; see `MaskedModel`."""
        return self._run(tokens, mask, ablated, None)[0]

    def observe(self, tokens: Tokens, observer: Observer) -> Outputs:
        """A plain run that shows `observer` every head's attention scores, scaled and before masking."""
        return self._run(tokens, None, None, observer)[0]

    def _run(
        self, tokens: Tensor, mask: Tensor | None, ablated: Tensor | None, observer: Observer | None
    ) -> tuple[Tensor, list[Tensor]]:
        length = tokens.shape[-1]
        stream = Stream(self._slots, mask, ablated)
        written = [self._token[tokens], self._position[:length]]
        stream.write(written)
        visible = self._visible(tokens)
        for number, layer in enumerate(self._layers):
            active = {head.index: head for head in layer.heads}
            rows = [self._source_row("a", number, h) for h in range(self._heads)]
            outputs = [
                self._attend(stream, active[h], visible, number, observer)
                if h in active
                else self._token.new_zeros(*tokens.shape, len(self._supports[rows[h]]))
                for h in range(self._heads)
            ]
            stream.write(outputs)
            hidden = torch.relu(stream.read(layer.hidden)) @ layer.output
            stream.write([hidden])
            written += [*outputs, hidden]
        return stream.read(self._unembed), written

    def _attend(
        self, stream: Stream, head: _Head, visible: Tensor, layer: int, observer: Observer | None
    ) -> Float[Tensor, "*lead batch pos columns"]:
        query, key, value = stream.read(head.query), stream.read(head.key), stream.read(head.value)
        scores = query @ key.mT / self._key_size**0.5
        if observer is not None:
            observer(layer, head.index, scores)
        pattern = torch.softmax(torch.where(visible, scores, -1e30), dim=-1)
        return pattern @ value @ head.output

    def is_token(self, tokens: Tokens) -> Bool[Tensor, "*lead batch pos"]:
        """Whether each position holds a token or BOS, and not PAD."""
        return tokens != self.pad_id

    def _visible(self, tokens: Tensor) -> Tensor:
        """Which key each query sees: never PAD, and nothing later in a causal program; `[*lead, batch, query, key]`."""
        visible = self.is_token(tokens)[..., None, :]
        if self._causal:
            length = tokens.shape[-1]
            visible = visible & torch.ones(length, length, dtype=torch.bool).tril()
        return visible

    @property
    def _heads(self) -> int:
        return sum(node.kind == "a" and node.layer == 0 for node in self.graph.sources)

    def _source_row(self, kind: str, layer: int, head: int = -1) -> int:
        return self.graph.source_index[Node(kind, layer, head)]  # pyright: ignore[reportArgumentType]

    def _layer(self, number: int, layer: LayerWeights) -> _Layer:
        heads = tuple(self._head(number, h, head) for h, head in enumerate(layer.heads) if np.any(head.output != 0))
        units = np.flatnonzero(np.any(layer.hidden != 0, axis=0) & np.any(layer.output != 0, axis=1))
        column = self.graph.destination_index[Node("m", number)]
        support = self._supports[self._source_row("m", number)]
        return _Layer(
            heads,
            self._reader(column, layer.hidden[:, units]),
            torch.from_numpy(layer.output[units])[:, support],
        )

    def _head(self, number: int, index: int, head: HeadWeights) -> _Head:
        port = {p: self.graph.destination_index[Node("a", number, index, p)] for p in ("q", "k", "v")}
        matched = np.flatnonzero(np.any(head.query != 0, axis=0) & np.any(head.key != 0, axis=0))
        moved = np.flatnonzero(np.any(head.value != 0, axis=0) & np.any(head.output != 0, axis=1))
        support = self._supports[self._source_row("a", number, index)]
        return _Head(
            index,
            self._reader(port["q"], head.query[:, matched]),
            self._reader(port["k"], head.key[:, matched]),
            self._reader(port["v"], head.value[:, moved]),
            torch.from_numpy(head.output[moved])[:, support],
        )

    def _reader(self, destination: int, weight: np.ndarray) -> Read:
        """The slots that `weight` (`[d_model, out]`) reaches, over structural edges alone."""
        reached = torch.from_numpy(np.any(weight != 0, axis=1))[self._slots.column]
        slots = torch.nonzero(reached & self.structural_mask[self._slots.source, destination])[:, 0]
        columns = self._slots.column[slots]
        return Read(destination, slots, self._slots.source[slots], torch.from_numpy(weight)[columns].contiguous())


def _written_matrices(weights: Weights, token_ids: list[int]) -> list[np.ndarray]:
    """For every source the rows that span what it writes: embeddings of ids that occur, else output weights."""
    written = [weights.token[token_ids], weights.position]
    for layer in weights.layers:
        written += [head.output[np.any(head.value != 0, axis=0)] for head in layer.heads]
        written += [layer.output[np.any(layer.hidden != 0, axis=0)]]
    return written


def _read_matrices(weights: Weights) -> list[np.ndarray]:
    """For every destination the weights that it reads with, those that have an effect further on."""
    read: list[np.ndarray] = []
    for layer in weights.layers:
        matched = [np.any(h.query != 0, axis=0) & np.any(h.key != 0, axis=0) for h in layer.heads]
        read += [head.query[:, m] for head, m in zip(layer.heads, matched, strict=True)]
        read += [head.key[:, m] for head, m in zip(layer.heads, matched, strict=True)]
        read += [head.value[:, np.any(head.output != 0, axis=1)] for head in layer.heads]
        read += [layer.hidden[:, np.any(layer.output != 0, axis=1)]]
    return [*read, weights.unembed]


def _structural(graph: Graph, written: list[np.ndarray], read: list[np.ndarray]) -> Bool[Tensor, "source destination"]:
    """True where an edge's `W_out @ W_in` is not zero."""
    structural = torch.zeros(len(graph.sources), len(graph.destinations), dtype=torch.bool)
    for edge in graph.edges:
        row, column = graph.position(edge)
        structural[row, column] = bool(np.any(written[row] @ read[column] != 0))
    return structural
