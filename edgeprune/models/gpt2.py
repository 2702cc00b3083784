"""GPT-2 as a `MaskedModel`: our own forward pass over the weights of Hugging Face's `GPT2LMHeadModel`.

Each destination applies LayerNorm to its own input. Token and position embeddings are one source, `embed`. The output
bias of a layer's attention belongs to no head: it is added once and never ablated. The output bias of an MLP is part of
what the MLP writes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from edgeprune.errors import ModelError
from edgeprune.graph import Graph
from edgeprune.models.transformer import Block, Stream, Transformer, frozen
from edgeprune.parallel import ALONE, Ranks
from edgeprune.streams.by_source import Written

_FUSED = {name: partial(F.gelu, approximate="tanh") for name in ("gelu_new", "gelu_pytorch_tanh")}
"""GELU approximated by a tanh: the same functions as Hugging Face's, each as one PyTorch operation."""


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
    """The attention heads of one layer. Ports are the queries of all heads, then the keys, then the values."""

    norm: _Norm
    inputs: Float[Tensor, "port d_model d_head"]
    input_bias: Float[Tensor, "port 1 d_head"]
    outputs: Float[Tensor, "head d_head d_model"]
    output_bias: Float[Tensor, " d_model"]
    scale: float
    """Factor that attention scores are multiplied by."""

    def __call__(self, stream: Stream, length: int) -> Written:
        """Return what each head writes. Rows are positions: `length` for each input, one input after the other."""
        taken = stream.read(self.norm, (self.inputs,))
        ports = taken.flatten(1, 2) + self.input_bias
        query, key, value = ports.unflatten(1, (-1, length)).chunk(3)
        # Heads are in the batch dimension and inputs in the head dimension, so no dimension has to be moved.
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

    def __call__(self, stream: Stream) -> Written:
        taken = stream.read(self.norm)
        hidden = torch.addmm(self.input_bias, taken.flatten(0, 2), self.inputs)
        return torch.addmm(self.output_bias, self.activation(hidden), self.outputs).view(taken.shape).transpose(0, 1)


class Gpt2Model(Transformer):
    """GPT-2 as a masked transformer.

    Args:
        model: Hugging Face's model. Its weights are shared where possible, and copied otherwise.
        ranks: the processes that run the model.

    Raises:
        ModelError: the model has cross attention.
    """

    def __init__(self, model: GPT2LMHeadModel, ranks: Ranks = ALONE) -> None:
        config = model.config
        if config.add_cross_attention:
            raise ModelError("Expected a GPT-2 that reads one text; got one with cross attention to another")
        body = model.transformer
        token, position = body.wte.weight.detach(), body.wpe.weight.detach()
        super().__init__(
            model,
            Graph.transformer(embeddings=("embed",), layers=config.n_layer, heads=config.n_head),
            context_length=config.n_positions,
            embed=lambda tokens: F.embedding(tokens, token) + position[: tokens.shape[-1]],
            layers=list(body.h),
            block=lambda layer: _block(layer, config.n_head, config.activation_function),
            written=lambda layer: layer.mlp.c_proj,
            norm=_norm(body.ln_f),
            unembed=model.lm_head.weight.detach(),
            ranks=ranks,
        )


def _block(block: GPT2Block, heads: int, activation: str) -> Block:
    attention, mlp = _attention(block, heads), _mlp(block, activation)

    def run(stream: Stream, length: int) -> None:
        stream.write(attention(stream, length))
        stream.add(attention.output_bias)
        stream.write(mlp(stream))

    return run


def _norm(norm: torch.nn.LayerNorm) -> _Norm:
    return _Norm(norm.weight.detach(), norm.bias.detach(), norm.eps)


def _attention(block: GPT2Block, heads: int) -> _Attention:
    inputs, outputs = block.attn.c_attn, block.attn.c_proj
    d_model = len(outputs.bias)
    # A contiguous copy is faster to read. A copy of a sharded layer would stay in memory after resharding.
    ports = inputs.weight.detach().view(d_model, 3 * heads, -1).transpose(0, 1)
    return _Attention(
        norm=_norm(block.ln_1),
        inputs=ports if isinstance(block, FSDPModule) else ports.contiguous(),
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
        activation=_FUSED.get(activation) or frozen(block.mlp.act),
    )
