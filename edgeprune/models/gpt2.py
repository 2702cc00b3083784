"""GPT-2 as a `MaskedModel`: our own forward over the weights of Hugging Face's `GPT2LMHeadModel`.

Every destination has a LayerNorm of its own, over what it alone reads. Token and position embeddings are one source,
`embed`. The output bias of a layer's attention belongs to no head: it is added once and never ablated. That of an MLP
is its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GPT2LMHeadModel
from transformers.activations import ACT2FN
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from edgeprune.errors import ModelError
from edgeprune.graph import Graph
from edgeprune.model import Mask, Outputs, Positions, Sources, Tokens
from edgeprune.wide_stream import PlainStream, WideStream, Written

_ROOM = 2**28
"""Numbers in the stack of a forward without gradients; more masks than fit are run one after the other."""

_FUSED = {name: partial(F.gelu, approximate="tanh") for name in ("gelu_new", "gelu_pytorch_tanh")}
"""The same functions as Hugging Face's, in one operation."""


@dataclass(frozen=True)
class _Norm:
    """A LayerNorm."""

    weight: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    epsilon: float

    def __call__(self, read: Float[Tensor, "*shape d_model"]) -> Float[Tensor, "*shape d_model"]:
        return F.layer_norm(read, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True)
class _Attention:
    """The heads of one layer: the queries of all, then keys, then values."""

    norm: _Norm
    inputs: Float[Tensor, "port d_model d_head"]
    input_bias: Float[Tensor, "port 1 d_head"]
    outputs: Float[Tensor, "head d_head d_model"]
    output_bias: Float[Tensor, " d_model"]
    scale: float
    """What scores are multiplied by."""

    def __call__(self, stream: WideStream | PlainStream, length: int) -> Written:
        """What heads write; rows are inputs of `length` positions, one after the other."""
        taken = stream.read(self.norm, self.inputs)
        ports = taken.flatten(1, 2) + self.input_bias
        query, key, value = ports.unflatten(1, (-1, length)).chunk(3)
        # Heads take the place of a batch, and inputs that of heads: no dimension has to be moved.
        moved = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scale)
        return (moved.flatten(1, 2) @ self.outputs).unflatten(1, taken.shape[1:3]).transpose(0, 1)


@dataclass(frozen=True)
class _Mlp:
    norm: _Norm
    inputs: Float[Tensor, "d_model d_mlp"]
    input_bias: Float[Tensor, " d_mlp"]
    outputs: Float[Tensor, "d_mlp d_model"]
    output_bias: Float[Tensor, " d_model"]
    activation: Callable[[Tensor], Tensor]

    def __call__(self, stream: WideStream | PlainStream) -> Written:
        taken = stream.read(self.norm)
        hidden = torch.addmm(self.input_bias, taken.flatten(0, 2), self.inputs)
        return torch.addmm(self.output_bias, self.activation(hidden), self.outputs).view(taken.shape).transpose(0, 1)


