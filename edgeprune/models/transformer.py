"""What all language models have in common: blocks of attention and MLP that read and write a masked stream.

Every destination has a norm of its own, over what it alone reads. A model says what its blocks do; how runs under many
masks share one forward, and where they are split, is said here.
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
"""Numbers in the stack of a forward without gradients; more masks than fit are run one after the other."""

Stream = SourceStream | PlainStream

Block = Callable[[Stream, int], None]
"""Reads what the heads of a layer read, writes what they write, then does the same for its MLP.

Rows are inputs of so many positions each, one after the other.
"""


class Transformer:
    """A language model as a masked transformer.

    Tokens are `[*lead, batch, pos]` ids, inputs that are shorter than others padded on the right with any id: no
    position sees a later one, and where the whole length matters all the same, `pads` says so. Outputs are logits
    `[..., batch, pos, vocab]`, on the device of the tokens, and of single precision at the least. Weights stay on their
    device and of their type, and so do sources.

    Args:
        weights: Hugging Face's model.
        graph: its edges.
        context_length: the most tokens that it takes.
        embed: what the embedding writes, `[run, batch, pos, d_model]`, from ids.
        layers: Hugging Face's, which may be sharded.
        block: what a layer does; is made anew whenever the layer is put together.
        written: what the MLP of a layer writes with.
        norm: that of the logits.
        unembed: the weights of the logits.
        ranks: the processes among which inputs are split.
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
        """Where weights are."""
        return self._unembed.device

    @property
    def family(self) -> str:
        """The kind of model, as `config.json` names it."""
        return self.weights.config.model_type

    @property
    def silent(self) -> frozenset[Node]:
        """MLPs that write nothing, whatever they read: all that they write with is 0."""
        weights = [[bool(whole(each).any()) for each in written.parameters()] for written in self._written]
        return frozenset(Node("m", layer) for layer, each in enumerate(weights) if not any(each))

    @property
    def in_double(self) -> "Transformer":
        """The same model in double precision."""
        return type(self)(copy.deepcopy(self.weights).double())  # pyright: ignore[reportCallIssue]  # as adapters take it

    @torch.no_grad()
    def sources(self, tokens: Tokens) -> Sources:
        """What every source writes in a plain run, `[source, *lead, batch, pos, d_model]`."""
        runs = (tokens.flatten(0, -3) if tokens.ndim > 2 else tokens[None]).to(self._unembed.device)
        count, rows, width = len(self.graph.sources), math.prod(runs.shape[1:]), self._unembed.shape[1]
        written = self._unembed.new_empty(count, len(runs), rows, width)
        self._write_all(PlainStream(written.transpose(0, 1)), runs)
        return written.view(count, *tokens.shape, width)

    @torch.no_grad()
    def shallow(self, tokens: Int[Tensor, "batch pos"], layers: int) -> Float[Tensor, "batch pos d_model"]:
        """What the weights of the logits would read if there were only the first layers."""
        stream = PlainStream()
        self._write_all(stream, tokens[None].to(self._unembed.device), layers)
        return stream.read(self._norm)[0, 0].view(*tokens.shape, -1)

    def pads(self, length: int, width: int) -> bool:
        """Whether an input of that length gives the same when it is padded to `width` as alone."""
        return True

    def __call__(
        self,
        tokens: Tokens,
        mask: Mask | None = None,
        ablated: Sources | None = None,
        positions: Positions | None = None,
    ) -> Outputs:
        """Logits, every edge mixed as `z * clean + (1 - z) * ablated`; see `MaskedModel`.

        Gradients reach the mask and no ablated value. Of several processes each runs the inputs that are its own; what
        is ablated may be of those alone.
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
        """A number for what every source of the first `layers` writes to each input in a masked run; the others have 0.

        It is the same for runs in which a source writes the same, bit by bit, at the positions that are relevant.
        """
        rows, width = tokens.numel(), self._unembed.shape[1]
        at_once = max(1, _ROOM // (len(self.graph.sources) * rows * width))
        columns, places = salt(width, Level.COLUMN), salt(tokens.shape[-1], Level.POSITION)
        written = torch.tensor([node.layer < layers for node in self.graph.sources])  # the rest is not run
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
        """The same in this process."""
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
        if not runs:  # no masks, no outputs
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
        """Logits `[run, batch, position, vocab]`."""
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
        """Everything but the logits, of the first layers or of all."""
        stream.write(self._embed(tokens).flatten(1, 2)[:, None])
        for block in self._blocks[:layers]:
            block(stream, tokens.shape[-1])


def frozen(activation: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    """An activation with the parameters that it has, if any, which get no gradient."""
    own = {name: parameter.detach() for name, parameter in activation.named_parameters()}
    return partial(functional_call, activation, own) if own else activation


def _by_run(value: Tensor, dimensions: int, lead: tuple[int, ...]) -> Tensor:
    """The last `dimensions` of a tensor below one dimension of runs, of size 1 where all runs share it."""
    own, kept = value.shape[:-dimensions], value.shape[-dimensions:]
    if math.prod(own) == 1:
        return value.reshape(1, *kept)
    return value.expand(*lead, *kept).reshape(-1, *kept)
