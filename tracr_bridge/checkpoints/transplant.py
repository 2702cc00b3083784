"""Puts compiled weights into a genuine Hugging Face GPT-2 or Llama that computes what the program does.

Both families have norms; a compiled program has none. The embedding therefore writes a large constant, which pins the
norms: a program's values x are so small beside it that dividing by the norm of the residual stream means dividing by
the constant, up to a relative error of `|x|^2 / LARGE^2`. The norm's weights multiply by the constant again.

GPT-2's LayerNorm also subtracts the mean. The residual stream holds every number twice, with opposite signs, and the
constant too, so that its mean is 0. The MLP uses ReLU, like the program's.

Llama's MLP is gated: at a large scale the gate's SiLU acts as a ReLU, and the up projection reads the constant. RoPE
rotates a head's pairs by angles from 1 down to `1 / rope_theta` per position: fast pairs are left empty, and slow ones
hardly rotate. Two heads share a key and a value (grouped-query attention); each uses its own columns of them. Llama has
no position embedding: if a program reads positions, a layer is inserted before its own. In it, one head averages an
indicator of BOS, which gives 1 / (n + 1) at position n, and an MLP turns that into the program's positions by steps.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from edgeprune.errors import promise
from tracr_bridge.compile.weights import HeadWeights, LayerWeights, Weights

Family = Literal["gpt2", "llama"]

LARGE: Final[Mapping[Family, float]] = {"gpt2": 2048.0, "llama": 16384.0}
"""The constant that pins norms. With a smaller one, other values change the norms more; with a larger one, LayerNorm's
subtraction of the mean rounds more."""

_SMALLER: Final = 10_000
"""A norm's epsilon is the constant's square divided by this; the norm's weights compensate for it. If ablation removes
the constant and the values cancel, only rounding errors are left: epsilon keeps the norm from amplifying them."""

_STEEP: Final = 2.0**16
"""Scale of the gate: SiLU(scale * x) / scale equals ReLU(x) to within 0.28 / scale."""

_SHIFT: Final = 1.0
"""Bias of the norms before GPT-2's attention and MLPs. The biases of what reads them cancel it, so that a tool that
loses either bias changes the outputs."""

_THETA: Final = 1e36
"""Llama's rope_theta; a quarter of a head's pairs rotate by more than 1e-9 per position, and are left empty."""

_EMPTY: Final = 1 / 4

_SHARED: Final = 2
"""Number of Llama's heads that share a key and a value."""


@dataclass(frozen=True)
class Transplant:
    """A model, and the spaces that its sources write and its destinations read."""

    model: Any
    """Hugging Face's model."""

    written: list[Float[np.ndarray, "_ d_model"]]
    """Rows that span what each source writes."""

    read: list[Float[np.ndarray, "d_model _"]]
    """Columns that each destination reads; the constant is among them unless it reads nothing, as its norm reads it."""


def transplant(weights: Weights, family: Family, token_ids: Sequence[int], *, bos_id: int) -> Transplant:
    """Return a model of that family that computes with `weights`.

    Args:
        weights: the weights of a causal program.
        family: the kind of model.
        token_ids: token ids that can occur in an input, including BOS.
        bos_id: the token id of BOS.
    """
    promise(weights.causal, "both families see no later token")
    return (_gpt2 if family == "gpt2" else _llama)(weights, list(token_ids), bos_id)


# GPT-2