class Gpt2Model:
    """A GPT-2 as a masked transformer.

    Tokens are `[*lead, batch, pos]` ids, inputs that are shorter than others padded on the right with any id: no
    position sees a later one. Outputs are logits `[..., batch, pos, vocab]`, on the device of the tokens, and of single
    precision at the least. Weights stay on their device and of their type, and so do sources; they are shared with
    `model` where they can be.

    Args:
        model: the weights.

    Raises:
        ModelError: it is more than a GPT-2, having cross attention.
    """

    def __init__(self, model: GPT2LMHeadModel) -> None:
        config = model.config
        if config.add_cross_attention:
            raise ModelError("Expected a GPT-2 that reads one text; got one with cross attention to another")
        self.graph = Graph.transformer(embeddings=("embed",), layers=config.n_layer, heads=config.n_head)
        self.context_length: int = config.n_positions
        self.vocabulary_size: int = config.vocab_size
        self.weights = model
        body = model.transformer
        self._token, self._position = body.wte.weight.detach(), body.wpe.weight.detach()
        blocks = cast("list[GPT2Block]", list(body.h))
        self._layers = [(_attention(block, config.n_head), _mlp(block, config.activation_function)) for block in blocks]
        self._norm, self._unembed = _norm(body.ln_f), model.lm_head.weight.detach()

    @torch.no_grad()
    def sources(self, tokens: Tokens) -> Sources:
        """What every source writes in a plain run, `[source, *lead, batch, pos, d_model]`."""
        runs = (tokens.flatten(0, -3) if tokens.ndim > 2 else tokens[None]).to(self._token.device)
        count, rows, width = len(self.graph.sources), math.prod(runs.shape[1:]), self._token.shape[1]
        written = self._token.new_empty(count, len(runs), rows, width)
        self._write_all(PlainStream(written.transpose(0, 1)), runs)
        return written.view(count, *tokens.shape, width)

    def __call__(
        self,
        tokens: Tokens,
        mask: Mask | None = None,
        ablated: Sources | None = None,
        positions: Positions | None = None,
    ) -> Outputs:
        """Logits, every edge mixed as `z * clean + (1 - z) * ablated`; see `MaskedModel`.

        Gradients reach the mask and no ablated value.
        """
        ablated = None if ablated is None else ablated.detach().to(self._token)
        asked, device = tokens.device, self._token.device
        tokens, mask = tokens.to(device), None if mask is None else mask.to(self._token)
        positions = None if positions is None else positions.to(device)
        lead = torch.broadcast_shapes(
            tokens.shape[:-2],
            () if mask is None else mask.shape[:-2],
            () if mask is None or ablated is None else ablated.shape[1:-3],
            () if positions is None else positions.shape[:-2],
        )
        runs, ids = math.prod(lead), _by_run(tokens, 2, lead)
        parts = (
            None if positions is None else _by_run(positions, 2, lead),
            None if mask is None else _by_run(mask, 2, lead),
            None if mask is None or ablated is None else _by_run(ablated.movedim(0, -4), 4, lead),
        )
        size = len(self.graph.sources) * math.prod(tokens.shape[-2:]) * self._token.shape[1]
        at_once = runs if torch.is_grad_enabled() else max(1, _ROOM // size)
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
            size = (runs, math.prod(tokens.shape[1:]), self._token.shape[1])
            stream = WideStream(size, mask, None if ablated is None else ablated.flatten(2, 3))
        self._write_all(stream, tokens)
        read = stream.read(self._norm)[0].unflatten(1, tokens.shape[1:])
        if positions is not None:
            runs = max(len(read), len(positions))
            chosen = positions[..., None].expand(runs, -1, -1, read.shape[-1])
            read = read.expand(runs, -1, -1, -1).gather(2, chosen)
        return F.linear(read, self._unembed)

    def _write_all(self, stream: WideStream | PlainStream, tokens: Int[Tensor, "run batch pos"]) -> None:
        """Everything but the logits."""
        length = tokens.shape[-1]
        embedded = F.embedding(tokens, self._token) + self._position[:length]
        stream.write(embedded.flatten(1, 2)[:, None])
        for attention, mlp in self._layers:
            stream.write(attention(stream, length))
            stream.add(attention.output_bias)
            stream.write(mlp(stream))


def _by_run(value: Tensor, dimensions: int, lead: tuple[int, ...]) -> Tensor:
    """The last `dimensions` of a tensor below one dimension of runs, of size 1 where all runs share it."""
    own, kept = value.shape[:-dimensions], value.shape[-dimensions:]
    if math.prod(own) == 1:
        return value.reshape(1, *kept)
    return value.expand(*lead, *kept).reshape(-1, *kept)


def _norm(norm: torch.nn.LayerNorm) -> _Norm:
    return _Norm(norm.weight.detach(), norm.bias.detach(), norm.eps)


def _attention(block: GPT2Block, heads: int) -> _Attention:
    inputs, outputs = block.attn.c_attn, block.attn.c_proj
    d_model = len(outputs.bias)
    return _Attention(
        norm=_norm(block.ln_1),
        inputs=inputs.weight.detach().view(d_model, 3 * heads, -1).transpose(0, 1).contiguous(),
        input_bias=inputs.bias.detach().view(3 * heads, 1, -1),
        outputs=outputs.weight.detach().view(heads, -1, d_model),
        output_bias=outputs.bias.detach(),
        scale=block.attn.scaling,
    )


def _mlp(block: GPT2Block, activation: str) -> _Mlp:
    inputs, outputs = block.mlp.c_fc, block.mlp.c_proj
    return _Mlp(
        norm=_norm(block.ln_2),
        inputs=inputs.weight.detach(),
        input_bias=inputs.bias.detach(),
        outputs=outputs.weight.detach(),
        output_bias=outputs.bias.detach(),
        activation=_FUSED.get(activation) or ACT2FN[activation],
    )
