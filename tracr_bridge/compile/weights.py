"""Extract the weights of Tracr's assembled model as arrays: embeddings, heads, MLPs and the unembedding."""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import haiku as hk
import numpy as np
from jaxtyping import Float
from tracr.compiler.assemble import AssembledTransformerModel
from tracr.compiler.compiling import COMPILER_PAD

from edgeprune.errors import promise


@dataclass(frozen=True)
class HeadWeights:
    """Weight matrices of one attention head."""

    query: Float[np.ndarray, "d_model key_size"]
    key: Float[np.ndarray, "d_model key_size"]
    value: Float[np.ndarray, "d_model key_size"]
    output: Float[np.ndarray, "key_size d_model"]


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one layer: its heads, then its MLP `relu(x @ hidden) @ output`."""

    heads: tuple[HeadWeights, ...]
    hidden: Float[np.ndarray, "d_model d_mlp"]
    output: Float[np.ndarray, "d_mlp d_model"]

    @property
    def written(self) -> list[Float[np.ndarray, "_ d_model"]]:
        """For each source, heads first, the rows of its output weights that span what it can write."""
        heads = [head.output[np.any(head.value != 0, axis=0)] for head in self.heads]
        return [*heads, self.output[np.any(self.hidden != 0, axis=0)]]

    @property
    def read(self) -> list[Float[np.ndarray, "d_model _"]]:
        """For each destination (all queries, all keys, all values, the MLP), its weights with an effect downstream."""
        matched = [np.any(head.query != 0, axis=0) & np.any(head.key != 0, axis=0) for head in self.heads]
        queries = [head.query[:, columns] for head, columns in zip(self.heads, matched, strict=True)]
        keys = [head.key[:, columns] for head, columns in zip(self.heads, matched, strict=True)]
        values = [head.value[:, np.any(head.output != 0, axis=1)] for head in self.heads]
        return [*queries, *keys, *values, self.hidden[:, np.any(self.output != 0, axis=1)]]


@dataclass(frozen=True)
class Weights:
    """All weights of a compiled transformer."""

    token: Float[np.ndarray, "vocab d_model"]
    position: Float[np.ndarray, "pos d_model"]
    """Positional embeddings: one row for BOS, then one for each position of the program."""

    layers: tuple[LayerWeights, ...]
    unembed: Float[np.ndarray, "d_model outputs"]
    """Selects the output columns: one for a numerical program, one per value for a categorical program."""

    causal: bool
    pad_id: int
    """Token id of PAD, to which no position attends."""

    def in_double(self) -> "Weights":
        """Return the same weights in double precision."""
        return _in_double(self)


def _in_double(part: Any) -> Any:
    """Return `part`, a dataclass of arrays or a tuple of them, with every array in double precision."""
    if isinstance(part, np.ndarray):
        return part.astype(np.float64)
    if isinstance(part, tuple):
        return tuple(map(_in_double, part))  # pyright: ignore[reportUnknownArgumentType]
    if is_dataclass(part):
        return replace(part, **{each.name: _in_double(getattr(part, each.name)) for each in fields(part)})  # pyright: ignore
    return part


def extract_weights(assembled: AssembledTransformerModel) -> Weights:
    """Return a copy of the weights of a Tracr model, in single precision.

    The unembedding is not a parameter of Tracr's model; it is read by running the model's unembedding on the identity.
    """
    params: dict[str, dict[str, Any]] = assembled.params  # pyright: ignore[reportAssignmentType]
    config = assembled.model_config
    encoding: dict[Any, int] = assembled.input_encoder.encoding_map  # pyright: ignore
    d_model = len(assembled.residual_labels)
    layers: list[LayerWeights] = []
    for layer in range(config.num_layers):
        name = f"transformer/layer_{layer}"

        def matrix(module: str, name: str = name) -> np.ndarray:
            entry = params[f"{name}/{module}"]
            promise(not np.any(np.array(entry["b"])), f"Tracr writes no biases, yet {name}/{module} has one")
            return np.array(entry["w"], dtype=np.float32)

        split = (d_model, config.num_heads, config.key_size)
        query, key, value = (matrix(f"attn/{m}").reshape(split) for m in ("query", "key", "value"))
        output = matrix("attn/linear").reshape(config.num_heads, config.key_size, d_model)
        heads = tuple(HeadWeights(query[:, h], key[:, h], value[:, h], output[h]) for h in range(config.num_heads))
        layers.append(LayerWeights(heads, matrix("mlp/linear_1"), matrix("mlp/linear_2")))
    return Weights(
        token=np.array(params["token_embed"]["embeddings"], dtype=np.float32),
        position=np.array(params["pos_embed"]["embeddings"], dtype=np.float32),
        layers=tuple(layers),
        unembed=_unembedding(assembled, d_model),
        causal=config.causal,
        pad_id=encoding[COMPILER_PAD],
    )


def _unembedding(assembled: AssembledTransformerModel, d_model: int) -> np.ndarray:
    """Return the matrix of Tracr's unembedding, `[d_model, outputs]`."""

    def unembed(residual: Any) -> Any:
        return assembled.get_compiled_model().unembed(residual, use_unembed_argmax=False)

    apply = hk.without_apply_rng(hk.transform(unembed)).apply
    return np.array(apply(assembled.params, np.eye(d_model, dtype=np.float32)), dtype=np.float32).reshape(d_model, -1)