def _gpt2(weights: Weights, token_ids: list[int], bos_id: int) -> Transplant:
    heads, key_size, width = _shape(weights)
    size, epsilon = _constant("gpt2")
    d_head = max(key_size, math.ceil((2 * width + 2) / heads))
    d_model, constant = heads * d_head, slice(2 * width, 2 * width + 2)
    config = GPT2Config(
        vocab_size=max(len(weights.token), weights.unembed.shape[1]),
        n_positions=len(weights.position),
        n_embd=d_model,
        n_layer=len(weights.layers),
        n_head=heads,
        n_inner=weights.layers[0].hidden.shape[1],
        activation_function="relu",
        layer_norm_epsilon=epsilon,
        tie_word_embeddings=False,
        bos_token_id=bos_id,
        eos_token_id=None,
        pad_token_id=weights.pad_id,
    )
    model = _blank(GPT2LMHeadModel(config))
    body = model.transformer

    def mirrored(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([rows, -rows, np.zeros((len(rows), d_model - 2 * width), np.float32)], axis=1)

    def reading(columns: np.ndarray) -> np.ndarray:
        return np.concatenate([columns, np.zeros((d_model - width, columns.shape[1]), np.float32)])

    token, position = mirrored(weights.token), mirrored(weights.position)
    token[:, constant] = size, -size
    _fill(body.wte.weight, token)
    _fill(body.wpe.weight, position)
    _fill(model.lm_head.weight, reading(weights.unembed).T)
    written, read = [np.concatenate([token[token_ids], position])], list[np.ndarray]()
    scale = math.sqrt(d_head / key_size)
    for block, layer in zip(body.h, weights.layers, strict=True):
        ports = [scale * _together([head.query for head in layer.heads], d_head)]
        ports += [_together([getattr(head, port) for head in layer.heads], d_head) for port in ("key", "value")]
        _fill(block.attn.c_attn.weight, reading(np.concatenate(ports, axis=1)))
        outputs = _together([head.output.T for head in layer.heads], d_head).T
        _fill(block.attn.c_proj.weight, mirrored(outputs))
        _fill(block.mlp.c_fc.weight, reading(layer.hidden))
        _fill(block.mlp.c_proj.weight, mirrored(layer.output))
        for norm, reader in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
            norm.bias.data.fill_(_SHIFT)
            reader.bias.data = -_SHIFT * reader.weight.data.sum(0)
        written += map(mirrored, layer.written)
        read += map(reading, layer.read)
    for norm in (each for each in model.modules() if isinstance(each, nn.LayerNorm)):
        norm.weight.data.fill_(math.sqrt(2 * size**2 / d_model + epsilon))
    return Transplant(model, written, _pinned([*read, reading(weights.unembed)], constant.start))


# Llama


def _llama(weights: Weights, token_ids: list[int], bos_id: int) -> Transplant:
    compiled_heads, key_size, width = _shape(weights)
    size, epsilon = _constant("llama")
    idle_before, heads = _places(compiled_heads)
    pairs = math.ceil(_SHARED * key_size / 2 / (1 - _EMPTY)) + 1
    slow = [i + half for half in (0, pairs) for i in range(math.ceil(_EMPTY * pairs), pairs)]
    constant, is_bos, share = width, width + 1, width + 2
    d_model = heads * math.ceil((width + 3) / heads)
    placed = _reads_positions(weights)
    layers = ([_position_layer(weights, key_size, d_model, constant, is_bos, share)] if placed else []) + [
        _widened(layer, d_model) for layer in weights.layers
    ]
    layers = [_with_idle_heads(layer, idle_before, heads) for layer in layers]
    config = LlamaConfig(
        vocab_size=max(len(weights.token), weights.unembed.shape[1]),
        max_position_embeddings=len(weights.position),
        hidden_size=d_model,
        intermediate_size=max(layer.hidden.shape[1] for layer in layers),
        num_hidden_layers=len(layers),
        num_attention_heads=heads,
        num_key_value_heads=heads // _SHARED,
        head_dim=2 * pairs,
        hidden_act="silu",
        rms_norm_eps=epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": _THETA},
        tie_word_embeddings=False,
        bos_token_id=bos_id,
        eos_token_id=None,
        pad_token_id=weights.pad_id,
    )
    model = _blank(LlamaForCausalLM(config))
    body = model.model
    token = _wide(weights.token, d_model)
    token[:, constant], token[bos_id, is_bos] = size, 1
    unembed = _wide(weights.unembed.T, d_model).T
    _fill(body.embed_tokens.weight, token)
    _fill(model.lm_head.weight, unembed.T)
    written, read = [token[token_ids]], list[np.ndarray]()
    scale = math.sqrt(2 * pairs / key_size)
    for block, layer in zip(body.layers, layers, strict=True):
        own, mlp = block.self_attn, block.mlp
        queries, outputs = _apart([head.query for head in layer.heads]), _apart([head.output.T for head in layer.heads])
        keys, values = _joined([head.key for head in layer.heads]), _joined([head.value for head in layer.heads])
        _fill(own.q_proj.weight, scale * _together(queries, 2 * pairs, slow).T)
        _fill(own.k_proj.weight, _together(keys, 2 * pairs, slow).T)
        _fill(own.v_proj.weight, _together(values, 2 * pairs).T)
        _fill(own.o_proj.weight, _together(outputs, 2 * pairs))
        units = layer.hidden.shape[1]
        _fill(mlp.gate_proj.weight[:units], _STEEP * layer.hidden.T)
        mlp.up_proj.weight.data[:units, constant] = 1 / (size * _STEEP)
        _fill(mlp.down_proj.weight[:, :units], layer.output.T)
        written += layer.written
        queries, keys, values = (layer.read[port * heads : (port + 1) * heads] for port in range(3))
        read += [*queries, *_joined(keys), *_joined(values), layer.read[-1]]
    for norm in (
        body.norm,
        *(each for block in body.layers for each in (block.input_layernorm, block.post_attention_layernorm)),
    ):
        norm.weight.data.fill_(math.sqrt(size**2 / d_model + epsilon))
    return Transplant(model, written, _pinned([*read, unembed], constant))


def _places(heads: int) -> tuple[int, int]:
    """Return the number of idle heads before a layer's own heads, and the number of all its heads.

    There are at least two groups. If the number of heads is odd, an idle head comes first: head 0 would get the right
    key and value even from code that assigns heads to groups wrongly, such as by `head % groups`.
    """
    before = heads % _SHARED
    return before, _SHARED * max(2, (before + heads) // _SHARED)


def _with_idle_heads(layer: LayerWeights, before: int, heads: int) -> LayerWeights:
    nothing = np.zeros_like(layer.heads[0].query)
    idle = HeadWeights(nothing, nothing, nothing, nothing.T)
    after = heads - before - len(layer.heads)
    return replace(layer, heads=(*[idle] * before, *layer.heads, *[idle] * after))


def _apart(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Widen each head's matrix to the columns of its whole group, with its own columns filled and the others zero."""
    placed = [np.zeros((len(part), _SHARED, part.shape[1]), np.float32) for part in parts]
    for number, part in enumerate(parts):
        placed[number][:, number % _SHARED] = part
    return [each.reshape(len(each), -1) for each in placed]


def _joined(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Concatenate the columns of the heads of each group."""
    return [np.concatenate(parts[first : first + _SHARED], axis=1) for first in range(0, len(parts), _SHARED)]


def _reads_positions(weights: Weights) -> bool:
    """Whether any destination reads what the position embedding writes."""
    read = [weights.unembed, *(part for layer in weights.layers for part in layer.read)]
    return any(bool(np.any(weights.position @ part != 0)) for part in read)


def _position_layer(
    weights: Weights, key_size: int, d_model: int, constant: int, is_bos: int, share: int
) -> LayerWeights:
    """Return the layer that turns an indicator of BOS into the program's positions.

    Its head attends uniformly, and so writes the share 1 / (n + 1) at position n. The first unit writes position 0. The
    others come in pairs: each pair is a step from 0 to 1 between two neighbours' shares, constant around either.
    """
    size, _ = _constant("llama")
    nothing = np.zeros((d_model, key_size), np.float32)
    value, output = nothing.copy(), nothing.T.copy()
    value[is_bos, 0], output[0, share] = 1, 1
    shares = 1 / np.arange(1, len(weights.position) + 1)
    middles, widths = (shares[:-1] + shares[1:]) / 2, (shares[:-1] - shares[1:]) / 4
    hidden = np.zeros((d_model, 1 + 2 * len(middles)), np.float32)
    rows = np.zeros((hidden.shape[1], d_model), np.float32)
    hidden[constant, 0] = 1 / size
    rows[0] = _wide(weights.position[:1], d_model)
    for number, (middle, width) in enumerate(zip(middles, widths, strict=True)):
        change = _wide(weights.position[number + 1] - weights.position[number], d_model)
        for side, sign in ((1, 1), (2, -1)):
            unit = 2 * number + side
            hidden[share, unit] = -1 / (2 * width)
            hidden[constant, unit] = (middle + sign * width) / (2 * width) / size
            rows[unit] = sign * change
    return LayerWeights((HeadWeights(nothing, nothing, value, output),), hidden, rows)


def _widened(layer: LayerWeights, d_model: int) -> LayerWeights:
    """Return the layer in a residual stream of width `d_model`."""
    heads = [
        HeadWeights(
            query=_wide(head.query.T, d_model).T,
            key=_wide(head.key.T, d_model).T,
            value=_wide(head.value.T, d_model).T,
            output=_wide(head.output, d_model),
        )
        for head in layer.heads
    ]
    return LayerWeights(tuple(heads), _wide(layer.hidden.T, d_model).T, _wide(layer.output, d_model))


# Both


def _constant(family: Family) -> tuple[float, float]:
    """Return the constant that pins norms, and their epsilon."""
    return LARGE[family], LARGE[family] ** 2 / _SMALLER


def _shape(weights: Weights) -> tuple[int, int, int]:
    """Return the number of heads a layer, the key size, and the width of the residual stream."""
    first = weights.layers[0].heads
    return len(first), first[0].query.shape[1], weights.unembed.shape[0]


def _wide(rows: np.ndarray, d_model: int) -> np.ndarray:
    """Return a row or rows, padded with zeros to `d_model` columns."""
    return np.concatenate([rows, np.zeros((*rows.shape[:-1], d_model - rows.shape[-1]), np.float32)], axis=-1)


def _together(
    parts: Sequence[Float[np.ndarray, "rows key_size"]], d_head: int, columns: Sequence[int] | None = None
) -> Float[np.ndarray, "rows heads_times_d_head"]:
    """Place the heads' weights side by side, in `d_head` columns each; `columns` says which of these are filled."""
    placed = np.zeros((len(parts[0]), len(parts), d_head), np.float32)
    chosen = list(range(parts[0].shape[1]) if columns is None else columns[: parts[0].shape[1]])
    for number, part in enumerate(parts):
        placed[:, number, chosen] = part
    return placed.reshape(len(parts[0]), -1)


def _pinned(read: list[np.ndarray], constant: int) -> list[np.ndarray]:
    """Append the constant's column to every matrix in `read` that is not zero."""
    one = np.zeros((len(read[0]), 1), np.float32)
    one[constant] = 1
    return [np.concatenate([part, one], axis=1) if np.any(part) else part for part in read]


def _blank(model: Any) -> Any:
    """Set all weights of a model to zero, and return it."""
    for parameter in model.parameters():
        parameter.data.zero_()
    return model.eval()


def _fill(weight: Tensor, values: np.ndarray) -> None:
    """Copy `values` into the top left corner of `weight`; the rest stays as it is."""
    weight.data[: values.shape[0], : values.shape[1]] = torch.from_numpy(np.ascontiguousarray(values))
