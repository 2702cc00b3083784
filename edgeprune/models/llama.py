"""Llama as a `MaskedModel`: our own forward pass over the weights of Hugging Face's `LlamaForCausalLM`.

CodeLlama, Llama 2 and Llama 3 are of this kind. Each destination applies RMSNorm to its own input. Heads that share a
key and a value share one k and one v destination (grouped-query attention). Positions enter as rotations of queries and
keys, with any scaling that the configuration asks for. Biases are optional: the output bias of a layer's attention
belongs to no head, is added once and never ablated; the output bias of an MLP is part of what the MLP writes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from edgeprune.graph import Graph
from edgeprune.models.transformer import Block, Stream, Transformer, frozen
from edgeprune.parallel import ALONE, Ranks
from edgeprune.streams.by_source import ReadWeights, Written

Rotation = tuple[Float[Tensor, "pos d_head"], Float[Tensor, "pos d_head"]]
"""Cosines and sines of the rotation at each position."""


@dataclass(frozen=True)
class _Norm:
    """An RMSNorm."""

    weight: Float[Tensor, " d_model"]
    epsilon: float

    def __call__(self, read: Float[Tensor, "*shape d_model"]) -> Float[Tensor, "*shape d_model"]:
        return F.rms_norm(read, self.weight.shape, self.weight, self.epsilon)


@dataclass(frozen=True)
class _Attention:
    """The attention heads of one layer."""

    norm: _Norm
    inputs: ReadWeights
    """Weights of queries, keys and values; keys and values have one for each group of heads that shares them."""

    input_bias: Float[Tensor, "port 1 d_head"] | None
    outputs: Float[Tensor, "head d_head d_model"]
    output_bias: Float[Tensor, " d_model"] | None
    scale: float
    """Factor that attention scores are multiplied by."""

    def __call__(self, stream: Stream, length: int, rotation: Rotation) -> Written:
        """Return what each head writes. Rows are positions: `length` for each input, one input after the other."""
        taken = stream.read(self.norm, self.inputs)
        ports = taken.flatten(1, 2)
        if self.input_bias is not None:
            ports = ports + self.input_bias
        query, key, value = ports.unflatten(1, (-1, length)).split([len(part) for part in self.inputs])
        query, key = _rotated(query, rotation), _rotated(key, rotation)
        shared = len(query) // len(key)
        key, value = (each.repeat_interleave(shared, 0) if shared > 1 else each for each in (key, value))
        # Heads are in the batch dimension and inputs in the head dimension, so no dimension has to be moved.
        moved = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scale)
        return (moved.flatten(1, 2) @ self.outputs).unflatten(1, taken.shape[1:3]).transpose(0, 1)


@dataclass(frozen=True)
class _Mlp:
    """A gated MLP. Weights are `[out, in]`, as in `torch.nn.Linear`."""

    norm: _Norm
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear
    activation: Callable[[Tensor], Tensor]

    def __call__(self, stream: Stream) -> Written:
        taken = stream.read(self.norm)
        hidden = self.activation(_linear(self.gate, taken)) * _linear(self.up, taken)
        return _linear(self.down, hidden).transpose(0, 1)


class LlamaModel(Transformer):
    """Llama as a masked transformer.

    Args:
        model: Hugging Face's model. Its weights are shared; only biases are copied.
        ranks: the processes that run the model.
    """

    def __init__(self, model: LlamaForCausalLM, ranks: Ranks = ALONE) -> None:
        config, body = model.config, model.model
        token = body.embed_tokens.weight.detach()

        @cache
        def rotation(length: int) -> Rotation:
            # A new module for each length: Hugging Face's keeps its last frequencies, which may depend on the length.
            places = torch.arange(length, device=token.device)[None]
            with torch.inference_mode(mode=False):  # cached for later runs, which may need gradients
                cosines, sines = LlamaRotaryEmbedding(config).to(token.device)(token, places)
            return cosines[0], sines[0]

        self._rotation = rotation
        super().__init__(
            model,
            Graph.transformer(
                embeddings=("embed",),
                layers=config.num_hidden_layers,
                heads=config.num_attention_heads,
                kv_heads=config.num_key_value_heads,
            ),
            context_length=config.max_position_embeddings,
            embed=lambda tokens: F.embedding(tokens, token),
            layers=list(body.layers),
            block=lambda layer: _block(layer, rotation),
            written=lambda layer: layer.mlp.down_proj,
            norm=_norm(body.norm),
            unembed=model.lm_head.weight.detach(),
            ranks=ranks,
        )

    def pads(self, length: int, width: int) -> bool:
        """See `Transformer.pads`. Return False if the two lengths have other rotations (LongRoPE, dynamic NTK)."""
        both = zip(self._rotation(length), self._rotation(width), strict=True)
        return all(torch.equal(alone, padded[:length]) for alone, padded in both)


def _block(layer: LlamaDecoderLayer, rotation: Callable[[int], Rotation]) -> Block:
    attention = _attention(layer)
    own = layer.mlp
    mlp = _Mlp(_norm(layer.post_attention_layernorm), own.gate_proj, own.up_proj, own.down_proj, frozen(own.act_fn))

    def run(stream: Stream, length: int) -> None:
        stream.write(attention(stream, length, rotation(length)))
        if attention.output_bias is not None:
            stream.add(attention.output_bias)
        stream.write(mlp(stream))

    return run


def _attention(layer: LlamaDecoderLayer) -> _Attention:
    own, d_head = layer.self_attn, layer.self_attn.head_dim
    ports = (own.q_proj, own.k_proj, own.v_proj)
    biases = [bias.view(-1, 1, d_head) for bias in map(_bias, ports) if bias is not None]
    return _Attention(
        norm=_norm(layer.input_layernorm),
        inputs=tuple(port.weight.detach().view(-1, d_head, port.in_features).mT for port in ports),
        input_bias=torch.cat(biases) if biases else None,
        outputs=own.o_proj.weight.detach().mT.view(-1, d_head, own.o_proj.out_features),
        output_bias=_bias(own.o_proj),
        scale=own.scaling,
    )


def _norm(norm: LlamaRMSNorm) -> _Norm:
    return _Norm(norm.weight.detach(), norm.variance_epsilon)


def _linear(layer: nn.Linear, read: Tensor) -> Tensor:
    return F.linear(read, layer.weight.detach(), _bias(layer))


def _bias(layer: nn.Linear) -> Tensor | None:
    bias = cast("Tensor | None", layer.bias)
    return None if bias is None else bias.detach()


def _rotated(
    ports: Float[Tensor, "head input pos d_head"], rotation: Rotation
) -> Float[Tensor, "head input pos d_head"]:
    """Rotate each pair of coordinates: one from the first half of a head's numbers, one from the second half."""
    cosines, sines = rotation
    first, second = ports.chunk(2, -1)
    return ports * cosines + torch.cat((-second, first), -1) * sines
