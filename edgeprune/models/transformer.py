"""What all language models share: blocks of attention and MLP that read and write a masked residual stream.

Each destination applies the norm to its own input. Each model class defines its blocks. This module defines how runs
under many masks share one forward pass, and where they are split.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.func import functional_call

from edgeprune.fingerprints import Level, bits_of, salt, scrambled
from edgeprune.graph import Graph, Node
from edgeprune.masked_model import Mask, Outputs, Positions, Sources, Tokens
from edgeprune.models.sharded import gathering, sharded, whole
from edgeprune.parallel import ALONE, Ranks
from edgeprune.streams.by_source import Norm, PlainStream, SourceStream

_ROOM: Final = 2**28
"""Most numbers in the per-source activations of a forward pass without gradients; further masks run after it."""

Stream = SourceStream | PlainStream

Block = Callable[[Stream, int], None]
"""Runs one layer: reads the inputs of its heads, writes their outputs, then does the same for its MLP.

The second argument is the number of positions of each input. Rows are positions, one input after the other.
"""


class Transformer:
    """A language model as a masked transformer.

    Tokens are ids, `[*lead, batch, pos]`. Shorter inputs are padded on the right with any id, as no position sees a
    later one; if the whole length matters all the same, `pads` returns False. Outputs are logits
    `[..., batch, pos, vocab]`, on the device of the tokens, in single precision or finer. Weights keep their device and
    type, and sources have the same.

    Args:
        weights: Hugging Face's model.
        graph: the model's edges.
        context_length: the most tokens that the model takes.
        embed: maps ids to what the embedding writes, `[run, batch, pos, d_model]`.
        layers: Hugging Face's layers, which may be sharded.
        block: makes the block of a layer; of a sharded layer, each time that it is gathered.
        written: returns the module whose weights write the output of a layer's MLP.
        norm: the norm before the unembedding.
        unembed: the unembedding weights.
        ranks: the processes that inputs are split over.
    """

    def __init__(
        self,
        weights: Any,
        graph: Graph,
        *,
        context_length: int,
        embed: Callable[[Int[Tensor, "run batch pos"]], Float[Tensor, "run batch pos d_model"]],
        layers: Sequence[Any],
        block: Callable[[Any], Block],
        written: Callable[[Any], torch.nn.Module],
        norm: Norm,
        unembed: Float[Tensor, "vocab d_model"],
        ranks: Ranks = ALONE,
    ) -> None:
        self.weights, self.graph, self.ranks = weights, graph, ranks
        self.context_length, self.vocabulary_size = context_length, len(unembed)
        self._embed, self._norm, self._unembed = embed, norm, unembed
        self._written = [written(layer) for layer in layers]
        self._blocks = gathering(layers, block) if sharded(layers) else [block(layer) for layer in layers]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self._unembed.device

    @property
    def family(self) -> str:
        """The kind of model: `model_type` in `config.json`."""
        return self.weights.config.model_type

    @property
    def silent(self) -> frozenset[Node]:
        """MLPs that write 0 for every input, because all parameters of their output are 0."""
        weights = [[bool(whole(each).any()) for each in written.parameters()] for written in self._written]
        return frozenset(Node("m", layer) for layer, each in enumerate(weights) if not any(each))

    @property
    def in_double(self) -> "Transformer":
        """A copy of the model in double precision."""
        return type(self)(copy.deepcopy(self.weights).double())  # pyright: ignore[reportCallIssue]  # as adapters take it

    @torch.no_grad()
    def sources(self, tokens: Tokens) -> Sources:
        """Return what every source writes in an unmasked run, `[source, *lead, batch, pos, d_model]`."""
        runs = (tokens.flatten(0, -3) if tokens.ndim > 2 else tokens[None]).to(self._unembed.device)
        count, rows, width = len(self.graph.sources), math.prod(runs.shape[1:]), self._unembed.shape[1]
        written = self._unembed.new_empty(count, len(runs), rows, width)
        self._write_all(PlainStream(written.transpose(0, 1)), runs)
        return written.view(count, *tokens.shape, width)

    @torch.no_grad()
    def shallow(self, tokens: Int[Tensor, "batch pos"], layers: int) -> Float[Tensor, "batch pos d_model"]:
        """Return the input of the unembedding if the model had only its first `layers` layers."""
        stream = PlainStream()
        self._write_all(stream, tokens[None].to(self._unembed.device), layers)
        return stream.read(self._norm)[0, 0].view(*tokens.shape, -1)

    def pads(self, length: int, width: int) -> bool:
        """Return whether padding an input from `length` to `width` tokens leaves its outputs unchanged."""
        return True

    def __call__(
        self,
        tokens: Tokens,
        mask: Mask | None = None,
        ablated: Sources | None = None,
        positions: Positions | None = None,
    ) -> Outputs:
        """Return logits, with every edge mixed as `z * clean + (1 - z) * ablated`; see `MaskedModel`.

        Gradients reach the mask, but not the ablated values. If there are several processes, each runs its own inputs;
        `ablated` may hold the values of those alone.
        """
        ranks, batch = self.ranks, tokens.shape[-2]
        if ablated is not None and ablated.shape[-3] == batch:
            ablated = ranks.own(ablated, -3)
        mask = None if mask is None else ranks.alike(mask)
        positions = None if positions is None else ranks.own(positions, -2)
        return ranks.gather(self._run_all(ranks.own(tokens, -2), mask, ablated, positions), batch)

    @torch.no_grad()
    def fingerprints(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Float[Tensor, "run source destination"],
        ablated: Float[Tensor, "source batch pos d_model"] | None,
        relevant: Bool[Tensor, "source batch pos"],
        layers: int,
    ) -> Int[Tensor, "source run batch"]:
        """Return a fingerprint of what each source writes on each input in each masked run.

        Runs in which a source writes the same bits at the relevant positions have the same fingerprint. Only the first
        `layers` layers run; sources of later layers have 0.
        """
        rows, width = tokens.numel(), self._unembed.shape[1]
        at_once = max(1, _ROOM // (len(self.graph.sources) * rows * width))
        columns, places = salt(width, Level.COLUMN), salt(tokens.shape[-1], Level.POSITION)
        written = torch.tensor([node.layer < layers for node in self.graph.sources])  # later layers are not run
        counted = relevant[:, None] & written[:, None, None, None]
        found = list[Tensor]()
        for some in mask.to(self._unembed).split(at_once):
            by_row = None if ablated is None else ablated.flatten(1, 2)[None]
            stream = SourceStream((len(some), rows, width), some, by_row)
            self._write_all(stream, tokens[None].to(self._unembed.device), layers)
            each = torch.stack([scrambled(bits_of(source.cpu()), columns).sum(-1) for source in stream.held.unbind(1)])
            found.append((scrambled(each.unflatten(2, tokens.shape), places) * counted).sum(-1))
        return torch.cat(found, 1)

    def _run_all(
        self, tokens: Tokens, mask: Mask | None, ablated: Sources | None, positions: Positions | None
    ) -> Outputs:
        """Return the logits of inputs that this process runs."""
        ablated = None if ablated is None else ablated.detach().to(self._unembed)
        asked, device = tokens.device, self._unembed.device
        tokens, mask = tokens.to(device), None if mask is None else mask.to(self._unembed)
        positions = None if positions is None else positions.to(device)
        lead = torch.broadcast_shapes(
            tokens.shape[:-2],
            () if mask is None else mask.shape[:-2],
            () if mask is None or ablated is None else ablated.shape[1:-3],
            () if positions is None else positions.shape[:-2],
        )
        runs, ids = math.prod(lead), _by_run(tokens, 2, lead)
        if not runs:  # no runs, so no outputs
            shape = (*lead, *(tokens if positions is None else positions).shape[-2:], self.vocabulary_size)
            return torch.zeros(shape, device=asked, dtype=torch.promote_types(self._unembed.dtype, torch.float32))
        parts = (
            None if positions is None else _by_run(positions, 2, lead),
            None if mask is None else _by_run(mask, 2, lead),
            None if mask is None or ablated is None else _by_run(ablated.movedim(0, -4), 4, lead),
        )
        size = len(self.graph.sources) * math.prod(tokens.shape[-2:]) * self._unembed.shape[1]
        at_once = runs if torch.is_grad_enabled() else max(1, _ROOM // max(1, size))
        outputs = [
            self._run(ids if len(ids) == 1 else ids[some], *(p if p is None or len(p) == 1 else p[some] for p in parts))
            for some in (slice(start, start + at_once) for start in range(0, runs, at_once))
        ]
        together = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        kind = torch.promote_types(together.dtype, torch.float32)
        return together.view(*lead, *together.shape[1:]).to(asked, kind)

    def _run(self, tokens: Tensor, positions: Tensor | None, mask: Tensor | None, ablated: Tensor | None) -> Tensor:
        """Return logits `[run, batch, position, vocab]` of one forward pass."""
        stream = PlainStream()
        if mask is not None:
            runs = max(len(part) for part in (tokens, mask, ablated) if part is not None)
            size = (runs, math.prod(tokens.shape[1:]), self._unembed.shape[1])
            stream = SourceStream(size, mask, None if ablated is None else ablated.flatten(2, 3))
        self._write_all(stream, tokens)
        read = stream.read(self._norm)[0].unflatten(1, tokens.shape[1:])
        if positions is not None:
            runs = max(len(read), len(positions))
            chosen = positions[..., None].expand(runs, -1, -1, read.shape[-1])
            read = read.expand(runs, -1, -1, -1).gather(2, chosen)
        return F.linear(read, self._unembed)

    def _write_all(self, stream: Stream, tokens: Int[Tensor, "run batch pos"], layers: int | None = None) -> None:
        """Run the embedding and the first `layers` layers, or all layers, without the logits."""
        stream.write(self._embed(tokens).flatten(1, 2)[:, None])
        for block in self._blocks[:layers]:
            block(stream, tokens.shape[-1])


def frozen(activation: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    """Return an activation whose parameters, if it has any, get no gradient."""
    own = {name: parameter.detach() for name, parameter in activation.named_parameters()}
    return partial(functional_call, activation, own) if own else activation


def _by_run(value: Tensor, dimensions: int, lead: tuple[int, ...]) -> Tensor:
    """Flatten all but the last `dimensions` into one dimension of runs, of size 1 if all runs share the value."""
    own, kept = value.shape[:-dimensions], value.shape[-dimensions:]
    if math.prod(own) == 1:
        return value.reshape(1, *kept)
    return value.expand(*lead, *kept).reshape(-1, *kept)
