"""Compiled weights inside genuine Hugging Face models: a GPT-2, or a Llama, that computes what the program does.

Both have norms, which a compiled program has not. A large constant that the embedding writes pins them: beside it what
a program writes is so small that dividing by the size of the stream is dividing by the constant, up to
`|x|^2 / LARGE^2`. The norm's weights multiply by it again.

GPT-2's LayerNorm takes the mean away too. The stream holds every number twice, with either sign, and the constant as
well, so that its mean is 0. Its MLP has ReLU, as the program's.

Llama's MLP is gated: the gate, at a large scale, makes SiLU a ReLU, and what it gates reads the constant. Rotations
turn the pairs of a head by angles from 1 down to `1 / rope_theta` a position; the fast pairs are left empty, and the
slow ones hardly turn. Two heads share a key and a value (grouped-query attention), each with a part of its own in them.
Llama has no positions: where a program reads them, a layer is put before it, in which a head averages an indicator of
BOS, which is 1 / (n + 1) at position n, and an MLP takes steps from it to the program's own positions.
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
"""The constant that pins norms. Smaller, and what numbers beside it do to norms grows; larger, and so does rounding in
LayerNorm, which takes a mean away."""

_SMALLER: Final = 10_000
"""Times that a norm's epsilon is smaller than the constant's square; the norm's weights make up for it. A stream that
cancels out, and has no constant, leaves rounding, which a norm would blow up; beside epsilon it stays small."""

_STEEP: Final = 2.0**16
"""Scale at which SiLU is a ReLU, up to 0.28 / scale."""

_SHIFT: Final = 1.0
"""Biases of GPT-2's norms, which biases of what reads them undo: a model with either lost does something else."""

_THETA: Final = 1e36
"""Llama's rope_theta; a quarter of a head's pairs turn by more than 1e-9 a position, and are left empty."""

_EMPTY: Final = 1 / 4

_SHARED: Final = 2
"""Heads of Llama to each key and value."""


@dataclass(frozen=True)
class Transplant:
    """A model, and where its edges can carry anything."""

    model: Any
    """Hugging Face's."""

    written: list[Float[np.ndarray, "_ d_model"]]
    """Rows that span what each source writes."""

    read: list[Float[np.ndarray, "d_model _"]]
    """What each destination reads, the constant among it wherever it reads anything: its norm does."""


def transplant(weights: Weights, family: Family, token_ids: Sequence[int], *, bos_id: int) -> Transplant:
    """The model of that family that computes with `weights`.

    Args:
        weights: of a causal program.
        family: of the model.
        token_ids: ids that can occur in an input, BOS among them.
        bos_id: of BOS.
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
    """How many idle heads come before a layer's own, and how many heads there are then.

    There are two groups at least, and an idle head comes first where the number is odd: a head that took the key of
    another group would be none of the first.
    """
    before = heads % _SHARED
    return before, _SHARED * max(2, (before + heads) // _SHARED)


def _with_idle_heads(layer: LayerWeights, before: int, heads: int) -> LayerWeights:
    nothing = np.zeros_like(layer.heads[0].query)
    idle = HeadWeights(nothing, nothing, nothing, nothing.T)
    after = heads - before - len(layer.heads)
    return replace(layer, heads=(*[idle] * before, *layer.heads, *[idle] * after))


def _apart(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Each head's part in the columns that are its own among those of its group."""
    placed = [np.zeros((len(part), _SHARED, part.shape[1]), np.float32) for part in parts]
    for number, part in enumerate(parts):
        placed[number][:, number % _SHARED] = part
    return [each.reshape(len(each), -1) for each in placed]


def _joined(parts: list[np.ndarray]) -> list[np.ndarray]:
    """The parts of each group's heads side by side."""
    return [np.concatenate(parts[first : first + _SHARED], axis=1) for first in range(0, len(parts), _SHARED)]


def _reads_positions(weights: Weights) -> bool:
    """Whether anything reads what positions write."""
    read = [weights.unembed, *(part for layer in weights.layers for part in layer.read)]
    return any(bool(np.any(weights.position @ part != 0)) for part in read)


def _position_layer(
    weights: Weights, key_size: int, d_model: int, constant: int, is_bos: int, share: int
) -> LayerWeights:
    """From an indicator of BOS to the program's positions.

    Its head attends to all tokens alike, and so writes 1 / (n + 1) at position n. Each unit but the first is one
    side of a step: between the shares of two neighbours it goes from 0 to 1, and stands still around either.
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
    """The same in a wider stream."""
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
    """The constant that pins norms, and their epsilon."""
    return LARGE[family], LARGE[family] ** 2 / _SMALLER


def _shape(weights: Weights) -> tuple[int, int, int]:
    """Heads a layer, key size and width."""
    first = weights.layers[0].heads
    return len(first), first[0].query.shape[1], weights.unembed.shape[0]


def _wide(rows: np.ndarray, d_model: int) -> np.ndarray:
    """Rows, or one, filled up with zeros."""
    return np.concatenate([rows, np.zeros((*rows.shape[:-1], d_model - rows.shape[-1]), np.float32)], axis=-1)


def _together(
    parts: Sequence[Float[np.ndarray, "rows key_size"]], d_head: int, columns: Sequence[int] | None = None
) -> Float[np.ndarray, "rows heads_times_d_head"]:
    """All heads' weights side by side, each in columns of its own."""
    placed = np.zeros((len(parts[0]), len(parts), d_head), np.float32)
    chosen = list(range(parts[0].shape[1]) if columns is None else columns[: parts[0].shape[1]])
    for number, part in enumerate(parts):
        placed[:, number, chosen] = part
    return placed.reshape(len(parts[0]), -1)


def _pinned(read: list[np.ndarray], constant: int) -> list[np.ndarray]:
    """The same, with the constant beside whatever is read."""
    one = np.zeros((len(read[0]), 1), np.float32)
    one[constant] = 1
    return [np.concatenate([part, one], axis=1) if np.any(part) else part for part in read]


def _blank(model: Any) -> Any:
    """A model all of whose weights are zero."""
    for parameter in model.parameters():
        parameter.data.zero_()
    return model.eval()


def _fill(weight: Tensor, values: np.ndarray) -> None:
    """Put values where there are rows and columns for them; what is left over stays zero."""
    weight.data[: values.shape[0], : values.shape[1]] = torch.from_numpy(np.ascontiguousarray(values))
